"""How well a language model predicts a text, and how far one way of computing it is from float32.

The text is cut into windows, each read as a conversation of its own: after the public prefix, with nothing of other
windows. At every token of a window the model's next token is judged by the text's own, the next window's first for the
last one. Every way of computing reads the same windows, so what differs between two rows is the computation alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from .evaluation import EvaluationError, Interval, wilson


@dataclass(frozen=True)
class Window:
    """`ids`: tokens that are read after the prefix; `following`: the text's own next token of each."""

    ids: list[int]
    following: list[int]


@dataclass(frozen=True)
class TextScore:
    """One way of computing, judged.

    count       places at which a next token was predicted
    perplexity  exp of the mean negative log-likelihood of the text's own tokens
    float32     the float32 model's perplexity at the same places; `ratio`: the first over the second
    agreement   by the name of another row: how often the most likely token is the same, over the places of both
    kl          mean divergence of the distributions from float32's, in nats
    seconds     of one token, on average, waiting included
    refused     tokens of windows that the client would not take, as a value lay far outside the calibrated range
    """

    name: str
    protocol: str
    count: int
    perplexity: float
    float32: float
    ratio: float
    agreement: dict[str, Interval]
    kl: float
    seconds: float
    refused: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class PlacedTokens:
    """What one way of computing predicted, by place of the text. `loss`: negative log-likelihood of the text's own next
    token; `divergence`: from float32, in nats; `seconds`: of what was read; `refused`: tokens."""

    most_likely: dict[int, int] = field(default_factory=dict)
    loss: dict[int, float] = field(default_factory=dict)
    divergence: list[float] = field(default_factory=list)
    seconds: float = 0.0
    refused: int = 0

    def add(self, start: int, window: Window, logits: Tensor, wanted: Tensor) -> None:
        """A window that begins at this place of the text. `logits`, and `wanted` of float32: [tokens, words]."""
        losses = -logits.double().log_softmax(-1)[torch.arange(len(logits)), window.following]
        places = range(start, start + len(window.ids))
        self.loss.update(zip(places, losses.tolist(), strict=True))
        self.most_likely.update(zip(places, logits.argmax(-1).tolist(), strict=True))
        self.divergence += compared(logits, wanted)[1].tolist()

    def perplexity(self, places: Sequence[int]) -> float:
        return math.exp(sum(self.loss[place] for place in places) / len(places)) if places else math.nan


def windows(ids: Sequence[int], size: int, most: int | None = None) -> list[Window]:
    """A text in windows of `size` tokens, the last one shorter; `most`: tokens to read (default: all).

    Errors: EvaluationError for a text in which nothing follows a token.
    """
    if len(ids) < 2:
        raise EvaluationError(f"text: has {len(ids)} tokens; give at least 2, so that one can be predicted")
    count = min(len(ids) - 1, most or len(ids))
    cuts = [range(start, min(start + size, count)) for start in range(0, count, size)]
    return [Window([ids[at] for at in cut], [ids[at + 1] for at in cut]) for cut in cuts]


def compared(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """[places, words] both -> [places]: whether the most likely token is the same, and the KL divergence in nats."""
    ours, theirs = logits.double().log_softmax(-1), wanted.double().log_softmax(-1)
    return logits.argmax(-1) == wanted.argmax(-1), (theirs.exp() * (theirs - ours)).sum(-1)


def text_score(
    name: str, protocol: str, scored: PlacedTokens, float32: PlacedTokens, others: dict[str, PlacedTokens]
) -> TextScore:
    """`others`: rows to compare the most likely tokens with."""
    places = list(scored.loss)
    own, exact = scored.perplexity(places), float32.perplexity(places)
    return TextScore(
        name=name,
        protocol=protocol,
        count=len(places),
        perplexity=own,
        float32=exact,
        ratio=own / exact,
        agreement={other: _agreement(scored, theirs) for other, theirs in others.items()},
        kl=sum(scored.divergence) / len(places) if places else math.nan,
        seconds=scored.seconds / len(places) if places else math.nan,
        refused=scored.refused,
    )


def _agreement(ours: PlacedTokens, theirs: PlacedTokens) -> Interval:
    both = ours.most_likely.keys() & theirs.most_likely.keys()
    return wilson(sum(ours.most_likely[place] == theirs.most_likely[place] for place in both), len(both))
