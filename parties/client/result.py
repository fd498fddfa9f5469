"""What a client gives for one text, pair of texts, or image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...protocols.errors import BlindformerError
from ..reports.report import Report


@dataclass
class Result:
    """The answer to one text, pair of texts, or image.

    value     in the terms of the model's task (Task.read); None if there is an error
    outputs   the model's outputs by name, float32
    length    tokens that the text was padded to: all that others learn of its own length, but for `windows`
    tokens    of the text, as far as it was read; known here only
    truncated tokens that were cut off so that it fits; known here only
    retried   why a first attempt failed, if one did: that attempt gave no answer, and its correlations are spent
    distrusted  why the answer must not be trusted: a sentinel that was asked with it was not answered as known
    error     of this question alone (`stream`); `query` and `query_many` raise it
    passes    through the model: one a window, and as many as a model that writes took
    windows   that a long text was asked in; one of any other
    finish    of a model that writes: "length" where the answer ended because there was no room for more, else "stop"
    language  of speech: that the model heard, or was told, such as "en"
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
