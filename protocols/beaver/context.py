"""The two phases of a query as one party sees them: what a primitive may ask of its surroundings."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..devices import CPU
from ..operations.reveal import RevealedRows
from ..ring import Ring, logical_shift, shift_left_
from ..rounds import Swap
from ..states import KeptStates, RunStates
from ..wire import wire_bytes
from .point_function import MAX_BATCH_POINTS, PointGroup, PointLayout, PointRecipe, TablePoints
from .source import CountingSource, PointSource, Source
from .values import Mask, MaskTerm, OfflineValue, Opened, Share, Tape, mask_bytes, of_shape


@dataclass(eq=False)
class PrivateValue:
    """A value that one party knows in the clear.

    `tensor`: the plaintext integers at the owner. `masked`: the value minus its mask B, at the other party (the
    server's weights at the client: once per model). `mask`: B, at the dealer.
    """

    key: str
    owner: str
    shape: tuple[int, ...]
    width: int = 64
    tensor: Tensor | None = None
    masked: Tensor | None = None
    mask: Tensor | None = None
    opened: bool = False  # a client's value: its masked form has gone to the server
    pending: bool = False
    name: str = ""  # of a weight, in all programs of its model
    shared: Any = None  # the offline value or share that stands for it where it is used as a shared value


class RowsAdded(NamedTuple):
    """What runs add to a state: the value's key, its shape stacked, and its shape in one run."""

    value: str
    of_all: tuple[int, ...]
    of_each: tuple[int, ...]


@dataclass(frozen=True)
class Public:
    """A value all parties know."""

    tensor: Tensor


class Offline:
    """The offline phase of one role: walks the program and fills the tape with correlations."""

    def __init__(
        self,
        source: Source,
        tape: Tape,
        ring: Ring,
        states: KeptStates | None = None,
        runs: int = 1,
        keeps: Mapping[str, RowsAdded] | None = None,
    ) -> None:
        """`runs`: how many at once, their values stacked; `keeps`: then, by state, what each run adds."""
        self.source, self.tape, self.ring = source, tape, ring
        self.runs, self.keeps = runs, keeps or {}
        self.dealt: Mapping[str, Tensor] = {}
        """For an audit, at the server in the client's place: by instruction, what the dealer has sent for products."""
        self.groups: list[PointGroup] = []
        self._gathering: dict[PointLayout, PointGroup] = {}
        self._drawn: dict[str, Tensor] = {}
        self.role = source.role
        self.states = RunStates(states or KeptStates(source.device))

    def points(self, key: str, count: int, layout: PointLayout, recipe: PointRecipe) -> TablePoints:
        """Points that a table is read at, `count` of each run, which the dealer makes. Their keys are made when there
        are enough of their layout, or all of them: `finish`."""
        if layout not in self._gathering:
            self.groups.append(PointGroup(key, layout, self.runs))
            self._gathering[layout] = self.groups[-1]
        group = self._gathering[layout]
        if self.role == "dealer":
            group.cells.append(recipe.point())
        elif self.source.evaluates:
            group.recipes.append(recipe)
        if isinstance(self.source, CountingSource):
            self.source.gathered(group, self.runs * count)
        points = group.add(count)
        if group.count >= MAX_BATCH_POINTS:
            self._make_keys(self._gathering.pop(layout))
        return points

    def finish(self) -> None:
        """After the last instruction."""
        while self._gathering:
            self._make_keys(self._gathering.pop(next(iter(self._gathering))))

    def _make_keys(self, group: PointGroup) -> None:
        group.keys = cast(PointSource, self.source).points(group)
        group.cells.clear()

    def keep(self, key: str, entry: object) -> None:
        """Store a correlation. Who makes corrections (and the price) keeps none: its masks live in the traces."""
        if self.role in ("server", "client") and not self.source.evaluates:
            self.tape.put(key, entry)

    def mask(self, x: OfflineValue) -> Mask:
        """The masks of x's elementwise opening; made now if x has none yet."""
        if x.mask is None:
            x.mask = Mask((MaskTerm(self.plain(x)),), "plain")
        return x.mask

    def ring_mask(self, x: OfflineValue) -> Mask:
        """As `mask`, but never bits: powers and comparisons need a mask of whole ring elements."""
        if x.mask is not None and x.mask.kind == "bit":
            return Mask((MaskTerm(self.plain(x)),), "plain")
        return self.mask(x)

    def plain(self, x: OfflineValue) -> Tensor:
        if x.plain is None:
            label = f"{x.key}/open"
            drawn = self._drawn.pop(label, None)
            x.plain = self.source.uniform(label, x.shape, wire_bytes(x.width)) if drawn is None else drawn
            self.keep(label, x.plain)
        return x.plain

    def matrix_mask(self, x: OfflineValue) -> Tensor:
        """The mask under which a product of matrices reads x."""
        if x.mask is None or x.mask.kind != "scaled":
            return self.plain(x)
        if x.unwrapped is None:
            low, wrap = x.mask.terms
            label = f"{x.key}/unwrapped"
            above = self.source.uniform(label, x.shape, mask_bytes(x.width, wrap.zeros))
            self.keep(label, above)
            x.unwrapped = low.value + (above.long() << wrap.zeros) if self.source.evaluates else above
        return x.unwrapped

    def drawn(self, label: str, shape: tuple[int, ...]) -> Tensor:
        """The mask of an opening that is asked for before its value is there."""
        self._drawn[label] = self.source.uniform(label, shape)
        return self._drawn[label]

    def one_sided(self, x: OfflineValue | PrivateValue, owner: str) -> Tensor:
        """The mask, known to `owner`, under which the owner's share of x (or x itself) goes to the other party."""
        store = x.one_sided if isinstance(x, OfflineValue) else {}
        if owner not in store:
            label = f"{x.key}/half/{owner}"
            store[owner] = self.source.private(label, x.shape, owner)
            if self.role == owner:
                self.keep(label, store[owner])
        return store[owner]


class Online:
    """The online phase of one party. `leader` (the server) adds public numbers to its share. `revealed`: rows of
    results that go to the client (default: all)."""

    def __init__(
        self,
        role: str,
        tape: Tape,
        ring: Ring,
        states: KeptStates | None = None,
        revealed: RevealedRows | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.role, self.tape, self.ring, self.device = role, tape, ring, device
        self.leader, self.revealed = role == "server", revealed
        self.states = RunStates(states or KeptStates(device))

    def opened(self, x: Share) -> Generator[list[Swap], list[Any], Opened]:
        """x's elementwise opening, opening it (one round) if nobody has."""
        if x.opened is None:
            public, mask = yield from self.plain(x)
            x.opened = x.opened or Opened(public, (None,), (MaskTerm(mask),), "plain")
        return x.opened

    def ring_opened(self, x: Share) -> Generator[list[Swap], list[Any], Opened]:
        """As `opened`, but never under masks of bits."""
        if x.opened is not None and x.opened.kind == "bit":
            public, mask = yield from self.plain(x)
            return Opened(public, (None,), (MaskTerm(mask),), "plain")
        return (yield from self.opened(x))

    def plain(self, x: Share) -> Generator[list[Swap], list[Any], tuple[Tensor, Tensor]]:
        """x - a opened, and this party's share of a."""
        while x.plain is None and "plain" in x.pending:
            yield []
        if x.plain is None:
            x.pending.add("plain")
            mask = self.tape.share(f"{x.key}/open")
            mine = x.tensor - of_shape(x.tensor, mask)
            (theirs,) = yield [Swap(mine, x.shape, wire_bytes(x.width))]
            x.plain = (mine + theirs, mask)
        return x.plain

    def matrix_opened(self, x: Share) -> Generator[list[Swap], list[Any], tuple[Tensor, Tensor]]:
        """As `plain`: of what is open scaled, the wraps that count are opened, which are bits above its low ones."""
        if x.opened is None or x.opened.kind != "scaled":
            return (yield from self.plain(x))
        while x.unwrapped is None and "unwrapped" in x.pending:
            yield []
        if x.unwrapped is None:
            x.pending.add("unwrapped")
            mask = self.tape.share(f"{x.key}/unwrapped")
            (low, wrap), counts = x.opened.terms, x.opened.coefficients[1]
            assert counts is not None
            mine = logical_shift(counts * wrap.value, wrap.zeros, 64) - of_shape(counts, mask)
            (theirs,) = yield [Swap(mine, x.shape, mask_bytes(x.width, wrap.zeros))]
            public = x.opened.public + shift_left_(mine + theirs, wrap.zeros)
            x.unwrapped = (public, low.value + shift_left_(mask, wrap.zeros))
        return x.unwrapped

    def one_sided(self, x: Share, owner: str) -> Generator[list[Swap], list[Any], Tensor]:
        """The owner's share of x goes to the other party under the owner's mask.

        Returns the mask at the owner, and x minus the mask at the other party.
        """
        while owner not in x.one_sided and owner in x.pending:
            yield []
        if owner not in x.one_sided:
            x.pending.add(owner)
            if self.role == owner:
                mask = self.tape.share(f"{x.key}/half/{owner}")
                yield [Swap(x.tensor - of_shape(x.tensor, mask), None, wire_bytes(x.width))]
                x.one_sided[owner] = mask
            else:
                (theirs,) = yield [Swap(None, x.shape, wire_bytes(x.width), kept=x.tensor)]
                x.one_sided[owner] = x.tensor + theirs
        return x.one_sided[owner]
