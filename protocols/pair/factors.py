"""Products of shared numbers, which cost less the fewer bits these have.

A number from 1 - 2^k to 0, shared modulo 2^64, is X - 2^k c: X is the sum of what the parties take for their own,
signed numbers of k bits congruent to their shares, and c a bit, which both share by exclusive or (`Factor.parts`). So

    x y = X Y - 2^l d X - 2^k c y       y = Y - 2^l d;  d = 0 and Y = y, if y has all bits
    x^2 = X^2 - 2^k c (2 X - 2^k)

X Y is the sum of both crossed products and of what each party has: integers of k + l bits, where others have twice the
ring's. All others are bits times numbers, by transfers; and so is a product with a bit.

Who learns what: nothing but what steps.py and crossed products say.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ring import sign_extend
from ..rounds import together
from ..wire import wire_bytes
from .steps import One, Pair


@dataclass(frozen=True)
class Factor:
    """This party's share of a number of `bits`: 1: it is 0 or 1; 64: any; of others: at most 0, above -2^bits."""

    share: Tensor
    bits: int = 64

    def parts(self) -> tuple[Tensor, Tensor]:
        """This party's own number, and its share of the bit that both lack."""
        own = -sign_extend(-self.share, self.bits)
        return own, own - self.share >> self.bits & 1


def product(pair: Pair, x: Factor, y: Factor, width: int) -> One:
    """This party's share of x y modulo 2^(8 width), of one shape."""
    if 1 in (x.bits, y.bits):
        bit, number = (x, y) if x.bits == 1 else (y, x)
        return (yield from pair.times_bits(bit.share & 1, number.share, width))
    own_x, own_y = sign_extend(x.share, 8 * width), sign_extend(y.share, 8 * width)
    less: list[tuple[Tensor, Tensor, int]] = []
    if x.bits < 8 * width:
        own_x, bit = x.parts()
        number = y.share if x is not y else 2 * own_x - (1 << x.bits if pair.leader else 0)
        less.append((bit, number, x.bits))
    if x is y:
        own_y = own_x
    elif y.bits < 8 * width:
        own_y, bit = y.parts()
        less.append((bit, own_x, y.bits))
    if x is y:
        clients, servers = 2 * own_x[None], own_x[None]
    else:
        clients, servers = torch.stack([own_x, own_y]), torch.stack([own_y, own_x])
    bits = min(x.bits, 8 * width) + min(y.bits, 8 * width)
    lacking = (pair.times_bits(bit, number, wire_bytes(8 * width - zeros)) for bit, number, zeros in less)
    crossed, *parts = yield from together(pair.multiplied(clients[None], servers, width, bits), *lacking)
    share = own_x * own_y + crossed[0]
    for (_, _, zeros), part in zip(less, parts, strict=True):
        share = share - (part << zeros)
    return share


def powers(pair: Pair, key: tuple[object, ...], x: Factor, exponent: int, width: int) -> One:
    """x^exponent. `key`: of x."""
    if exponent == 1:
        return x.share
        yield []

    def step() -> One:
        factors = []
        for part in (exponent // 2, exponent - exponent // 2):
            factors.append(x if part == 1 else Factor((yield from powers(pair, key, x, part, width))))
        return (yield from product(pair, factors[0], factors[exponent % 2], width))

    return (yield from pair.once((*key, exponent, width), step))
