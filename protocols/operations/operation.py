"""An operation: all that holds of it, whatever protocol computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Attributes = Mapping[str, Any]
Reference = Callable[..., Tensor]
V = TypeVar("V")
W = TypeVar("W")

SOURCE, LOCAL, PRIVATE, SHARED, RESULT = "source", "local", "private", "shared", "result"


@dataclass
class Bits:
    """What is known of an instruction when low bits are counted, from its readers backwards (models/program/widths.py).

    width      low bits of the result that its readers use
    result     bits that the result's magnitude takes, sign and headroom included
    argument   the same of its first argument
    compared   bits of the widest comparison that reads the result
    costly     whether bits of its first argument cost much: a dealer makes many numbers for each of its elements, or
               it is a product of larger matrices, all as wide as that
    opened     whether a reader opens the result elementwise
    free       whether no bit of its first argument costs anything: it is made of products with public weights

    An operation may set `width`, `ring` and `early` (its attributes), and `compares`: the bits of a comparison of its
    argument.
    """

    width: int
    result: int = 64
    argument: int = 64
    compared: int = 0
    costly: bool = False
    opened: bool = False
    free: bool = False
    ring: int = 64
    early: bool = False
    compares: int = 0


def whole_bytes(bits: int) -> int:
    return 8 * ((min(max(bits, 1), 64) + 7) // 8)


@dataclass(frozen=True)
class Operation:
    """References are functions of the arguments' values, and of the attributes by name.

    kind         source, local (linear, without messages), private (by a value that one party knows), shared, result
    compute      the reference: the integers modulo 2^64 that every protocol computes, wraps included
    real         the same on real numbers, where that is another function: for calibration
    by_chance    whether `compute` also takes `chance(top, like)`: integers below `top`, as parties leave them to chance
    shared       how many of its arguments, from the first on, are shared values (None: all)
    signs        of a sum of its arguments with these signs: such a sum keeps the openings of bits
    rearranges   whether its result's elements are elements of its arguments, or 0
    costly       whether a dealer makes many numbers for each element of its result, all as wide as that
    opened       whether protocols open its arguments elementwise, so that a rescale of these is free
    scales       the rule by which fractional bits of its result follow from its arguments' (models/program/scaling/)
    powers       of rule "product": how often each argument is a factor
    check        what is wrong with the attributes, if anything
    demand       the low bits of its arguments that the low bits of its result depend on
    limit        given a result's width: the magnitude, in units, from which its argument is read wrong
    """

    name: str
    kind: str
    compute: Reference
    real: Reference | None = None
    by_chance: bool = False
    shared: int | None = None
    signs: tuple[int, ...] = ()
    rearranges: bool = False
    costly: bool = False
    opened: bool = False
    scales: str = "aligned"
    powers: tuple[int, ...] = (1, 1)
    check: Callable[[Attributes], str] = lambda attributes: ""
    demand: Callable[[Bits, Attributes], int] = lambda bits, attributes: bits.width
    limit: Callable[[int, Attributes], float] | None = None

    def on_reals(self, *args: Tensor, **attributes: Any) -> Tensor:
        return (self.real or self.compute)(*args, **attributes)

    def sharing(self, args: Sequence[V], share: Callable[[V], W]) -> list[V | W]:
        """The arguments, with `share(x)` in place of each x that is read as a shared value."""
        count = len(args) if self.shared is None else self.shared
        return [*map(share, args[:count]), *args[count:]]

    def problem(self, attributes: Attributes) -> str:
        """Why an instruction with these attributes must not be run; empty if it may."""
        # Shifts stay within 64 bits: a peer's program could ask for numbers that fill the memory.
        bits, ring = numbers = attributes.get("bits", 0), attributes.get("ring", 64)
        if not all(type(n) is int for n in numbers) or not 0 <= bits <= ring <= 64:
            return f"{self.name} of a number of bits that no ring has"
        return self.check(attributes)
