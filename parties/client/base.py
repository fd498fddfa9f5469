"""What every client does: reads texts and images, and says answers as the transformers pipelines do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from ...models.artifacts import ClientPart, Question
from ...models.compile import AnswerOutOfRange
from ...models.loading.errors import InputError
from ...models.loading.task import IMAGE_LABELS
from ...protocols.errors import BlindformerError
from ..reports.report import Report


class ClientError(BlindformerError):
    """A client that is asked for something it cannot do."""


@dataclass
class Result:
    """The answer to one text, pair of texts, or image.

    value     in the terms of the model's task (Task.read); None if there is an error
    outputs   the model's outputs by name, float32
    length    tokens that the text was padded to: all that others learn of its own length
    retried   why a first attempt failed, if one did: that attempt gave no answer, and its correlations are spent
    error     of this question alone (`stream`); `query` and `query_many` raise it
    """

    item: Any
    value: Any = None
    outputs: dict[str, Tensor] = field(default_factory=dict, repr=False)
    length: int = 0
    report: Report | None = field(default=None, repr=False)
    retried: str = ""
    error: BlindformerError | None = None


class Asking(ABC):
    """A client with the client's part of a model. `length`: what texts are padded to (None: the least that fits)."""

    protocol: str
    part: ClientPart
    length: int | None

    @property
    def task(self) -> str:
        """text-classification, feature-extraction, sentence-embedding, image-classification ..."""
        return self.part.task.pipeline

    def query(self, item: Any, *, top_k: int | None = None) -> Result:
        """One text, one pair of texts in a tuple, or one image (a file, or a PIL image), one answer. `top_k`: how many
        labels, tokens or spans."""
        (result,) = self.query_many([item], top_k=top_k)
        return result

    def query_many(self, items: Iterable[Any], *, top_k: int | None = None) -> list[Result]:
        """Many, in one session for each length they are padded to: while one runs, the next one's correlations are
        made. The first error ends it; `stream` goes on.

        An answer out of range is raised when all have been asked, so that the requests do not show it.
        """
        found: dict[int, Result] = {}
        spoilt: AnswerOutOfRange | None = None
        chosen = list(items)
        for index, result in self.stream(chosen, top_k=top_k):
            if isinstance(result.error, InputError) and len(chosen) > 1:
                raise InputError(f"input {index + 1} of {len(chosen)}: {result.error}") from None
            if isinstance(result.error, AnswerOutOfRange):
                spoilt = spoilt or result.error
            elif result.error is not None:
                raise result.error
            found[index] = result
        if spoilt is not None:
            raise spoilt
        return [found[index] for index in sorted(found)]

    @abstractmethod
    def stream(self, items: Iterable[Any], *, top_k: int | None = None) -> Iterator[tuple[int, Result]]:
        """(index of the item, its result): first those of items that cannot be asked."""

    @abstractmethod
    def close(self) -> None:
        """End what is open. Safe to call twice."""

    @abstractmethod
    def costs(self, reports: list[Report]) -> str:
        """In a line: what these answers cost."""

    @property
    @abstractmethod
    def who(self) -> str:
        """Whom a user has to trust, and how far."""

    def __call__(self, inputs: Any, *, top_k: int | None = None) -> Any:
        """What the transformers pipeline of this task returns for a text, a pair of texts in a tuple, an image, or a
        list of them.

        text-classification    [{"label", "score"}] for a text; of a list, a dictionary each. With `top_k`: a list each
        image-classification   the five likeliest labels of an image (or `top_k`); of a list, a list each
        feature-extraction     nested lists [1, tokens, hidden]; of a list, a list of them
        sentence-embedding     one list of floats, of length one; of a list, a list of them
        next-token, fill-mask  [{"score", "token", "token_str"}], of a mask with "sequence"; of a list, a list each
        token-classification   [{"entity", "score", "index", "word", "start", "end"}]; of a list, a list each
        question-answering     {"score", "start", "end", "answer"}; of a list, one each. With `top_k`: a list each
        """
        many = isinstance(inputs, list)
        default = {"text-classification": 1, "image-classification": IMAGE_LABELS}.get(self.task)
        values = [result.value for result in self.query_many(inputs if many else [inputs], top_k=top_k or default)]
        alone = {"text-classification": many, "question-answering": True}.get(self.task, False)
        if alone and top_k is None:
            values = [value[0] if isinstance(value, list) else value for value in values]
        return values if many else values[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _encode_all(self, items: list[Any]) -> tuple[dict[int, Question], list[tuple[int, Result]]]:
        """Questions by index, and the results of items that make none: their errors."""
        questions: dict[int, Question] = {}
        refused: list[tuple[int, Result]] = []
        for index, item in enumerate(items):
            try:
                questions[index] = self.part.encode(item, self.length if self.part.kind != "image" else None)
            except InputError as error:
                refused.append((index, Result(item, error=error)))
        return questions, refused
