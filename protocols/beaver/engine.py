"""The protocol's engines: the offline phase (any role) and the online phase (server, client)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..devices import CPU, META
from ..errors import CorrelationError
from ..operations import operations
from ..operations.operation import Attributes, Operation
from ..operations.reveal import RevealedRows, shape_of_rows
from ..ring import Ring
from ..rounds import Step, Swap, together
from ..states import KeptStates
from .context import Offline, Online, PrivateValue, Public, RowsAdded
from .point_function import KEY_BYTES, sets_of
from .primitive import Cost, Opening, Primitive, primitives
from .source import CountingSource, Source
from .state import offline_rearranged, offline_state, rearranged_share, state_share
from .values import Mask, MaskTerm, OfflineValue, Opened, Shape, Share, Tape

Prepared = OfflineValue | PrivateValue | Public  # a value in the offline phase
Held = Share | PrivateValue | Public  # a value in the online phase
_A_ROUND = [Swap(None, None)]  # of a price, whose walk counts rounds: bytes are declared


class OfflineEngine:
    """Fills a party's tape (or, as the dealer, sends corrections) by walking the program once.

    `weights`: per weight, B at the dealer, D at the client, nothing at the server. "client" is P1's seat here, whoever
    sits on it. `states`: of the session that this run belongs to.
    """

    def __init__(
        self,
        source: Source,
        ring: Ring,
        weights: Mapping[str, Tensor],
        states: KeptStates | None = None,
        runs: int = 1,
        keeps: Mapping[str, RowsAdded] | None = None,
    ) -> None:
        self.tape = Tape()
        self.offline = Offline(source, self.tape, ring, states, runs, keeps)
        self.weights = weights
        self.operations, self.primitives = operations(), primitives()

    def execute(
        self, key: str, op: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> Step:
        return self.prepare(key, op, shape, width, self.operations[op].sharing(args, _offline_value), attributes)
        yield []

    def prepare(
        self, key: str, op: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> Prepared:
        if op == "client":
            return PrivateValue(key, "client", shape, width)
        if op == "weight":
            known, role = self.weights.get(attributes["name"]), self.offline.role
            value = PrivateValue(key, "server", shape, width, name=attributes["name"])
            if role in ("dealer", "server"):  # without a dealer the server's weights are their own masks
                value.mask = known
            elif role == "client" and self.offline.dealt:
                value.tensor = known
            elif role == "client":
                value.masked = known
            return value
        if op == "constant":
            return Public(torch.empty(shape, device=META))
        if op == "state":
            return offline_state(self.offline, key, shape, width, **attributes)
        if op in self.primitives:
            self.price(self.primitives[op], key, shape, width, args, attributes)
            return self.primitives[op].correlate(self.offline, key, shape, width, *args, **attributes)
        operation = self.operations[op]
        if operation.rearranges and (rearranged := offline_rearranged(operation, key, shape, width, args, attributes)):
            return rearranged
        mask = self._moved_mask(operation, args, attributes) or _kept_mask(operation.signs, args, shape, width)
        return OfflineValue(key, shape, width, mask)

    def _moved_mask(self, operation: Operation, args: Sequence[Prepared], attributes: Attributes) -> Mask | None:
        """The mask of bits that are rearranged, which stay open."""
        if not operation.rearranges or len(args) != 1 or not isinstance(x := args[0], OfflineValue):
            return None
        if x.mask is None or x.mask.kind != "bit":
            return None

        def moved(values: Tensor) -> Tensor:
            values = operation.compute(values, **attributes)
            if self.offline.role == "count":  # a copy, which takes room
                return self.offline.source.uniform("", tuple(values.shape))
            return values.contiguous()

        return Mask(tuple(replace(term, value=moved(term.value)) for term in x.mask.terms), "bit")

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> None:
        """Hook of the pricing engine."""


class PricingEngine(OfflineEngine):
    """Prices a program: declared costs per instruction, with the openings that instructions share accounted once."""

    def __init__(self, ring: Ring, weights: Mapping[str, Tensor], states: KeptStates | None = None) -> None:
        super().__init__(CountingSource(), ring, weights, states)
        self.costs: dict[str, Cost] = {}
        self.opened: set[Opening] = set()
        self.under_way: set[Opening] = set()

    def prepare(
        self, key: str, op: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> Prepared:
        """AES's keys are passed on with the first points that they are for."""
        before = self._sets()
        result = super().prepare(key, op, shape, width, args, attributes)
        if more := self._sets() - before:
            cost = self.costs[key]
            self.costs[key] = replace(cost, passed_on=cost.passed_on + KEY_BYTES * more)
        return result

    def _sets(self) -> int:
        return sum(sets_of(group.count) for group in self.offline.groups)

    @property
    def grown(self) -> int:
        """Bytes of the numbers that a party makes out of keys."""
        source = self.offline.source
        assert isinstance(source, CountingSource)
        return source.grown

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> None:
        self.costs[key] = primitive.cost(shape, width, *args, **attributes)

    def execute(
        self, key: str, op: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> Step:
        args, primitive = self.operations[op].sharing(args, _offline_value), self.primitives.get(op)
        openings = list(dict.fromkeys(primitive.opens(*args, **attributes))) if primitive else []
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

    def _open(self, opening: Opening) -> Step:
        """As online: the first reader of a value opens it, a round; one that comes meanwhile waits for that."""
        if opening not in self.opened:
            self.opened.add(opening)
            self.under_way.add(opening)
            yield _A_ROUND
            self.under_way.discard(opening)
        while opening in self.under_way:
            yield []


class OnlineEngine:
    """One party's online phase. `values`: the party's own sources and its shares of inputs by name, encoded;
    `constants`: public ones; `states`: of the session that this run belongs to; `revealed`: rows of results that go to
    the client (default: all); `device`: where all of them are."""

    def __init__(
        self,
        role: str,
        tape: Tape,
        ring: Ring,
        values: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        states: KeptStates | None = None,
        revealed: RevealedRows | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.online = Online(role, tape, ring, states, revealed, device)
        self.values, self.constants = values, constants
        self.operations, self.primitives = operations(), primitives()

    def execute(
        self, key: str, op: str, shape: Shape, width: int, args: Sequence[Held], attributes: Attributes
    ) -> Step:
        """Errors: CorrelationError where a value has another shape than its instruction declares, for which its masks
        were made. Sources come before anything is sent."""
        result = yield from self.run(key, op, shape, width, args, attributes)
        tensor = None if result is None else result.tensor if not isinstance(result, Tensor) else result
        wanted = shape_of_rows(shape, self.online.revealed) if op == "reveal" else shape
        if tensor is not None and tensor.shape != wanted:
            raise CorrelationError(
                f"instruction {key} ({op}): has shape {list(tensor.shape)}, declared {list(wanted)}; nothing "
                "was sent; compile the model again"
            )
        return result

    def run(self, key: str, op: str, shape: Shape, width: int, args: Sequence[Held], attributes: Attributes) -> Step:
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
        if op == "state":
            return state_share(self.online, key, shape, width, **attributes)
        operation = self.operations[op]
        if op in self.primitives:
            shares = operation.sharing(args, self.share)
            return (yield from self.primitives[op].run(self.online, key, width, *shares, **attributes))
        return self._local(operation, key, shape, width, args, attributes)

    def share(self, value: Held) -> Share:
        """This party's share of any value: the owner of a private value holds all of it."""
        if isinstance(value, Share):
            return value
        if isinstance(value, Public):
            tensor = value.tensor if self.online.leader else torch.zeros_like(value.tensor)
            return Share("public", tensor)
        if value.shared is None:
            zeros = lambda: torch.zeros(value.shape, dtype=torch.int64, device=self.online.device)  # noqa: E731
            tensor = zeros() if value.tensor is None else value.tensor
            value.shared = Share(value.key, tensor, value.width)
        return value.shared

    def _local(
        self, operation: Operation, key: str, shape: Shape, width: int, args: Sequence[Held], attributes: Attributes
    ) -> Share:
        """A linear operation: each party computes it on its shares, and on public numbers where it takes these."""
        x = args[0]
        two = operation.signs in ((1, 1), (1, -1))
        if two and isinstance(x, Share) and x.shape == shape and self._absent(args[1]):
            tensor = x.tensor  # the other summand is another party's: nothing to add here
        else:
            tensor = operation.compute(*(y.tensor for y in operation.sharing(args, self.share)), **attributes)
        if operation.rearranges and (share := rearranged_share(operation, key, tensor, width, args, attributes)):
            return share
        opened = _moved_opening(operation, args, attributes) or _kept_opening(operation.signs, args, shape, width)
        return Share(key, tensor, width, opened=opened)

    def _absent(self, value: Held) -> bool:
        if isinstance(value, Public):
            return not self.online.leader
        return isinstance(value, PrivateValue) and value.tensor is None


def _offline_value(value: Prepared) -> OfflineValue | Public:
    """A private value used as a shared one; always the same value, so that it is opened once."""
    if not isinstance(value, PrivateValue):
        return value
    value.shared = value.shared or OfflineValue(value.key, value.shape, value.width)
    return value.shared


def _moved_opening(operation: Operation, args: Sequence[Held], attributes: Attributes) -> Opened | None:
    """The opening of such bits."""
    if not operation.rearranges or len(args) != 1 or not isinstance(x := args[0], Share):
        return None
    if x.opened is None or x.opened.kind != "bit":
        return None

    def moved(values: Tensor) -> Tensor:
        return operation.compute(values, **attributes).contiguous()

    coefficients = tuple(c if c is None or not c.dim() else moved(c) for c in x.opened.coefficients)
    terms = tuple(MaskTerm(moved(term.value)) for term in x.opened.terms)
    return Opened(moved(x.opened.public), coefficients, terms, "bit")


def _kept_mask(signs: tuple[int, ...], args: Sequence[Prepared], shape: Shape, width: int) -> Mask | None:
    """The mask of a sum that keeps the openings of its summands: of bits, or of one rescaled value, and of public
    numbers."""
    if not signs:
        return None
    values = [(sign, x) for sign, x in zip(signs, args, strict=True) if not isinstance(x, Public)]
    masks: list[Mask] = []
    for sign, x in values:
        if not isinstance(x, OfflineValue) or x.shape != shape or x.mask is None:
            return None
        if not _keeps(x.mask.kind, x.mask.terms, sign, len(values), width):
            return None
        masks.append(x.mask)
    if masks and masks[0].kind == "scaled":
        return masks[0]
    return Mask(tuple(term for mask in masks for term in mask.terms), "bit") if masks else None


def _keeps(kind: str, terms: tuple[MaskTerm, ...], sign: int, count: int, width: int) -> bool:
    """Whether a sum of `count` secret values, of which `width` bits are read, keeps one's opening. A plain one may come
    after the sum. Of a rescaled one wraps have to be read, too, as all that reads such an opening shares them."""
    return kind == "bit" or (kind == "scaled" and sign == count == 1 and width > terms[-1].zeros)


def _kept_opening(signs: tuple[int, ...], args: Sequence[Held], shape: Shape, width: int) -> Opened | None:
    """The opening of such a sum: what is public of it moves, under the same masks."""
    if not signs:
        return None
    values = [(sign, x) for sign, x in zip(signs, args, strict=True) if not isinstance(x, Public)]
    parts: list[tuple[int, Opened]] = []
    for sign, x in values:
        if not isinstance(x, Share) or x.opened is None or x.shape != shape:
            return None
        if not _keeps(x.opened.kind, x.opened.terms, sign, len(values), width):
            return None
        parts.append((sign, x.opened))
    if not parts:
        return None
    numbers = [(sign, x.tensor) for sign, x in zip(signs, args, strict=True) if isinstance(x, Public)]
    first, public = parts[0][1], parts[0][0] * parts[0][1].public
    for sign, number in (*numbers, *((sign, opened.public) for sign, opened in parts[1:])):
        public = torch.add(public, number, alpha=sign)
    if first.kind == "scaled":
        return replace(first, public=public)
    coefficients = [
        torch.tensor(sign, device=public.device) if coefficient is None else coefficient * sign
        for sign, opened in parts
        for coefficient in opened.coefficients
    ]
    return Opened(public, tuple(coefficients), tuple(term for _, opened in parts for term in opened.terms), "bit")
