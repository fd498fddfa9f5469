"""Gumbel noise: the likeliest token of scores plus noise is a token drawn by these scores.

The client draws the noise and shares it as its own input, so that a token can be drawn on secrets. A place has the same
noise whatever passes come to it, so a seed draws the same again, with drafts and without. A place that is read again
after a wrong draft keeps its noise: nothing that was drawn from it was kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

HOTTEST = 2.0  # the temperature that calibration leaves room for


@dataclass(frozen=True)
class Noise:
    """For each word of a vocabulary at these places of a text, [1, places, words]; none at temperature 0."""

    words: int
    temperature: float = 0.0
    seed: int = 0

    def __call__(self, places: Iterable[int]) -> Tensor:
        if not self.temperature:
            return torch.zeros(1, len(list(places)), self.words)
        return self.temperature * torch.stack([_of_place(self.seed, place, self.words) for place in places])[None]


def _of_place(seed: int, place: int, words: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + place * 0x9E3779B97F4A7C15) % 2**63)
    drawn = torch.empty(words, dtype=torch.float64).exponential_(generator=generator)
    return -drawn.clamp(min=1e-12).log().float()
