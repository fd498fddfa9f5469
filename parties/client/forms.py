"""The forms of transformers' pipelines: what they take and return for one item, for several, and for conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from ...models.loading.huggingface import InputError
from ...models.loading.task import USUAL_LABELS, WRITTEN
from ...protocols.errors import BlindformerError
from .sessions import answer_to

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation

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
