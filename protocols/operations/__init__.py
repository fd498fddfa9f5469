"""The operations of a Program: what a protocol may be asked to compute on secrets. Found by scanning this folder.

To add one, add a file with an `Operation` (operation.py). A protocol states which it `offers`; compilation checks that
against what a program needs.

sources    client(name)                  a tensor of the data owner          weight(name)  of the model owner
           constant(name)                public
           input(name)                   shared: each party is sent an additive share, the owner takes no part
           state(name)                   shared: [..., L, d], the rows that earlier runs kept, then zeros
local      add, sub                      shared, private or public arguments, equal scales, broadcasting
           neg; shift(bits)              times 2^bits
           mul_public                    times a public integer tensor (second argument)
           sum(dims, keepdim), reshape(sizes), permute(dims), expand(sizes), slice(dim, start, stop, step),
           index(dim, indices), concat(dim), unfold(kernel, stride, padding)
private    linear                        [..., K] times the server's [K, N], or [..., n, K] times its [..., K, N]
           mul_private                   elementwise, by a private value of either party
shared     mul, matmul                   shared by shared
           polynomial(coefficients)      sum c_k x^k, integer coefficients, ascending
           rescale(bits, ring)           divide by 2^bits; |x| < 2^(ring-2), opened modulo 2^ring
           less(threshold, bits)         1 where x < threshold, |x - threshold| < 2^(bits-1)
           sides(low, high, bits)        x [..., n] -> [..., 2 n]: 1 where low <= x < high; 1 where x >= high
           lookup(start, bits, low, drop)   of a public table (second argument), the row of x's cell at x's place in it
           reached(start, bits, low)        x [..., n] -> [..., cells]: 1 where any lies in a cell or above;
                                           of those at which a public second argument is not 0
           exp(start, ..., rate, fraction)  e^x by a public table (second argument)
           fourier(bits, fraction, periods) of public coefficients (second argument), the series with so many periods
                                           in 2^bits
           keep(name)                    x [..., n, d] itself; its rows are added to that state, for later runs
result     reveal(to, bits, ring)        x / 2^bits, of x modulo 2^ring (without bits: x), to the client alone; to
                                         "owner": each party keeps a fresh share for it
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from ..scanning import modules

if TYPE_CHECKING:
    from .operation import Operation

OWNER = "owner"  # of the data, who takes no part in the protocol
RECIPIENTS = frozenset({"client", OWNER})  # of results


@cache
def operations() -> Mapping[str, Operation]:
    """All operations by name. Their files import torch, so none is read before somebody asks."""
    from .operation import Operation

    by_name: dict[str, Operation] = {}
    for module in modules(__name__):
        for item in vars(module).values():
            if isinstance(item, Operation) and by_name.setdefault(item.name, item) is not item:
                raise RuntimeError(f"operation {item.name}: is defined twice, in {module.__name__} again; keep one")
    return by_name


@cache
def of_kind(*kinds: str) -> frozenset[str]:
    """The names of the operations of these kinds: source, local, private, shared, result."""
    return frozenset(name for name, item in operations().items() if item.kind in kinds)
