"""CrypTen's tuples, made by our dealer: one description, as for every correlation, for the dealer and each party.

additive  a, b uniform, c = op(a, b)        square  r uniform, r r
binary    a, b uniform bits, c = a & b      bits    r a uniform bit, shared by exclusive or and additively
wraps     r uniform, and how often the sum of its shares leaves the ring (CrypTen's count)
weight    the mask of a weight, known to its owner
What our own operations on CrypTen's tensors take (calls.py) is asked for in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..beaver.recipes import MaskProduct
from ..beaver.values import MaskTerm
from .source import NPartyCount, NPartyDealer, NPartySource

Sizes = tuple[Annotated[int, Field(ge=0, lt=2**31)], ...]
Operation = Literal["mul", "matmul", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"]


class Request(BaseModel):
    """What is asked of the dealer. `options`: of a convolution. `bits`: of a rescale. `owner`: of a weight.

    `weight`: the number of the request that its mask came with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["additive", "square", "binary", "wraps", "bits", "weight", "linear", "rescale"]
    sizes: tuple[Sizes, ...]
    op: Operation = "mul"
    options: dict[Literal["stride", "padding", "dilation", "groups", "output_padding"], int | tuple[int, ...]] = {}
    bits: Annotated[int, Field(ge=1, le=60)] = 16
    owner: Annotated[int, Field(ge=0, lt=64)] = 0
    weight: Annotated[int, Field(ge=0, lt=2**62)] = 0


def make_tuple(source: NPartySource, request: Request, label: str) -> tuple[Tensor, ...]:
    """A party's shares; the values at the dealer, which sends the corrections."""
    size = request.sizes[0]
    if request.kind == "weight":
        return (source.known(f"{label}/b", size, request.owner),)
    if request.kind == "additive":
        a, b = (source.uniform(f"{label}/{i}", shape) for i, shape in enumerate(request.sizes))
        shape = tuple(_product(request, *(torch.empty(s, device="meta") for s in request.sizes)).shape)
        return a, b, source.derived(f"{label}/c", shape, TupleProduct(request, a, b))
    if request.kind == "binary":
        a, b = (source.uniform_bits(f"{label}/{i}", shape) for i, shape in enumerate(request.sizes))
        shape = tuple(torch.broadcast_shapes(*request.sizes))
        return a, b, source.derived_bits(f"{label}/c", shape, BitProducts(a, b))
    if request.kind == "bits":
        bits = source.uniform_bits(f"{label}/r", size) & 1
        return source.derived(f"{label}/a", size, BitsAsNumbers(bits)), bits
    r = source.uniform(f"{label}/r", size)
    if request.kind == "square":
        return r, source.derived(f"{label}/s", size, MaskProduct(MaskTerm(r), MaskTerm(r)))
    return r, source.derived(f"{label}/w", size, Wraps(source, f"{label}/r", size))


def tuple_layout(request: Request) -> tuple[int, ...]:
    """Bytes of the corrections. Errors: of any kind, for sizes that do not fit the operation."""
    count = NPartyCount()
    make_tuple(count, request, "")
    return tuple(count.layout)


def _product(request: Request, a: Tensor, b: Tensor) -> Tensor:
    function: Callable[..., Any] = getattr(torch, request.op)
    return function(a, b, **request.options)


@dataclass(frozen=True)
class TupleProduct:
    request: Request
    left: Tensor
    right: Tensor

    def value(self) -> Tensor:
        return _product(self.request, self.left, self.right)


@dataclass(frozen=True)
class BitProducts:
    left: Tensor
    right: Tensor

    def value(self) -> Tensor:
        return self.left & self.right


@dataclass(frozen=True)
class BitsAsNumbers:
    """Bits that are shared by exclusive or, as numbers."""

    bits: Tensor

    def value(self) -> Tensor:
        return self.bits


@dataclass(frozen=True)
class Wraps:
    """Overflows less underflows of adding the shares up in order, as `crypten.common.util.count_wraps` has it."""

    source: NPartySource
    label: str
    size: Sizes

    def value(self) -> Tensor:
        assert isinstance(self.source, NPartyDealer)
        shares = [stream.integers(self.label, self.size) for stream in self.source.streams]
        count, total = torch.zeros_like(shares[0]), shares[0]
        for share in shares[1:]:
            following = total + share
            count -= ((total < 0) & (share < 0) & (following > 0)).long()
            count += ((total > 0) & (share > 0) & (following < 0)).long()
            total = following
        return count
