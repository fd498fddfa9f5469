"""The client's side of one group of delegated layers: its integers, and the check of an answer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import BlindformerError
from . import RING
from .arithmetic import check_vectors, holds, open_rows, quantise_rows

_CHUNK_NUMBERS = 2**17  # numbers that are widened to float64: 1 MB, which caches hold


class GroupError(BlindformerError):
    """A group of layers that the ring has no room for."""


@dataclass(frozen=True)
class MaskedRows:
    """An input on its way. `q`: its integers; `masked`: what is sent; `step`: one unit of each row."""

    q: Tensor
    masked: Tensor
    step: Tensor


class ClientGroup:
    """`scale` [outputs]: what one unit of each output row's integers stands for, float32.

    The norm of the rows, rho and u come from this side's own pass over the integers [outputs, inputs], and from its
    system's randomness: whoever else knew rho could add an error that passes.

    Errors: GroupError.
    """

    def __init__(self, integers: Tensor, scale: Tensor, ring: int = RING) -> None:
        self.outputs, self.inputs = integers.shape
        self.scale, self.ring = scale, ring
        self.largest_norm = largest_norm(integers)
        if not holds(self.largest_norm, self.inputs, ring):
            what = f"{self.inputs} inputs and weights of so many bits do not fit a ring of {ring}"
            raise GroupError(f"layer: {what}; prepare the model with fewer bits")
        drawn = bytearray(secrets.token_bytes(16 * self.outputs))
        self._rho = torch.frombuffer(drawn, dtype=torch.int64).view(2, self.outputs)
        self._u = check_vectors(integers, self._rho)

    def mask(self, x: Tensor, r: Tensor) -> MaskedRows:
        """x float32 [rows, inputs]. A row that is not finite is sent as zeros, masked like all others."""
        q, step = quantise_rows(x, self.largest_norm, self.ring)
        return MaskedRows(q, q - r, step)

    def open(self, sent: MaskedRows, product: Tensor, s: Tensor, out: Tensor) -> bool:
        """Whether the server's W q - s is of what was sent, in each row. `out` float32 [rows, outputs] becomes the
        layers' answers: not a number where the input was not finite."""
        step, scale = sent.step, self.scale
        return bool(open_rows(product, s, sent.q, self._rho, self._u, step, scale, self.ring, out).all())


def largest_norm(integers: Tensor) -> float:
    """The largest 2-norm of a row, from exact sums of squares. int8 or int16 [outputs, inputs]."""
    most = 0
    for rows in integers.split(max(1, _CHUNK_NUMBERS // max(1, integers.shape[1]))):
        exact = rows.to(torch.float64)  # squares are below 2^30, and 2^22 columns are the most
        most = max(most, int(torch.linalg.vecdot(exact, exact).max()) if rows.numel() else 0)
    return max(1.0, most**0.5)
