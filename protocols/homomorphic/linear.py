"""C0 + C1 = A W modulo 2^(8 width): A is the client's, W the server's. One set-up for a matrix, one reply a product.

    set-up   server -> client   W, encrypted under the server's key, packed
    reply    client -> server   A W - R, encrypted, flooded (replies.py). The server decrypts C0; C1 = R
The client multiplies encrypted weights by its own integers: after Nimbus (Li and others, arXiv 2411.15707), where the
party with the weights encrypts them once for all queries. The server spends a decryption, 50 times less than it.

g rows of W share a ciphertext, a power of two: row r's column c stands at X^(s c + r), s = g l. A polynomial of the
client's has l lines of A: sum_i sum_r A[i, r] X^-(g i + r). Their product has line i's result of column c at
X^(s c - g i), as r - r' is no multiple of g else, and beside it numbers that belong to nobody (for inner products of
one ciphertext: Huang and others, Cheetah, USENIX Security 2022). So results are g apart, and g such ciphertexts become
one (merging.py), which doubles log2 g times. A was divided by g before, modulo Q, so the doublings cancel.

A weight is packed without gaps, in blocks of a power of two of columns: few bytes, which the client keeps. A matrix for
one product is packed as its rows cost least: more lines in a product are more ciphertexts, and fewer merges.

Who learns what. *The client* sees W encrypted: nothing, if ring-LWE is hard. *The server* sees A W - R, R uniform, and
noise of its own that is flooded. Neither checks that the other computes what it should (semi-honest). The server knows
W and may put any W in, as with every linear layer. One set-up serves any number of replies; R is used once.

Noise, at most: a weight's error is below 22, l rows have k terms of A below 2^(8 width - 1), which a division by the
last prime makes smaller; each merge adds a key switch, which later ones double.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

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
)
from .replies import ROUNDING, SWITCHING, flood_bits, opened, reply, reply_bytes
from .residues import Words, multiplied, reduced_signed, scaled

_MOST_STRIDE = DEGREE // 8  # that polynomials.py computes
_PRODUCTS = 16  # products and their merges that are worth a ciphertext that travels: 2 ms each, and 217 KB
Shape = tuple[int, int, int]  # batch, rows of W, columns of W


@dataclass(frozen=True)
class ColumnBlock:
    """Columns of W from `start` on: `count` of them. `rows`: of W in a ciphertext; `lines`: of A in a product."""

    start: int
    count: int
    rows: int
    lines: int

    @property
    def stride(self) -> int:
        return self.rows * self.lines

    def ciphertexts(self, batch: int, inner: int) -> int:
        return -(-batch * inner // self.rows)

    def replies(self, batch: int, rows: int) -> list[list[range]]:
        """Lines of A [batch, rows], all in a row, by product and by reply. A product's are of one matrix."""
        starts = [(matrix * rows, line) for matrix in range(batch) for line in range(0, rows, self.lines)]
        products = [range(first + line, first + min(line + self.lines, rows)) for first, line in starts]
        return [products[at : at + self.rows] for at in range(0, len(products), self.rows)]

    def places(self, products: list[range]) -> Words:
        """Where a merged ciphertext has its results, by column and line."""
        last = self.rows * (self.lines - 1)
        lines = [last - self.rows * i + j for j, product in enumerate(products) for i in range(len(product))]
        columns = np.arange(self.count, dtype=np.uint64) * np.uint64(self.stride)
        return (columns[:, None] + np.array(lines, dtype=np.uint64)).reshape(-1)


def blocks(shape: Shape, rows: int | None = None) -> list[ColumnBlock]:
    """How W is packed. `rows`: of A, if W is for one product with it alone."""
    if rows is None:
        return _blocks_of_weights(shape[2])
    options = [_equal_blocks(shape[2], 1 << step) for step in range(MOST_MERGES + 1)]

    def price(option: list[ColumnBlock]) -> int:
        block, (batch, inner, _) = option[0], shape
        each = _PRODUCTS * block.ciphertexts(batch, inner) + batch * -(-rows // block.lines)
        return len(option) * each

    return min(options, key=price)


def _equal_blocks(columns: int, rows: int) -> list[ColumnBlock]:
    count = -(-columns // -(-columns * rows // DEGREE))
    lines = min(DEGREE // count, _MOST_STRIDE) // rows
    return [ColumnBlock(start, min(count, columns - start), rows, lines) for start in range(0, columns, count)]


def _blocks_of_weights(columns: int) -> list[ColumnBlock]:
    """Of a power of two of columns; padded if that wastes a quarter at most."""
    out, start = [], 0
    while start < columns:
        left = min(columns - start, DEGREE)
        padded = 1 << (left - 1).bit_length()
        if 4 * left < 3 * padded and padded > DEGREE >> MOST_MERGES:
            padded //= 2
        out.append(_equal_blocks(min(left, padded), min(DEGREE // padded, 1 << MOST_MERGES))[0])
        out[-1] = replace(out[-1], start=start)
        start += out[-1].count
    return out


def linear_cost(batch: int, rows: int, inner: int, columns: int, width: int = 8, once: bool = False) -> tuple[int, int]:
    """Bytes of the set-up and of a reply, for A [batch, rows, inner] and W [batch, inner, columns]. `once`: W is for
    this product alone."""
    setup = back = 0
    for block in blocks((batch, inner, columns), rows if once else None):
        setup += block.ciphertexts(batch, inner) * CIPHERTEXT_BYTES
        for products in block.replies(batch, rows):
            back += reply_bytes(1 << 8 * width, block.count * sum(map(len, products)))
    return setup, back


def _noise(block: ColumnBlock, inner: int, width: int) -> int:
    product = block.lines * inner * (LARGEST_ERROR + 1) << (8 * width - 1)
    return product // lattice().primes[-1] + 1 + block.rows * (ROUNDING + SWITCHING)


class LinearServer:
    """The party that knows W, int64 of this shape. Holds no copy of it. `rows`: of A, if W is for one product alone."""

    def __init__(self, key: LatticeKey, shape: Shape, width: int = 8, rows: int | None = None) -> None:
        self.key, self.shape, self.width = key, shape, width
        self._blocks = blocks(shape, rows)
        for block in self._blocks:
            flood_bits(1 << 8 * width, _noise(block, shape[1], width))

    def setup(self, weights: Tensor) -> bytes:
        """W encrypted, for LinearClient: the first number of linear_cost."""
        weights, ring = _whole_shape(weights, "weights"), lattice()
        if weights.shape != self.shape:
            raise HomomorphicError(f"weights {list(weights.shape)}: are declared as {list(self.shape)}")
        rows = weights.flatten(0, 1).numpy().view(np.uint64) & _mask(self.width)
        parts = []
        for block in self._blocks:
            last = block.rows * (block.lines - 1)  # so that no line's place is below 0
            for start in range(0, len(rows), block.rows):
                some = rows[start : start + block.rows, block.start : block.start + block.count]
                grid = np.zeros((block.count, block.stride), dtype=np.uint64)
                grid[:, last : last + len(some)] = some.T
                message = np.zeros(DEGREE, dtype=np.uint64)
                message[: grid.size] = grid.reshape(-1)
                parts.append(self.key.encrypted(scaled(message, 1 << 8 * self.width, ring.primes)))
        return b"".join(parts)

    def shares(self, data: Buffer, rows: int) -> Tensor:
        """C0 of a reply to A with so many rows, int64 [batch, rows, columns]; bits above `width` bytes are 0. Errors:
        HomomorphicError."""
        batch, _, columns = self.shape
        cut = [(block, products) for block in self._blocks for products in block.replies(batch, rows)]
        places = [block.places(products) for block, products in cut]
        sizes = [reply_bytes(1 << 8 * self.width, len(some)) for some in places]
        if len(data) != sum(sizes):
            raise HomomorphicError(f"reply: {len(data)} bytes instead of {sum(sizes)}; both need one program")
        out, at, view = np.zeros((batch * rows, columns), dtype=np.uint64), 0, memoryview(data)
        for (block, products), some, size in zip(cut, places, sizes, strict=True):
            numbers = opened(self.key, view[at : at + size], 1 << 8 * self.width, some, len(some))
            part = out[products[0].start : products[-1].stop, block.start : block.start + block.count]
            part[:] = numbers.reshape(block.count, -1).T
            at += size
        return torch.from_numpy(out.view(np.int64)).view(batch, rows, columns)


class LinearClient:
    """The party that knows A. Holds the set-up as it came, and reads a block of it at a time.

    shape   batch (1 without), rows and columns of W
    rows    of A, if W is for one product alone
    Errors: HomomorphicError for a set-up that is none, here or in a reply.
    """

    def __init__(
        self, public: LatticePublic, setup: Buffer, shape: Shape, width: int = 8, rows: int | None = None
    ) -> None:
        self.public, self.setup, self.shape, self.width = public, setup, shape, width
        batch, inner, _ = shape
        self._blocks = blocks(shape, rows)
        expected = sum(block.ciphertexts(batch, inner) for block in self._blocks) * CIPHERTEXT_BYTES
        if len(setup) != expected:
            raise HomomorphicError(
                f"encrypted weights: {len(setup)} bytes instead of {expected}; both need one program"
            )
        for block in self._blocks:
            flood_bits(1 << 8 * width, _noise(block, inner, width))

    def reply(self, a: Tensor, r: Tensor) -> bytes:
        """A W - R, encrypted: the second number of linear_cost. The client's share is R, uniform and used once.

        a   int64 [rows, inner] or [batch, rows, inner];  r   int64, of the product's shape
        """
        (batch, inner, columns), a, r = self.shape, _whole_shape(a, "A"), _whole_shape(r, "R")
        if a.shape[::2] != (batch, inner) or r.shape != (batch, a.shape[1], columns):
            raise HomomorphicError(f"A {list(a.shape)}, R {list(r.shape)}: do not fit weights {list(self.shape)}")
        numbers, rows = _signed(a, self.width).flatten(0, 1).numpy(), a.shape[1]
        masks = (np.uint64(0) - r.flatten(0, 1).numpy().view(np.uint64)) & _mask(self.width)
        parts, at = [], 0
        for block in self._blocks:
            noise, count = _noise(block, inner, self.width), block.ciphertexts(batch, inner)
            weights = unsealed(self.setup, at, count, "encrypted weights")
            for products in block.replies(batch, rows):
                doublings = (len(products) - 1).bit_length()
                each: list[Words] = []
                for matrix, some in groupby(products, lambda product: product.start // rows):
                    lines = [numbers[product.start : product.stop] for product in some]
                    each.extend(self._products(weights, block, lines, matrix, doublings))
                places, message = block.places(products), np.zeros(DEGREE, dtype=np.uint64)
                some = masks[products[0].start : products[-1].stop, block.start : block.start + block.count]
                message[places] = some.T.reshape(-1)
                merged = self.public.merging.merged(each)
                parts.append(reply(self.public, merged, message, 1 << 8 * self.width, noise, places))
            at += count
            del weights  # before the next block's
        return b"".join(parts)

    def _products(
        self, weights: Words, block: ColumnBlock, products: list[NDArray[np.int64]], matrix: int, doublings: int
    ) -> Words:
        """Each some lines of A times a matrix of the batch, divided by 2^doublings: values [n, 2, data primes,
        degree]."""
        ring, inner, start = lattice(), self.shape[1], matrix * self.shape[1]
        first, last = start // block.rows, -(-(start + inner) // block.rows)
        rows = np.zeros((len(products), block.lines, (last - first) * block.rows), dtype=np.int64)
        for row, lines in zip(rows, products, strict=True):
            row[: len(lines), start - first * block.rows :][:, :inner] = lines
        factors = np.zeros((len(products), last - first, _group(block)), dtype=np.int64)
        by_ciphertext = rows.reshape(len(products), block.lines, -1, block.rows).swapaxes(1, 2)
        factors[:, :, : block.stride] = by_ciphertext.reshape(len(products), last - first, -1)
        residues = reduced_signed(factors, ring.primes)
        residues = [multiplied(x, pow(2, -doublings, q), q) for x, q in zip(residues, ring.primes, strict=True)]
        return ring.all.divided(ring.all.row_products(weights, first, np.stack(residues)))


def _group(block: ColumnBlock) -> int:
    """Coefficients of a product's lines, as many as polynomials.py computes."""
    return 1 << (block.stride - 1).bit_length()


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
