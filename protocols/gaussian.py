"""Normal numbers from the system's randomness: of noise that protects somebody."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .streams import Stream, new_seed

_BITS = 52


def gaussian(count: int, seed: bytes | None = None) -> Tensor:
    """Standard normal numbers, float64, by Box and Muller from a fresh stream of the system's randomness."""
    half = -(-count // 2)
    stream = Stream(seed or new_seed(), "gaussian noise")
    radius, angle = ((stream.integers(label, (half,)) >> (64 - _BITS)).double() for label in ("radius", "angle"))
    u = (radius + 2.0 ** (_BITS - 1) + 0.5) / 2.0**_BITS  # in (0, 1)
    length, turn = torch.sqrt(-2 * torch.log(u)), angle * (2 * math.pi / 2.0**_BITS)
    return torch.cat([length * torch.cos(turn), length * torch.sin(turn)])[:count]
