"""What a client gives for one text, pair of texts, or image; of a long text, one answer of all of its windows;
and the forms of transformers' pipelines: for one item, for several, and for conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...models.artifacts import ClientPart, Question
from ...models.loading.huggingface import InputError
from ...models.loading.task import USUAL_LABELS, WRITTEN
from ...models.loading.truncation import MEANS, joined_rows
from ...protocols.errors import BlindformerError
from ..reports.report import Report, added_up
from .sessions import answer_to

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation


@dataclass
class Result:
    """The answer to one text, pair of texts, or image.

    value       as the model's task has it; None if there is an error
    outputs     the model's outputs by name, float32
    length      padded length in tokens: all that others learn of the text's length, except with windows
    tokens      of the text that were read; only the client knows it
    truncated   tokens that were cut off; only the client knows it
    retried     why a first attempt failed; it gave no answer, and its correlated randomness is spent
    distrusted  why the answer cannot be trusted: a canary query of its call was answered wrongly
    error       of this item (`stream`); `query` and `query_many` raise it
    passes      through the model
    windows     that a long text was divided into
    finish      of a generative model: "stop", or "length" if the answer was cut
    language    of speech, such as "en"
    """

    item: Any
    value: Any = None
    outputs: dict[str, Tensor] = field(default_factory=dict, repr=False)
    length: int = 0
    truncated: int = 0
    report: Report | None = field(default=None, repr=False)
    retried: str = ""
    error: BlindformerError | None = None
    tokens: int = 0
    passes: int = 1
    windows: int = 1
    finish: str = ""
    language: str = ""
    distrusted: str = ""


class Windows:
    """The questions of a call, with every window of a long text under a number of its own: each is a query.

    How a text is divided, and answers joined, is in models/loading/truncation.py. What others learn of such a text is
    how many windows it has, as one learns of a short one to which length it is padded.

    questions  by number, in the order in which they are asked
    places     of each window that is not its text's first, the number of its text
    """

    def __init__(self, part: ClientPart, asked: Mapping[int, Question], first: int, top_k: int | None) -> None:
        """`first`: the number of the first window that is not its text's first."""
        self._part, self._top_k = part, top_k
        self.questions: dict[int, Question] = {}
        self.places: dict[int, int] = {}
        for number, question in asked.items():  # a text's windows follow one another: its answer is there soon
            self.questions[number] = question
            for window in question.more:
                at = first + len(self.places)
                self.places[at], self.questions[at] = number, window
        self._long = {number: 1 + len(question.more) for number, question in asked.items() if question.more}
        self._parts: dict[int, list[tuple[int, Result]]] = {number: [] for number in self._long}

    def joined(self, results: Iterable[tuple[int, Result]]) -> Iterator[tuple[int, Result]]:
        """Results of the call's items, in place of those of windows: each when its last window's is there."""
        for number, result in results:
            text = self.places.get(number, number)
            if text not in self._parts:
                yield number, result
                continue
            self._parts[text].append((number, result))
            if len(self._parts[text]) == self._long[text]:
                in_order = sorted(self._parts.pop(text), key=lambda pair: pair[0])
                yield text, self._joined(text, [part for _, part in in_order])

    def _joined(self, text: int, parts: list[Result]) -> Result:
        tokens = sum(part.tokens for part in parts)
        result = replace(
            parts[0],
            value=None,
            outputs={},
            tokens=tokens,
            windows=len(parts),
            passes=sum(part.passes for part in parts),
            report=added_up(part.report for part in parts if part.report is not None),
            retried=next((part.retried for part in parts if part.retried), ""),
            error=next((part.error for part in parts if part.error is not None), None),
            distrusted=next((part.distrusted for part in parts if part.distrusted), ""),
        )
        if result.error is not None:
            return result
        if self._part.kind in MEANS:
            weights = torch.tensor([part.tokens / tokens for part in parts])
            for name in parts[0].outputs:
                values = torch.stack([part.outputs[name] for part in parts], -1)
                result.outputs[name] = values @ weights.to(values.dtype)
            result.value = self._part.read(self.questions[text], result.outputs, self._top_k)
        else:
            asked = [self.questions[number] for number in (text, *(n for n, of in self.places.items() if of == text))]
            windows = [question.window for question in asked if question.window is not None]
            result.value = joined_rows(self._part.kind, windows, [part.value for part in parts], self._top_k)
        return result


Ask = Callable[[list[Any]], list[Any]]
"""For each of several items its value, or the error that it alone has."""

TopK = int | None | EllipsisType
"""How many labels, tokens or spans. `...`: nobody says, so as many as is usual. None: all labels, but of an image as
many as is usual, and so of tokens and spans."""
DEFAULTS = {"text-classification": 1, "image-classification": USUAL_LABELS, "audio-classification": USUAL_LABELS}
"""How many labels, where nobody says."""


def count_of(task: str, top_k: TopK) -> int | None:
    """How many are to be read of an answer; None: all labels, or as many tokens or spans as is usual."""
    usual = top_k is ... or (top_k is None and task == "image-classification")
    return DEFAULTS.get(task) if usual else top_k  # type: ignore[return-value]


def in_form(task: str, ask: Ask, inputs: Any, top_k: TopK, called: bool = True) -> Any:
    """What the pipeline of a task returns for one item, for a list of them, or for an iterator or a data set, whose
    answers are an iterator, too: each is asked when it is read.

    The error of one of many stands in its place; that of a single item is raised. `called`: whether `top_k` is that of
    this call; of the labels of a text, one of the pipeline as a whole gives a list more.
    """
    if isinstance(inputs, Dataset):
        inputs = map(inputs.__getitem__, range(len(inputs)))  # type: ignore[arg-type]
    if isinstance(inputs, Iterator):
        return (_of_many(task, ask([item])[0], top_k) for item in inputs)
    if isinstance(inputs, list) and not _is_chat(inputs):
        values = [_of_many(task, value, top_k) for value in ask(inputs)]
        return values[0] if task == "fill-mask" and len(values) == 1 else values
    (value,) = ask([inputs])
    if isinstance(value, BlindformerError):
        raise value
    answer = value if task in WRITTEN else _of_many(task, value, top_k)
    listed = task == "text-classification" and not isinstance(inputs, Mapping) and not (called and top_k is not ...)
    return [answer] if listed else answer


def _of_many(task: str, value: Any, top_k: TopK) -> Any:
    """The one label or span, where not several were asked for."""
    alone = top_k is ... if task == "text-classification" else top_k in (..., None) and task == "question-answering"
    alone = alone or task in WRITTEN
    return value[0] if alone and isinstance(value, list) and value else value


def generated(conversation: Conversation, inputs: Any, return_full_text: bool = True, **options: Any) -> Any:
    """What text-generation returns for a text, or for a chat: a list of messages. A model with a chat template takes a
    text for the first message. `options`: transformers' own of `generate`."""
    full: Any
    if _is_chat(inputs):
        reply = answer_to(conversation, inputs, **options).text
        full = [*inputs, {"role": "assistant", "content": reply}]
    elif not isinstance(inputs, str):
        raise InputError(f"a text is a string, or a chat's list of messages, not {type(inputs).__name__}")
    else:
        templated = getattr(conversation.chat.tokenizer, "chat_template", None) is not None
        messages = [{"role": "user", "content": inputs}]
        reply = (
            answer_to(conversation, messages, **options) if templated else conversation.complete(inputs, **options)
        ).text
        full = inputs + reply
    return [{"generated_text": full if return_full_text else reply}]


def _is_chat(inputs: Any) -> bool:
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], Mapping) and "role" in inputs[0]
