"""The protocol's engines: the offline phase (any role) and the online phase (server, client)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..local import LOCAL
from ..ring import Ring
from ..rounds import Step, Swap, together
from .context import Offline, Online, PrivateValue, Public
from .primitive import Cost, Primitive, primitives
from .source import CountingSource, Source
from .values import Mask, MaskTerm, Opened, Shape, Share, Tape, Trace

_A_ROUND = [Swap(None, None)]  # of a price, whose walk counts rounds: bytes are declared
AFFINE = ("add", "sub", "neg")  # these keep the opening of bits, so that products of sums of bits stay free


class OfflineEngine:
    """Fills a party's tape (or, as the dealer, sends corrections) by walking the program once.

    `weights`: per weight, B at the dealer, D at the client, nothing at the server. "client" is P1's seat here, whoever
    sits on it.
    """

    def __init__(self, source: Source, ring: Ring, weights: Mapping[str, Tensor]) -> None:
        self.tape = Tape()
        self.offline = Offline(source, self.tape, ring)
        self.weights = weights
        self.primitives = primitives()

    def execute(self, key: str, op: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]) -> Step:
        return self.prepare(key, op, shape, width, args, attributes)
        yield []

    def prepare(self, key: str, op: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]) -> Any:
        if op == "client":
            return PrivateValue(key, "client", shape, width)
        if op == "weight":
            known = self.weights.get(attributes["name"])
            role = self.offline.role
            return PrivateValue(
                key,
                "server",
                shape,
                width,
                masked=known if role == "client" else None,
                mask=known if role == "dealer" else None,
            )
        if op == "constant":
            return Public(torch.empty(shape, device="meta"))
        if op in self.primitives:
            primitive = self.primitives[op]
            self.price(primitive, key, shape, width, args, attributes)
            shared = [_trace(x) if i == 0 or op in ("mul", "matmul") else x for i, x in enumerate(args)]
            return primitive.correlate(self.offline, key, shape, width, *shared, **attributes)
        trace = Trace(key, shape, width)
        if op in AFFINE:
            trace.mask = _bit_masks(args, shape)
        return trace

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]
    ) -> None:
        """Hook of the pricing engine."""


class PricingEngine(OfflineEngine):
    """Prices a program: declared costs per instruction, with the openings that instructions share accounted once."""

    def __init__(self, ring: Ring, weights: Mapping[str, Tensor]) -> None:
        super().__init__(CountingSource(), ring, weights)
        self.costs: dict[str, Cost] = {}
        self.opened: set[tuple[str, str]] = set()
        self.under_way: set[tuple[str, str]] = set()

    @property
    def counted(self) -> int:
        """Bytes of corrections that the correlations really take (the declared ones must equal it)."""
        source = self.offline.source
        assert isinstance(source, CountingSource)
        return sum(source.layout)

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]
    ) -> None:
        shared = [_trace(x) if i == 0 or primitive.op in ("mul", "matmul") else x for i, x in enumerate(args)]
        self.costs[key] = primitive.cost(shape, width, *shared, **attributes)

    def execute(self, key: str, op: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]) -> Step:
        openings = self.openings(op, args)
        result = self.prepare(key, op, shape, width, args, attributes)
        steps = list(self.costs[key].steps) if key in self.costs else []
        first = [opening for opening in openings if opening not in self.opened]
        if openings:
            if first and steps:
                steps.pop(0)
            yield from together(*(self._open(opening) for opening in openings))
        for _ in steps:
            yield _A_ROUND
        return result

    def openings(self, op: str, args: list[Any]) -> list[tuple[str, str]]:
        """What an instruction opens of its arguments, unless others have: (value, kind of opening)."""
        return openings_of(op, args)

    def _open(self, opening: tuple[str, str]) -> Step:
        """As online: the first reader of a value opens it, a round; one that comes meanwhile waits for that."""
        if opening not in self.opened:
            self.opened.add(opening)
            self.under_way.add(opening)
            yield _A_ROUND
            self.under_way.discard(opening)
        while opening in self.under_way:
            yield []


def openings_of(op: str, args: list[Any]) -> list[tuple[str, str]]:
    """What an instruction opens of its arguments, unless others have: (value, kind of opening)."""
    if op in ("mul", "polynomial", "less"):
        opened = ("scaled", "bit") if op == "mul" else ("scaled",)
        found = [(_trace(x).key, "plain") for x in args if not (_trace(x).mask and _trace(x).mask.kind in opened)]
    elif op == "matmul":
        found = [(_trace(x).key, "plain") for x in args]
    elif op in ("linear", "mul_private"):
        x, private = args
        if private.owner == "server":
            found = [(x.key, "half of the client")]
        else:
            found = [(x.key, "half of the server"), (private.key, "private")]
    else:
        found = []
    return list(dict.fromkeys(found))


class OnlineEngine:
    """One party's online phase. `values`: the party's own sources and its shares of inputs by name, encoded;
    `constants`: public ones."""

    def __init__(
        self, role: str, tape: Tape, ring: Ring, values: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> None:
        self.online = Online(role, tape, ring)
        self.values, self.constants = values, constants
        self.primitives = primitives()

    def execute(self, key: str, op: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]) -> Step:
        role = self.online.role
        if op in ("client", "weight"):
            owner = "client" if op == "client" else "server"
            return PrivateValue(
                key, owner, shape, width, tensor=self.values[attributes["name"]] if owner == role else None
            )
        if op == "constant":
            return Public(self.constants[attributes["name"]])
        if op == "input":
            return Share(key, self.values[attributes["name"]], width)
        if op in self.primitives:
            shared = [self.share(x) if i == 0 or op in ("mul", "matmul") else x for i, x in enumerate(args)]
            return (yield from self.primitives[op].run(self.online, key, width, *shared, **attributes))
        if op in ("add", "sub"):
            return self._combine(key, op, shape, width, args)
        if op == "mul_public":
            return Share(key, self.share(args[0]).tensor * args[1].tensor, width)
        result = Share(key, LOCAL[op](*(self.share(x).tensor for x in args), **attributes), width)
        if op == "neg":
            result.opened = _bits_opened(self.online, op, args, shape)
        return result

    def share(self, value: Any) -> Share:
        """This party's share of any value: the owner of a private value holds all of it."""
        if isinstance(value, Share):
            return value
        if isinstance(value, Public):
            tensor = value.tensor if self.online.leader else torch.zeros_like(value.tensor)
            return Share("public", tensor)
        if value.shared is None:
            tensor = torch.zeros(value.shape, dtype=torch.int64) if value.tensor is None else value.tensor
            value.shared = Share(value.key, tensor, value.width)
        return value.shared

    def _combine(self, key: str, op: str, shape: Shape, width: int, args: list[Any]) -> Share:
        x, y = args
        if self._absent(y) and isinstance(x, Share) and x.shape == shape:
            tensor = x.tensor  # the other argument is another party's: nothing to add here
        else:
            left, right = self.share(x).tensor, self.share(y).tensor
            tensor = left + right if op == "add" else left - right
        return Share(key, tensor, width, opened=_bits_opened(self.online, op, args, shape))

    def _absent(self, value: Any) -> bool:
        if isinstance(value, Public):
            return not self.online.leader
        return isinstance(value, PrivateValue) and value.tensor is None


def _trace(value: Any) -> Any:
    """A private value used as a shared one; always the same trace, so that it is opened once."""
    if not isinstance(value, PrivateValue):
        return value
    value.shared = value.shared or Trace(value.key, value.shape, value.width)
    return value.shared


def _keeps_bits(args: list[Any], shape: Shape, kind: Any) -> bool:
    """Whether a sum's arguments are bits of the result's shape, or public numbers."""
    bits = [x for x in args if not isinstance(x, Public)]
    return bool(bits) and all(kind(x) and tuple(x.shape) == shape for x in bits)


def _bit_masks(args: list[Any], shape: Shape) -> Mask | None:
    def is_bit(x: Any) -> bool:
        return isinstance(x, Trace) and x.mask is not None and x.mask.kind == "bit"

    if not _keeps_bits(args, shape, is_bit):
        return None
    terms = tuple(term for x in args if isinstance(x, Trace) and x.mask for term in x.mask.terms)
    return Mask(tuple(MaskTerm(term.value) for term in terms), "bit")


def _bits_opened(online: Online, op: str, args: list[Any], shape: Shape) -> Opened | None:
    def is_bit(x: Any) -> bool:
        return isinstance(x, Share) and x.opened is not None and x.opened.kind == "bit"

    if not _keeps_bits(args, shape, is_bit):
        return None
    signs = {"add": (1, 1), "sub": (1, -1), "neg": (-1,)}[op]
    public = torch.zeros(shape, dtype=torch.int64)
    coefficients: list[Tensor | None] = []
    terms: list[MaskTerm] = []
    for sign, x in zip(signs, args, strict=True):
        if isinstance(x, Public):
            public = public + sign * x.tensor
            continue
        public = public + sign * x.opened.public
        for coefficient, term in zip(x.opened.coefficients, x.opened.terms, strict=True):
            coefficients.append(coefficient * sign if coefficient is not None else torch.tensor(sign))
            terms.append(term)
    return Opened(public, tuple(coefficients), tuple(terms), "bit")
