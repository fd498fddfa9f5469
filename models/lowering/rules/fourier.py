"""Fourier transforms: products with the matrices of cosines and sines. A complex value has a last dimension of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand
from . import rule
from .products import product


@rule("fft_fftn", "fft_fft2")
def fftn(
    lowering: Lowering,
    x: Operand,
    sizes: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    norm: str | None = None,
) -> Node:
    """Of a real value, over these dimensions (default: all, and the last two)."""
    b, real = lowering.builder, lowering.as_node(x)
    count = len(real.shape)
    wanted = [d % count for d in (range(count) if dims is None else dims)]
    if sizes is not None and list(sizes) != [real.shape[d] for d in wanted]:
        raise lowering.fail("a Fourier transform of another size has no rule; pad or cut the input before it")
    imaginary: Node | None = None
    for dim in reversed(wanted):
        cosines, sines = (_times(lowering, real, dim, f, norm) for f in (torch.cos, torch.sin))
        if imaginary is None:
            real, imaginary = cosines, b.neg(sines)
        else:  # (r + i m)(C - i S)
            others = [_times(lowering, imaginary, dim, f, norm) for f in (torch.sin, torch.cos)]
            real, imaginary = b.add(cosines, others[0]), b.sub(others[1], sines)
    assert imaginary is not None
    return b.concat([b.reshape(part, (*part.shape, 1)) for part in (real, imaginary)], count)


@rule("fft_fft")
def fft(lowering: Lowering, x: Operand, size: int | None = None, dim: int = -1, norm: str | None = None) -> Node:
    return fftn(lowering, x, None if size is None else [size], [dim], norm)


@rule("view_as_real")
def view_as_real(lowering: Lowering, x: Operand) -> Node:
    return lowering.as_node(x)


@rule("real")
def real_part(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.select(lowering.as_node(x), -1, 0)


@rule("imag")
def imaginary_part(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.select(lowering.as_node(x), -1, 1)


def _times(lowering: Lowering, x: Node, dim: int, function: Callable[[Tensor], Tensor], norm: str | None) -> Node:
    """x times f(2 pi j k / N) along a dimension."""
    b, n = lowering.builder, x.shape[dim]
    angles = torch.outer(torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)) % n
    scale = {"ortho": 1 / math.sqrt(n), "forward": 1 / n}.get(norm or "", 1.0)
    matrix = b.constant(function(angles * (2 * math.pi / n)) * scale)
    return b.transpose(product(lowering, b.transpose(x, dim, -1), matrix), dim, -1)
