"""The arithmetic of delegated linear layers: integers modulo 2^k, k 32 or 24, and a check that finds a wrong product.

A client rounds its activations x to integers q, sends q - r under a mask r that is uniform and used once, and gets
y = W q modulo 2^k back after it has removed its masks. As |q|_2 |w_j|_2 < 2^(k-1) for each row w_j of W
(Cauchy-Schwarz), these are the integers themselves.

The check. The client draws rho uniformly modulo 2^64 from the system's randomness, keeps u = rho W, and accepts a row
if rho y = u q modulo 2^64 (Freivalds, 1977). A wrong row passes with probability 2^-33 at most; two rho make it 2^-66:
- y + e, with y and y + e as signed numbers of 32 bits, has 0 < |e_j| < 2^32 in some place. It passes if rho e = 0.
- Take the e_j of the least power v of two: v <= 31, and e_j = 2^v times an odd number.
- rho_j is uniform modulo 2^64, so rho_j e_j is uniform on the 2^(64-v) multiples of 2^v.
- All other terms of rho e are multiples of 2^v, and are independent of rho_j.
- So rho e = 0 with probability 2^-(64-v) <= 2^-33.
This holds for whoever does not know rho and chooses e without it. Each row is checked by itself: errors of two rows
cannot cancel. rho and u are the client's own: whoever else knows them can make an error that passes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel
from ..matmul import matmul, matmul_bytes
from ..streams import Stream
from ..wire import elements, pack, unpack, wire_bytes

_DIGIT = 1 << 16
_WEIGHTS_AT_ONCE = 1 << 22  # that torch widens to float64: 32 MB
_USED = 0.98  # of the norm that a row may have, before rounding
_FINE = 1 << 20  # steps of the largest number, in which a row's norm is measured
_GROWTH = 1 + 2**-6  # of a step whose integers were too large
_MOST_COLUMNS = 1 << 22  # so that sums of squares fit 64 bits


def pack_ring(x: Tensor, ring: int) -> memoryview | bytearray:
    """Integers of int32 modulo 2^ring, as they travel."""
    return x.contiguous().numpy().data if ring == 32 else pack24(x)


def unpack_ring(data: bytearray | memoryview, shape: tuple[int, ...], ring: int) -> Tensor:
    """What `pack_ring` has packed, int32; bits above the ring's mean nothing."""
    return unpack(data, 0, shape, 4, torch.int32) if ring == 32 else unpack24(data, shape)


@kernel(bindings.pack24)
def pack24(x: Tensor) -> bytearray:
    """The low 24 bits of int32."""
    return pack([(x.to(torch.int64), 3)], 3 * x.numel())


@kernel(bindings.unpack24)
def unpack24(data: bytearray | memoryview, shape: tuple[int, ...]) -> Tensor:
    return unpack(data, 0, shape, 3, torch.int32)


def ring_bytes(shape: tuple[int, ...], ring: int) -> int:
    """Of what `pack_ring` gives."""
    return elements(shape) * wire_bytes(ring)


def signed_in(x: Tensor, ring: int) -> Tensor:
    """Integers of int32 modulo 2^ring, as those between -2^(ring-1) and 2^(ring-1)."""
    above = 32 - ring
    return (x << above) >> above if above else x


@kernel(bindings.linear32)
def linear32(x: Tensor, weight: Tensor) -> Tensor:
    """x [R, K] of int32 by the transpose of weight [N, K], of int8 or int16, modulo 2^32: int32 [R, N]."""
    if x.is_cuda:
        return matmul_bytes(x, weight.t(), 32)
    rows, (outputs, inner) = len(x), weight.shape
    wide = x.to(torch.int64)
    low = (wide + _DIGIT // 2).remainder(_DIGIT).sub_(_DIGIT // 2)
    digits = torch.cat((low, (wide - low) // _DIGIT)).to(torch.float64)  # sums of 2^22 products are exact
    out = torch.empty(rows, outputs, dtype=torch.int32)
    few = max(1, _WEIGHTS_AT_ONCE // max(1, inner))
    for first in range(0, outputs, few):
        sums = (digits @ weight[first : first + few].to(torch.float64).t()).to(torch.int64)
        out[:, first : first + few] = sums[:rows] + (sums[rows:] << 16)
    return out


def quantise_rows(x: Tensor, largest_norm: float, bits: int = 32) -> tuple[Tensor, Tensor]:
    """x [R, K] of float32 as integers q of int32, and a step for each row, of float64: q = round(x / step).

    |q|_2 largest_norm < 2^(bits-1) holds for these integers, whatever x is, so no product with a row of integers of
    that norm wraps. A row of zeros has step 1. One that is not finite has step NaN, and zeros as q.
    """
    assert holds(largest_norm, x.shape[-1], bits), "such weights leave no integers; refuse them before"
    most, norm = _limits(largest_norm, bits)
    return _quantised(x.contiguous(), most, norm)


def holds(largest_norm: float, columns: int, bits: int = 32) -> bool:
    """Whether rows of so many numbers can be rounded beside such weights. Then a step always exists: rounding adds
    sqrt(columns) / 2 to a norm at most."""
    return columns <= _MOST_COLUMNS and largest_norm * math.sqrt(columns) < _USED * 2 ** (bits - 1)


@functools.lru_cache(1024)
def _limits(largest_norm: float, bits: int) -> tuple[int, float]:
    """The most that squares may add up to, and the norm to aim at. An integer's norm that was rounded down is below
    the next float."""
    bound = Fraction(max(1.0, math.nextafter(largest_norm, math.inf))) ** 2
    most = math.ceil((1 << 2 * bits - 2) / bound) - 1
    return most, _USED * math.sqrt(most)


@kernel(bindings.quantised)
def _quantised(x: Tensor, most: int, norm: float) -> tuple[Tensor, Tensor]:
    # Sums are of integers, so that no order of summing changes a bit.
    finite = x.isfinite().all(-1)
    wide = torch.where(finite[:, None], x, 0.0).to(torch.float64)
    largest = wide.abs().amax(-1)
    zero = largest == 0
    largest[zero] = 1.0
    fine = (wide * (_FINE / largest)[:, None]).round_().to(torch.int64)
    # torch's own root is not always the nearest number.
    norms = torch.tensor([math.sqrt(n) for n in fine.square().sum(-1).tolist()], dtype=torch.float64, device=x.device)
    step = largest * norms / (norm * _FINE)
    step[zero] = 1.0
    while True:
        q = (wide / step[:, None]).round_().to(torch.int64)
        over = q.square().sum(-1) > most
        if not bool(over.any()):
            break
        step[over] *= _GROWTH
    step[~finite] = math.nan
    return q.to(torch.int32), step


def check_vectors(weight: Tensor, rho: Tensor) -> Tensor:
    """u [2, K] = rho [2, N] weight [N, K] modulo 2^64: one pass over the weight, once."""
    return matmul(rho, weight)


@kernel(bindings.open_rows)
def open_rows(
    y: Tensor, s: Tensor, q: Tensor, rho: Tensor, u: Tensor, step: Tensor, scale: Tensor, ring: int, out: Tensor
) -> Tensor:
    """Of a server's y = W q - s modulo 2^ring, int32 [R, N]: whether rho W q = u q modulo 2^64, for both rho, of each
    row: bool [R]. `out` float32 [R, N] becomes W q step scale, computed in float64 and rounded once.

    s like y; q int32 [R, K]; rho int64 [2, N], u [2, K]; step float64 [R], scale float32 [N]
    """
    y = signed_in(y + s, ring)
    hold = matmul(y.to(torch.int64), rho.t()) == matmul(q.to(torch.int64), u.t())
    out.copy_(y.to(torch.float64) * step[:, None] * scale.to(torch.float64))
    return hold.all(-1)


# The masks r and s of one pass, in the order of its calls. The client and the dealer draw the same ones.


_CHUNK_NUMBERS = 1 << 16  # numbers


class PassMasks:
    """Of the pass whose key this is, through this sequence of (group, rows).

    The label names all that must agree: other weights, another server or another sequence under the same key have other
    masks. Each call's masks are read once, in order, and never twice.

    artifact  the digest of the model's manifest
    server    the fingerprint of the server's certificate; empty where channels have none
    """

    def __init__(self, key: bytes, artifact: str, server: str, sequence: Sequence[tuple[int, int]]) -> None:
        label = json.dumps([artifact, server, [list(call) for call in sequence]])
        self._stream = Stream(key, "delegated").reader(hashlib.sha256(label.encode()).hexdigest())
        self._ahead = torch.empty(0, dtype=torch.int32)

    def next(self, rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """r [rows, inputs] and s [rows, outputs], int32, of the next call."""
        count = rows * (inputs + outputs)
        if len(self._ahead) < count:  # of small calls, many at once
            more = self._stream.int32(max(count - len(self._ahead), _CHUNK_NUMBERS))
            self._ahead = torch.cat((self._ahead, more)) if len(self._ahead) else more
        r, s, self._ahead = self._ahead.split([rows * inputs, rows * outputs, len(self._ahead) - count])
        return r.view(rows, inputs), s.view(rows, outputs)
