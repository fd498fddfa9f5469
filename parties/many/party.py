"""One of N parties, in one session: set-up, then queries, over channels that are already introduced."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...models.interpreter import interpret
from ...models.program import Program
from ...protocols.beaver.source import Corrections
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel, Meter
from ...protocols.crypten import calls
from ...protocols.crypten.engine import ManyOfflineEngine, ManyOnlineEngine
from ...protocols.crypten.mesh import Mesh, Parcels
from ...protocols.crypten.source import LeaderSource, ManySource, PartySource
from ...protocols.crypten.tuples import Request
from ...protocols.crypten.wire import Communicator, over_communicator
from ...protocols.errors import CorrelationError, PeerError, PeerProtocolError
from ...protocols.ring import Ring
from ...protocols.streams import new_seed
from ...protocols.wire import elements
from ..session import Timings, patient, peak_rss_mb, query_key
from ..session.ahead import Ahead
from ..session.keys import masks
from ..session.messages import SAME_VERSION, amount, hear, read_number
from ..session.weights import ELEMENT_BYTES, MaskedWeights, as_tensor
from .ahead import AheadLimits, tape_bytes
from .dealer import layout, tuple_masks
from .roster import LEADER, Roster

Progress = Callable[[str, int, int], None]
_WHOLE = 1000  # progress of a phase is told in this many parts


@dataclass(frozen=True)
class PartyModel:
    """What a party has of a model: the program and its constants; the weights at the leader alone."""

    program: Program
    constants: Mapping[str, Tensor] = field(repr=False)
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass
class ManyAnswer:
    """`outputs`: ring integers by name at the recipient, None elsewhere. Bytes are this party's, to and from all."""

    outputs: dict[str, Any]
    timings: Timings


class Dealt:
    """The leader's end of its connection with the dealer. Errors: `PeerError`."""

    def __init__(self, channel: Channel, program: Program, sizes: tuple[int, ...]) -> None:
        self.channel, self.program, self.sizes = channel, program, sizes
        self.seconds, self.peak_rss_mb = 0.0, 0.0

    def set_up(self, masked: MaskedWeights) -> None:
        text = self.program.to_json().encode()
        self.channel.send_message({"program": len(text)})
        self.channel.send(text)
        self.channel.send(masked.all_keys())
        hear(self.channel, ("dealing",))

    def begin(self, number: int) -> Corrections:
        self.channel.send_message({"query": number})
        return Corrections(self.channel, self.sizes)

    def end(self, number: int) -> None:
        message = hear(self.channel, ("dealt",))
        if message["dealt"] != number:
            raise PeerProtocolError(self.channel.peer, "dealt for another query", SAME_VERSION)
        self.seconds, self.peak_rss_mb = amount(message, "seconds"), amount(message, "peak_rss_mb")

    def tuple(self, request: Request, number: int) -> Corrections:
        self.channel.send_message({"tuple": request.model_dump(mode="json"), "number": number})
        return Corrections(self.channel, calls.layout(request))


class ManyParty:
    """Party `rank` of a roster.

    mesh           its channels to the others
    dealer         its connection with the dealer, at the leader alone
    seed           what it left with the dealer
    communicator   CrypTen's, on the mesh; set before the first query
    limits         what others may make it hold ahead

    Errors of all methods: `PeerError`, AheadError. Then tell the channels, and close them.
    """

    def __init__(
        self,
        roster: Roster,
        mesh: Mesh,
        held: PartyModel,
        seed: bytes,
        dealer: Channel | None = None,
        ring: Ring | None = None,
        limits: AheadLimits | None = None,
    ) -> None:
        self.roster, self.rank, self.mesh, self.held, self.seed = roster, mesh.rank, mesh, held, seed
        self.ring = ring or Ring(held.program.ring)
        self.owners = roster.sources(held.program)
        self.communicator: Communicator | None = None
        self.setup_bytes = 0
        self._dealt = Dealt(dealer, held.program, layout(held.program, self.owners)) if dealer else None
        self._masked: dict[str, Tensor] = {}  # D, at all but the leader
        self._limits = limits or AheadLimits()
        self._tapes: dict[int, Tape] = {}  # made ahead
        self._next = self._made = 0  # the least numbers of a query, and of its correlations, that were not used yet

    @property
    def channels(self) -> list[Channel]:
        return [*self.mesh.channels.values(), *([self._dealt.channel] if self._dealt else [])]

    @property
    def dealer_peak_rss_mb(self) -> float:
        """What the dealer last said of itself, at the leader."""
        return self._dealt.peak_rss_mb if self._dealt else 0.0

    @property
    def asks(self) -> bool:
        """Whether this party starts queries."""
        return self.rank == self.roster.asker

    def deal(self, request: Request, number: int) -> ManySource:
        """This party's source of one of CrypTen's tuples (protocols/crypten/provider.py)."""
        stream = tuple_masks(self.seed, number)
        if self._dealt is None:
            return PartySource(stream, self.rank)
        return LeaderSource(stream, self._dealt.tuple(request, number))

    def set_up(self) -> None:
        """The masked weights: from the leader to all others, and their keys to the dealer."""
        shapes = dict(sorted(self.held.program.weight_shapes().items()))
        if self._dealt is None:
            for name, shape in shapes.items():
                data = self.mesh.channels[LEADER].recv(ELEMENT_BYTES * elements(shape))
                self._masked[name] = as_tensor(data, shape)
                self.setup_bytes += len(data)
            return
        masked = MaskedWeights(self.held.program, self.held.weights, new_seed())
        self._dealt.set_up(masked)
        for name in shapes:
            packed = masked.packed(name)
            self.mesh.exchange({peer: Parcels(send=[packed]) for peer in self.mesh.channels})
            self.setup_bytes += len(packed) * len(self.mesh.channels)

    # At the party that asks.

    def ask(self, values: Mapping[str, Tensor], progress: Progress | None = None) -> ManyAnswer:
        """A query, with this party's values of it. The other parties `follow`."""
        number, self._next = self._next, self._next + 1
        self._say({"query": number})
        return self._answer(number, values, progress)

    def ask_ahead(self, count: int) -> None:
        """Make the correlations of `count` queries to come, at every party."""
        self._limits.check_count(len(self._tapes), count)
        first = max(self._next, self._made)
        self._say({"ahead": count, "from": first})
        self._make_ahead(first, count)

    def goodbye(self) -> None:
        """No more queries."""
        self._say({"bye": True})
        self._part()

    # At the others.

    def follow(
        self,
        idle: float | None,
        values: Callable[[int], Mapping[str, Tensor]],
        progress: Progress | None = None,
    ) -> ManyAnswer | None:
        """The next query that the asking party starts; None once it says goodbye.

        `idle`: seconds it may be silent before; `values`: this party's own, for the query of this number.
        """
        asker = self.mesh.channels[self.roster.asker]
        while True:
            with patient(asker, idle):
                message = hear(asker, ("query", "ahead", "bye"))
            if "bye" in message:
                self._part()
                return None
            if "query" in message:
                number = read_number(asker, message, "query", self._next)
                self._next = number + 1
                return self._answer(number, values(number), progress)
            first = read_number(asker, message, "from", max(self._next, self._made))
            count = read_number(asker, message, "ahead", 1)
            self._limits.check_count(len(self._tapes), count)
            self._make_ahead(first, count)

    # At all.

    def _answer(self, number: int, values: Mapping[str, Tensor], progress: Progress | None) -> ManyAnswer:
        program, started = self.held.program, time.perf_counter()
        offline_before = self._dealt.channel.meter.received if self._dealt else 0
        tape = self._tapes.pop(number) if number in self._tapes else self._make(number)
        offline_bytes = self._dealt.channel.meter.received - offline_before if self._dealt else 0
        if progress:
            progress("offline", 1, 1)
        before, offline_s = self._meter(), time.perf_counter() - started
        assert self.communicator is not None
        engine = ManyOnlineEngine(
            self.rank,
            tape,
            self.ring,
            {**self.held.weights, **values},
            self.held.constants,
            owners=self.owners,
            recipient=self.roster.recipient_rank,
        )
        started = time.perf_counter()
        total = len(program.instructions)
        step = None if progress is None else lambda done: progress("online", done * _WHOLE // total, _WHOLE)
        found = interpret(program, engine, over_communicator(self.communicator), step)
        timings = Timings(
            offline_s=offline_s,
            online_s=time.perf_counter() - started,
            rounds=found.rounds,
            online=self._meter().since(before),
            offline_bytes=offline_bytes,
            peak_rss_mb=peak_rss_mb(),
        )
        return ManyAnswer(found.outputs, timings)

    def _make_ahead(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            tape = self._make(number)
            # All of a Program's tapes are alike: the first tells what all of them will take.
            self._limits.check_bytes((len(self._tapes) + first + count - number) * tape_bytes(tape))
            self._tapes[number] = tape

    def _make(self, number: int) -> Tape:
        """The correlations of one query; the others wait until the leader has the dealer's corrections.

        Errors: CorrelationError if they were made before: then their masks may be spent.
        """
        if number < self._made:
            raise CorrelationError(f"query {number}: its correlations were made and are gone; start a new session")
        self._made = number + 1
        if self._dealt is None:
            tape = self._offline(PartySource(masks(query_key(self.seed, number)), self.rank))
            leader = self.mesh.channels[LEADER]
            if hear(leader, ("ready",))["ready"] != number:
                raise PeerProtocolError(leader.peer, "is ready for another query", SAME_VERSION)
            return tape
        work = Ahead(lambda: self._deal(number), "offline")
        tape = work.result(min(c.timeout for c in self.channels) / 3, lambda: self._say({"waiting": "dealer"}))
        self._say({"ready": number})
        return tape

    def _deal(self, number: int) -> Tape:
        assert self._dealt is not None
        corrections = self._dealt.begin(number)
        tape = self._offline(LeaderSource(masks(query_key(self.seed, number)), corrections))
        corrections.finish()
        self._dealt.end(number)
        return tape

    def _offline(self, source: ManySource) -> Tape:
        engine = ManyOfflineEngine(source, self.ring, self._masked, self.owners)
        interpret(self.held.program, engine)
        return engine.tape

    def _say(self, message: dict[str, Any]) -> None:
        for channel in self.mesh.channels.values():
            channel.send_message(message)

    def _part(self) -> None:
        if self._dealt is not None:
            try:
                self._dealt.channel.send_message({"bye": True})
            except PeerError:
                return  # it is gone already: nobody is left to say goodbye to

    def _meter(self) -> Meter:
        """All channels to other parties together."""
        meters = [channel.meter for channel in self.mesh.channels.values()]
        return Meter(**{name: sum(getattr(meter, name) for meter in meters) for name in vars(Meter())})
