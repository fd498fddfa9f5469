"""Kernels for GPUs, in Triton: what torch would order in dozens of small operations, as one. They give the bits of the
torch functions that carry their names, and take what these take.

On a GPU, Python's orders are what a session waits for. Comparisons give most of them: bit planes, and gates on these.
Triton comes with torch for CUDA; its interpreter runs the kernels on a processor (tests/protocols/test_fused.py).
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# A kernel is Triton's language in Python's words: constants are of a type of their own, loops of constants are none.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SPAN = 256  # words of a program of `compare_blocks` and `join`
WORDS = 8  # of a program of `to_planes`
BLOCK = 4  # planes of a block (beaver/compare.py)


@triton.jit
def _to_planes(values, out, count, words, DROP: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr):
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    lane = tl.arange(0, 64).to(tl.int64)
    at = word[:, None] * 64 + lane[None, :]
    value = tl.load(values + at, mask=at < count, other=0) >> DROP
    for i in tl.static_range(BITS):
        plane = tl.sum(((value >> i) & 1) << lane[None, :], axis=1)
        tl.store(out + i * words + word, plane, mask=word < words)


def to_planes(values: Tensor, bits: int, drop: int = 0) -> Tensor:
    values, words = values.contiguous(), (values.numel() + 63) // 64
    out = values.new_empty(bits, words)
    with torch.cuda.device_of(values):
        _to_planes[(triton.cdiv(words, WORDS),)](values, out, values.numel(), words, drop, bits, WORDS)
    return out


@triton.jit
def _from_plane(plane, out, count, SPAN: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    word = tl.load(plane + at // 64, mask=at < count, other=0)
    tl.store(out + at, (word >> (at % 64)) & 1, mask=at < count)


def from_plane(plane: Tensor, count: int) -> Tensor:
    out = plane.new_empty(count)
    with torch.cuda.device_of(plane):
        _from_plane[(triton.cdiv(count, 4 * SPAN),)](plane.contiguous(), out, count, 4 * SPAN)
    return out


@triton.jit
def _compare_blocks(
    planes, products, wires, top, number, words,
    BITS: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """d is added up from its lowest plane on. Of a block, with n = ~d: equal is the exclusive or over all subsets S of
    products[S] and the n outside of S; greater that over each bit i, and the subsets S of i and bits above it, of n_i,
    products[S] and the n above i and outside of S."""
    at = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = at < words
    number = tl.cast(number, tl.int64)
    n0 = tl.full([SPAN], -1, tl.int64)
    n1 = n0
    n2 = n0
    n3 = n0
    carry = tl.zeros([SPAN], tl.int64)
    for i in tl.static_range(BITS):
        plane = tl.load(planes + i * words + at, mask=inside, other=0)
        added = -((number >> i) & 1)
        total = plane ^ added ^ carry
        carry = (plane & added) | (carry & (plane | added))
        if i == BITS - 1:
            tl.store(top + at, total, mask=inside)
        elif i % BLOCK == 0:
            n0 = ~total
            n1 = tl.full([SPAN], -1, tl.int64)  # of planes that there are not
            n2 = n1
            n3 = n1
        elif i % BLOCK == 1:
            n1 = ~total
        elif i % BLOCK == 2:
            n2 = ~total
        else:
            n3 = ~total
        if i < BITS - 1 and (i % BLOCK == BLOCK - 1 or i == BITS - 2):
            block = i // BLOCK
            equal = tl.zeros([SPAN], tl.int64)
            greater = tl.zeros([SPAN], tl.int64)
            for subset in tl.static_range(1 << BLOCK):
                product = tl.load(products + ((block << BLOCK) + subset) * words + at, mask=inside, other=0)
                outside = product
                if subset == 1 << 3:
                    greater ^= product & n3
                if not (subset >> 3) & 1:
                    outside &= n3
                if (subset & 3) == 0 and (subset >> 2) & 1:
                    greater ^= outside & n2
                if not (subset >> 2) & 1:
                    outside &= n2
                if (subset & 1) == 0 and (subset >> 1) & 1:
                    greater ^= outside & n1
                if not (subset >> 1) & 1:
                    outside &= n1
                if subset & 1:
                    greater ^= outside & n0
                else:
                    outside &= n0
                equal ^= outside
            tl.store(wires + 2 * block * words + at, greater, mask=inside)
            tl.store(wires + (2 * block + 1) * words + at, equal, mask=inside)


def compare_blocks(planes: Tensor, number: int, products: Tensor) -> tuple[Tensor, Tensor]:
    bits, words = planes.shape
    wires, top = products.new_empty(2 * len(products), words), products.new_empty(words)
    number = (number + (1 << 63)) % (1 << 64) - (1 << 63)
    with torch.cuda.device_of(planes):
        _compare_blocks[(triton.cdiv(words, SPAN),)](
            planes.contiguous(), products.contiguous(), wires, top, number, words, bits, BLOCK, SPAN
        )
    return wires, top


@triton.jit
def _join(
    rows, factors, shares, opened, out, public, words,
    MOST: tl.constexpr, N: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Of each output's products, the exclusive or over all subsets S of rows[S] and the factors outside of S."""
    output = tl.program_id(1)
    at = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = at < words
    total = tl.zeros([SPAN], tl.int64)
    for product in range(MOST):
        first = output * MOST + product
        for subset in range(1 << N):
            row = tl.zeros([SPAN], tl.int64) + tl.load(rows + (first << N) + subset)
            term = tl.load(shares + (row - 2) * words + at, mask=inside & (row > 1), other=0)
            term ^= tl.where(row == 1, tl.cast(public, tl.int64), 0)
            for i in tl.static_range(N):
                factor = tl.zeros([SPAN], tl.int64) + tl.load(factors + first * N + i)
                outside = inside & (factor > 0) & (((factor * 0 + subset) >> i) & 1 == 0)
                term &= tl.load(opened + (factor - 1) * words + at, mask=outside, other=-1)
            total ^= term
    tl.store(out + output * words + at, total, mask=inside)


def join(
    rows: Tensor, factors: Tensor, masks: Tensor, products: Tensor, wires: Tensor, opened: Tensor, leader: bool
) -> Tensor:
    outputs, most, n = factors.shape
    words = opened.shape[-1]
    out, shares = opened.new_empty(outputs, words), torch.cat([masks, products, wires])
    with torch.cuda.device_of(opened):
        _join[(triton.cdiv(words, SPAN), outputs)](
            rows, factors, shares, opened.contiguous(), out, -1 if leader else 0, words, most, n, SPAN
        )
    return out
