"""One of N parties in one session: set-up, then queries, over channels whose peers have said hello.

The querying party, which owns the first data, asks; the others follow. The leader owns the model and has the dealer's
channel.

    a query   querying party -> others   its number
              leader -> others           ready: it has the dealer's corrections; the others fill their tapes from seeds
              all <-> all                the rounds of the program
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...models.artifacts.tensors import ProgramPart
from ...models.program.correlations import Correlations
from ...models.program.program import Program
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel
from ...protocols.crypten.engine import NPartyOnlineEngine
from ...protocols.crypten.mesh import Mesh
from ...protocols.crypten.source import LeaderSource, NPartySource, PartySource
from ...protocols.crypten.tuples import Request
from ...protocols.crypten.wire import Communicator, over_communicator
from ...protocols.devices import CPU, Placement
from ...protocols.ring import Ring
from ...protocols.states import KeptStates
from ...protocols.streams import new_seed
from .dealing import RemoteDealer, tuple_masks
from .masked_weights import Served, constants_of, placement
from .messages import PartRun, amount, patient, read, read_number, receive_expected, receive_for_query
from .online import Answer, Progress, run_online
from .part_runs import check_runs, rows_of_a_run
from .parties import LEADER, Parties
from .preprocessed import BackgroundTask, RunBlock, masks, query_key
from .weight_transfer import ReceivedWeights, send_weights


@dataclass(frozen=True)
class PartyModel:
    """A party's part of a model: the program and its constants; only the leader has the weights."""

    program: Program
    constants: Mapping[str, Tensor] = field(repr=False)
    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    parts: Mapping[str, ProgramPart] = field(default_factory=dict, repr=False)


class Party:
    """The party whose rank the mesh has.

    mesh           its channels to the others
    dealer         its connection with the dealer: only the leader has one
    seed           its seed: the others have left theirs with the dealer, the leader sends its own at set-up
    communicator   CrypTen's, on the mesh; set before the first query
    device         where it computes

    Errors of all methods: `PeerError`. Then `abort` the channels.
    """

    def __init__(
        self,
        parties: Parties,
        mesh: Mesh,
        model: PartyModel,
        seed: bytes,
        dealer: Channel | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self.parties, self.rank, self.mesh, self.model, self.seed = parties, mesh.rank, mesh, model, seed
        self.owners = parties.sources(model.program)
        self.communicator: Communicator | None = None
        self.setup_bytes = 0
        self.dealer_peak_rss_mb = 0.0  # the dealer's last report, at the leader
        self._dealer = None if dealer is None else RemoteDealer(dealer, Served(model, new_seed(), self.owners, device))
        self._masked: Mapping[str, Tensor] = {}  # D, at all but the leader
        self._place = Placement(device)
        self.states, self.prepared = KeptStates(device), KeptStates(device)  # online, and of the correlations
        self._rows, self._block = 0, RunBlock[Tape]()  # rows that queries have kept; correlations of runs to come
        self._next = 0  # the least unused number of a query: masks of those below may be spent

    @property
    def channels(self) -> list[Channel]:
        return [*self.mesh.channels.values(), *([self._dealer.channel] if self._dealer else [])]

    @property
    def asks(self) -> bool:
        """Whether this party starts queries."""
        return self.rank == self.parties.asker

    def deal(self, request: Request, number: int) -> NPartySource:
        """This party's source of one of CrypTen's tuples (protocols/crypten/provider.py)."""
        stream = tuple_masks(self.seed, number)
        if self._dealer is None:
            return PartySource(stream, self.rank)
        return LeaderSource(stream, self._dealer.tuple(request, number))

    def set_up(self) -> None:
        """The masked weights: from the leader to all others, and their keys to the dealer."""
        if self._dealer is None:
            received = ReceivedWeights(self.mesh.channels[LEADER], self.model.program)
            received.receive()
            self._masked, self.setup_bytes = received.masked, received.downloaded
            self._place = placement(self.model.program, received.masked, self.device)
        else:
            self._place = self._dealer.served.place
            self._dealer.set_up(self.seed)
            self.setup_bytes = send_weights(self._dealer.served.masked, self.mesh)

    # At the querying party.

    def ask(
        self, values: Mapping[str, Tensor], progress: Progress | None = None, part_run: PartRun | None = None
    ) -> Answer:
        """A query, with this party's values of it. The other parties `follow`. `part_run`: of a program with parts."""
        number, self._next, part_run = self._next, self._next + 1, part_run or PartRun()
        self._say({"query": number, **part_run.message()})
        return self._answer(number, part_run, values, progress)

    def goodbye(self) -> None:
        """No more queries."""
        self._say({"bye": True})
        self._leave_dealer()

    # At the others.

    def follow(
        self,
        idle: float | None,
        values: Callable[[int], Mapping[str, Tensor]],
        progress: Progress | None = None,
    ) -> Answer | None:
        """The next query of the querying party; None after its goodbye.

        `idle`: seconds it may be silent before the query; `values`: this party's inputs to the query of a number.
        """
        asker = self.mesh.channels[self.parties.asker]
        with patient(asker, idle):
            message = receive_expected(asker, ("query", "bye"))
        if "bye" in message:
            self._leave_dealer()
            return None
        number = read_number(asker, message, "query", self._next)
        part_run = read(asker, PartRun, message.get("turn", {}))
        check_runs(asker, self.model.program, self._rows, part_run)
        self._next = number + 1
        return self._answer(number, part_run, values(number), progress)

    # At all parties.

    def _answer(
        self, number: int, part_run: PartRun, values: Mapping[str, Tensor], progress: Progress | None
    ) -> Answer:
        program, started, dealt = self.model.program.part(part_run.part), time.perf_counter(), self._dealt_bytes()
        tape = self._make(number, part_run)
        self.states.truncate(part_run.rows)
        offline_s, offline_bytes = time.perf_counter() - started, self._dealt_bytes() - dealt
        if progress:
            progress("offline", 1, 1)
        engine = NPartyOnlineEngine(
            self.rank,
            tape,
            Ring(program.ring),
            {**self._place(self.model.weights), **self._place(values)},
            self._place(constants_of(self.model, part_run.part, part_run.rows)),
            owners=self.owners,
            recipient=self.parties.recipient_rank,
            states=self.states,
            device=self.device,
        )
        assert self.communicator is not None
        wire = over_communicator(self.communicator, device=self.device)
        outputs, timings = run_online(program, engine, wire, self.mesh.channels.values(), progress)
        self._rows = part_run.rows + rows_of_a_run(program)
        timings.offline_s, timings.offline_bytes = offline_s, offline_bytes
        return Answer(outputs, timings)

    def _make(self, number: int, part_run: PartRun) -> Tape:
        """The correlations of one query; the others wait until the leader has the dealer's corrections."""
        if (left := self._block.take(part_run)) is not None:
            return left
        program, key = self.model.program.part(part_run.part), query_key(self.seed, number)
        self.prepared.truncate(part_run.rows)
        if self._dealer is None:
            correlations = Correlations(program, self.owners, part_run.runs)
            tape = correlations.follow(masks(key, self.device), self._place(self._masked), self.rank, self.prepared)
            receive_for_query(self.mesh.channels[LEADER], "ready", number)
            return self._block.fill(part_run, program, correlations.tapes(tape))
        dealer = self._dealer
        work = BackgroundTask(lambda: dealer.lead(number, key, part_run, self.prepared), "offline")
        dealt = work.result(self.mesh.channels.values(), "dealer")
        self.dealer_peak_rss_mb = amount(dealt.report, "peak_rss_mb")
        self._say({"ready": number})
        return self._block.fill(part_run, program, dealt.tapes)

    def _dealt_bytes(self) -> int:
        return self._dealer.channel.meter.received if self._dealer else 0

    def _say(self, message: dict[str, Any]) -> None:
        for channel in self.mesh.channels.values():
            channel.send_message(message)

    def _leave_dealer(self) -> None:
        if self._dealer is not None:
            self._dealer.goodbye()
