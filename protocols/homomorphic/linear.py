"""C0 + C1 = A W modulo 2^(8 width): A is the client's, W the server's. One set-up for a matrix, one reply a product.

    set-up   server -> client   W, encrypted under the server's key, packed without gaps
    reply    client -> server   A W - R, encrypted, flooded (replies.py). The server decrypts C0; C1 = R
The client multiplies encrypted weights by its own integers: after Nimbus (Li and others, arXiv 2411.15707), where the
party with the weights encrypts them once for all queries. The server spends a decryption, 50 times less than it.

Columns come in blocks of a power of two, P, of the degree N; g = N / P rows of W share a ciphertext, row r's column c
at X^(g c + r). Times sum_r A[i, r] X^-r that has row i of the product at X^(g c), and beside it numbers that belong to
nobody. g such ciphertexts become one by log2 g merges (PackLWEs: Chen, Dai, Kim and Song, ACNS 2021)

    (x + X^h y) + s(x - X^h y)        s: X -> X^(1 + N / h)

with h = g / 2, g / 4 to 1. s keeps X^j for multiples j of 2 h and negates it for other multiples of h: so it doubles
the results and cancels what stood at odd multiples of h. A was divided by g before, modulo Q, so the doublings cancel.

Who learns what. *The client* sees W encrypted: nothing, if ring-LWE is hard. *The server* sees A W - R, R uniform, and
noise of its own that is flooded. Neither checks that the other computes what it should (semi-honest). The server knows
W and may put any W in, as with every linear layer. One set-up serves any number of replies; R is used once.

Noise, at most: a weight's error is below 22, a row has k terms of A below 2^(8 width - 1), which a division by the last
prime makes smaller; each merge adds a key switch, which later ones double.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..channel import Buffer
from .lattice import (
    CIPHERTEXT_BYTES,
    DEGREE,
    LARGEST_ERROR,
    MOST_MERGES,
    HomomorphicError,
    LatticeKey,
    LatticePublic,
    lattice,
    unsealed,
    values_of,
)
from .replies import ROUNDING, SWITCHING, flood_bits, opened, reply, reply_bytes
from .residues import Words, multiplied, reduced_signed, scaled

_LEAST_COLUMNS = DEGREE >> MOST_MERGES
Shape = tuple[int, int, int]  # batch, rows of W, columns of W


@dataclass(frozen=True)
class ColumnBlock:
    """Columns of W from `start` on: `count` of them, in the place of `padded`."""

    start: int
    count: int
    padded: int

    @property
    def group(self) -> int:
        """Rows of W in a ciphertext, and rows of the product in a merged one."""
        return DEGREE // self.padded

    def places(self, rows: int) -> Words:
        """Where a merged ciphertext has its results, by column and row."""
        columns, lines = np.arange(self.count, dtype=np.uint64), np.arange(rows, dtype=np.uint64)
        return (columns[:, None] * np.uint64(self.group) + lines).reshape(-1)


def blocks(columns: int) -> list[ColumnBlock]:
    """Blocks of a power of two; padded if that wastes a quarter at most."""
    out, start = [], 0
    while start < columns:
        left = min(columns - start, DEGREE)
        padded = max(_LEAST_COLUMNS, 1 << (left - 1).bit_length())
        if 4 * left < 3 * padded and padded > _LEAST_COLUMNS:
            padded //= 2
        out.append(ColumnBlock(start, min(left, padded), padded))
        start += out[-1].count
    return out


def linear_cost(batch: int, rows: int, inner: int, columns: int, width: int = 8) -> tuple[int, int]:
    """Bytes of the set-up and of a reply, for A [batch, rows, inner] and W [batch, inner, columns]."""
    setup = back = 0
    for block in blocks(columns):
        setup += -(-batch * inner // block.group) * CIPHERTEXT_BYTES
        back += sum(reply_bytes(1 << 8 * width, block.count * len(lines)) for lines in _groups(batch * rows, block))
    return setup, back


def _groups(rows: int, block: ColumnBlock) -> list[range]:
    return [range(start, min(start + block.group, rows)) for start in range(0, rows, block.group)]


def _noise(block: ColumnBlock, inner: int, width: int) -> int:
    product = inner * (LARGEST_ERROR + 1) << (8 * width - 1)
    return product // lattice().primes[-1] + 1 + block.group * (ROUNDING + SWITCHING)


class LinearServer:
    """The party that knows W, int64 of this shape. Holds no copy of it."""

    def __init__(self, key: LatticeKey, shape: Shape, width: int = 8) -> None:
        self.key, self.shape, self.width = key, shape, width
        for block in blocks(shape[2]):
            flood_bits(1 << 8 * width, _noise(block, shape[1], width))

    def setup(self, weights: Tensor) -> bytes:
        """W encrypted, for LinearClient: the first number of linear_cost."""
        weights, ring = _whole_shape(weights, "weights"), lattice()
        if weights.shape != self.shape:
            raise HomomorphicError(f"weights {list(weights.shape)}: are declared as {list(self.shape)}")
        rows = weights.flatten(0, 1).numpy().view(np.uint64) & _mask(self.width)
        parts = []
        for block in blocks(rows.shape[1]):
            for start in range(0, len(rows), block.group):
                some = rows[start : start + block.group, block.start : block.start + block.count]
                message = np.zeros((block.padded, block.group), dtype=np.uint64)
                message[: block.count, : len(some)] = some.T
                parts.append(self.key.encrypted(scaled(message.reshape(-1), 1 << 8 * self.width, ring.primes)))
        return b"".join(parts)

    def shares(self, data: Buffer, rows: int) -> Tensor:
        """C0 of a reply to A with so many rows, int64 [batch, rows, columns]; bits above `width` bytes are 0. Errors:
        HomomorphicError."""
        batch, inner, columns = self.shape
        expected = linear_cost(batch, rows, inner, columns, self.width)[1]
        if len(data) != expected:
            raise HomomorphicError(f"reply: {len(data)} bytes instead of {expected}; both need one program")
        out, at, view = np.zeros((batch * rows, columns), dtype=np.uint64), 0, memoryview(data)
        for block in blocks(columns):
            for lines in _groups(batch * rows, block):
                places = block.places(len(lines))
                size = reply_bytes(1 << 8 * self.width, len(places))
                numbers = opened(self.key, view[at : at + size], 1 << 8 * self.width, places, len(places))
                part = out[lines.start : lines.stop, block.start : block.start + block.count]
                part[:] = numbers.reshape(block.count, len(lines)).T
                at += size
        return torch.from_numpy(out.view(np.int64)).view(batch, rows, columns)


class LinearClient:
    """The party that knows A. Holds W encrypted: 2.3 times as many bytes as the set-up's.

    shape   batch (1 without), rows and columns of W
    Errors: HomomorphicError for a set-up that is none.
    """

    def __init__(self, public: LatticePublic, setup: Buffer, shape: Shape, width: int = 8) -> None:
        self.public, self.shape, self.width = public, shape, width
        batch, inner, columns = shape
        expected = linear_cost(batch, 1, inner, columns, width)[0]
        if len(setup) != expected:
            raise HomomorphicError(
                f"encrypted weights: {len(setup)} bytes instead of {expected}; both need one program"
            )
        ring, number = lattice(), 0
        self._weights: list[Words] = []
        for block in blocks(columns):
            flood_bits(1 << 8 * width, _noise(block, inner, width))
            count = -(-batch * inner // block.group)
            values = [unsealed(setup, number + i, "encrypted weights") for i in range(count)]
            self._weights.append(ring.all.packed(values, block.group))
            number += count

    def reply(self, a: Tensor, r: Tensor) -> bytes:
        """A W - R, encrypted: the second number of linear_cost. The client's share is R, uniform and used once.

        a   int64 [rows, inner] or [batch, rows, inner];  r   int64, of the product's shape
        """
        (batch, inner, columns), a, r = self.shape, _whole_shape(a, "A"), _whole_shape(r, "R")
        if a.shape[::2] != (batch, inner) or r.shape != (batch, a.shape[1], columns):
            raise HomomorphicError(f"A {list(a.shape)}, R {list(r.shape)}: do not fit weights {list(self.shape)}")
        numbers, rows = _signed(a, self.width).flatten(0, 1).numpy(), a.shape[1]
        masks = (np.uint64(0) - r.flatten(0, 1).numpy().view(np.uint64)) & _mask(self.width)
        parts = []
        for block, weights in zip(blocks(columns), self._weights, strict=True):
            for lines in _groups(len(numbers), block):
                products: list[Any] = []
                while len(products) < len(lines):  # a matrix of the batch at a time
                    start = lines.start + len(products)
                    matrix = start // rows
                    some = numbers[start : min(lines.stop, (matrix + 1) * rows)]
                    products += self._products(weights, block, some, matrix * inner)
                merged = self._merged([*products, *[None] * (block.group - len(products))], block.group // 2)
                places = block.places(len(lines))
                message = np.zeros(DEGREE, dtype=np.uint64)
                message[places] = masks[lines.start : lines.stop, block.start : block.start + block.count].T.reshape(-1)
                noise = _noise(block, inner, self.width)
                product = None if merged is None else values_of(merged)
                parts.append(reply(self.public, product, message, 1 << 8 * self.width, noise, places))
        return b"".join(parts)

    def _products(self, weights: Words, block: ColumnBlock, numbers: NDArray[np.int64], start: int) -> list[Any]:
        """Rows of A, divided by the group, times W, whose rows begin at `start` of the batch's: None for zeros."""
        ring, group = lattice(), block.group
        first, last = start // group, -(-(start + numbers.shape[1]) // group)
        rows = np.zeros((len(numbers), (last - first) * group), dtype=np.int64)
        rows[:, start - first * group :][:, : numbers.shape[1]] = numbers
        residues = reduced_signed(rows.reshape(len(rows), -1, group), ring.primes)
        residues = np.stack([multiplied(x, pow(group, -1, q), q) for x, q in zip(residues, ring.primes, strict=True)])
        products = ring.all.divided(ring.all.row_products(weights, first, residues))
        return [
            ring.ciphertext(product, ring.data_level) if row.any() else None
            for row, product in zip(rows, products, strict=True)
        ]

    def _merged(self, parts: list[Any], half: int) -> Any:
        """One ciphertext of these, each of which may be None for zeros; None if all are."""
        while half:
            element = 1 + DEGREE // half
            parts = [self._pair(x, y, half, element) for x, y in zip(parts[:half], parts[half:], strict=True)]
            half //= 2
        return parts[0]

    def _pair(self, x: Any, y: Any, half: int, element: int) -> Any:
        evaluator = lattice().evaluator
        if x is None and y is None:
            return None
        if y is None:
            return evaluator.add(x, evaluator.apply_galois(x, element, self.public.merging))
        moved = evaluator.multiply_plain(y, lattice().monomial(half))
        if x is None:
            return evaluator.sub(moved, evaluator.apply_galois(moved, element, self.public.merging))
        turned = evaluator.apply_galois(evaluator.sub(x, moved), element, self.public.merging)
        return evaluator.add(evaluator.add(x, moved), turned)


def _mask(width: int) -> np.uint64:
    return np.uint64((1 << 8 * width) - 1)


def _signed(x: Tensor, width: int) -> Tensor:
    """The low bytes as signed integers. The least one, -2^(8 width - 1), is its own negative modulo 2^64, too."""
    shift = 64 - 8 * width
    return x << shift >> shift


def _whole_shape(x: Tensor, what: str) -> Tensor:
    """A batch of matrices of int64 in one piece. Errors: HomomorphicError."""
    if x.dtype is not torch.int64 or x.dim() not in (2, 3) or 0 in x.shape:
        raise HomomorphicError(f"{what}: {x.dtype} {list(x.shape)}; give int64 [rows, columns], or a batch of these")
    return (x if x.dim() == 3 else x[None]).contiguous()
