"""The client, party P1, in one session of two parties: it owns the data and asks."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...models.program.correlations import Correlations, are_grown_ahead, is_large
from ...models.program.pricing import price
from ...models.program.program import Program
from ...protocols.beaver.engine import OnlineEngine
from ...protocols.beaver.point_function import take_keys
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel, Meter
from ...protocols.devices import CPU, Placement, settle
from ...protocols.ring import Ring
from ...protocols.rounds import over_channel
from ...protocols.states import KeptStates
from ...protocols.streams import new_seed
from ..config import UseStore
from ..receipts.statement import SessionFacts, SignedStatement
from ..transport.frames import printable
from .masked_weights import placement
from .messages import (
    ONE_RUN,
    Announce,
    Ask,
    PartRun,
    Runs,
    Waiting,
    amount,
    goodbye,
    out_of_place,
    read_missing,
    receive_expected,
    receive_for_query,
)
from .online import Answer, Progress, QueryingParty, Timings, run_online
from .pair_corrections import PairCorrections, stored_weights
from .preprocessed import CLOSE_TIMEOUT, BackgroundTask, Coming, Pace, RunBlock, TaskQueue, masks, query_key
from .preprocessing_store import PreprocessingStore, Proposals, Ref, StoreError
from .statements import SessionNotes, vouched_for
from .weight_transfer import MaskedCache, ReceivedWeights


class ClientTape(NamedTuple):
    """The client's correlations of one query, and the key that its masks follow from."""

    tape: Tape
    key: bytes


@dataclass
class Agreed:
    """A query whose correlations both sides have. `ready`: what the server says of its own; `ahead`: whether they are
    preprocessed; `seconds`: how long the query has waited for them; `pair_bytes`: sent and received to make them, where
    there is no dealer."""

    number: int
    runs: Runs
    tape: Tape
    key: bytes
    ready: dict[str, Any]
    ahead: bool
    seconds: float
    pair_bytes: int | None = None


class ClientParty(QueryingParty):
    """The client's end of one session, on its connection with the server, after the hello.

    seed_dealer   leaves this side's seed with the dealer; called at the first query that needs live correlations. None:
                  there is no dealer, this side makes them with the server
    session       the session's id
    cache         a folder for the masked weights; without it they are downloaded in every session
    store         preprocessed correlations, and the ledger that notes live ones, too
    use_store     "auto": correlations of the store first, then live; "only": never live; "off": never the store
    commitment    to the masked weights that the server must have; empty: any
    device        where this party computes
    waiting       gets the server's messages while this side waits: {"queued": place} or {"waiting": what}

    Errors: `PeerError` and `CorrelationError` end the session. `SlotsBusy` and `StoreError` end one query: ask again,
    in the same session.
    """

    def __init__(
        self,
        program: Program,
        constants: Mapping[str, Tensor],
        server: Channel,
        seed_dealer: Callable[[bytes], None] | None,
        *,
        session: str = "",
        cache: MaskedCache | None = None,
        store: PreprocessingStore | None = None,
        use_store: UseStore = "auto",
        waiting: Waiting | None = None,
        commitment: str = "",
        device: torch.device = CPU,
    ) -> None:
        self.program, self.constants, self.device = program, constants, device
        self.states, self.prepared = (
            KeptStates(device),
            KeptStates(device),
        )  # of the online phase, and of the correlations, which are made before it
        self._block = RunBlock[Tape]()  # correlations of runs to come
        self.server, self.seed_dealer = server, seed_dealer
        self.session, self.store, self.use_store = session, store, use_store
        topology = "dealer" if seed_dealer else "pair"
        self.waiting, self.notes = waiting, SessionNotes(program, session, topology=topology)
        self.seed = new_seed()
        self._pair = None if seed_dealer else PairCorrections(server, False, self.notes)
        self.weights = ReceivedWeights(server, program, cache, commitment, masked=self._pair is None)
        self.number = 0  # of the next query
        self.kept, self._begun = 0, False  # correlations added to the store, and whether that knows the session
        self._proposals: Proposals | None = None
        self._live = False
        self._coming: Coming[ClientTape] | None = None  # of the next query
        self._background = TaskQueue()
        self._pace = Pace(self._background)

    def set_up(self, progress: Progress | None = None) -> None:
        """Get the masked weights; leave the seed with the dealer unless the store comes first."""
        self.weights.receive(self.waiting, None if progress is None else lambda *done: progress("set-up", *done))
        self.setup_bytes, _ = self.weights.downloaded, self._place
        if self.store is not None and self.use_store != "off" and self.weights.offer.get("store") is True:
            self._proposals = Proposals(self.store, self.program.hash(), self._stored_weights)
        if self.use_store != "only" and self._choose() is None:
            self._go_live()
            self.setup_bytes += self.notes.correlations.sent + self.notes.correlations.received

    @property
    def _stored_weights(self) -> str:
        return self.weights.commitment if self._pair is None else stored_weights(self.weights.commitment)

    @cached_property
    def _place(self) -> Placement:
        """Has the masked weights where this party computes. Errors: DeviceError."""
        return placement(self.program, self.weights.masked, self.device)

    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        runs: Runs = ONE_RUN,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        if progress:
            progress("offline", 0, 1)
        return self.run(self.agree(more, runs, progress), sources, progress, constants)

    def run(
        self,
        agreed: Agreed,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        """The online phase of a query."""
        part_run = agreed.runs.turn
        program = self.program.part(part_run.part)
        constants = self._place(self.constants if constants is None else constants)
        self.states.truncate(part_run.rows)
        ring, values = Ring(program.ring), self._place(self._enter(agreed, sources))
        more = (self.states, agreed.runs.revealed, self.device)
        engine = OnlineEngine("client", agreed.tape, ring, values, constants, *more)
        head = bytearray()
        outputs, timings = run_online(
            program, engine, over_channel(self.server, head, self.device), [self.server], progress
        )
        timings.sent_head, over = base64.b64encode(head).decode(), time.perf_counter()
        finished, ready = receive_for_query(self.server, "done", agreed.number, self.waiting), agreed.ready
        outputs = self._leave(outputs, finished, timings)
        timings.online_s += time.perf_counter() - over  # of an audit, the server checks in it
        self.notes.answered(timings)
        timings.offline_s, timings.ahead = agreed.seconds, agreed.ahead
        costs = price(program)
        timings.offline_bytes = costs.passed_on_bytes if agreed.ahead else costs.offline_bytes
        if agreed.pair_bytes is not None:
            timings.offline_bytes = agreed.pair_bytes
        others = {
            "server_offline_s": amount(ready, "offline_s"),
            "dealer_s": amount(ready, "dealer_s"),
            "server_online_s": amount(finished, "online_s"),
            "server_peak_rss_mb": amount(finished, "peak_rss_mb"),
            "dealer_peak_rss_mb": amount(ready, "dealer_peak_rss_mb"),
        }
        if self._pair is not None:
            others = {name: value for name, value in others.items() if not name.startswith("dealer")}
        return Answer({n: v for n, v in outputs.items() if v is not None}, timings, others)

    def _enter(self, agreed: Agreed, sources: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """This party's values of a run."""
        return sources

    def _leave(self, outputs: dict[str, Any], done: Mapping[str, Any], timings: Timings) -> dict[str, Any]:
        """The outputs of a run that is over, as the server says by `done`."""
        return outputs

    def precompute(self, count: int, progress: Progress | None = None) -> None:
        """Preprocess the correlations of `count` queries. `kept` counts those in the store, also after an error."""
        if self.store is None:
            what = "makes correlations ahead for a client with a store; give a folder for it"
            raise StoreError(self.server.peer, what)
        self._skip()
        self._go_live()
        if not self._begun:
            self.store.begin(self.session, self.program.hash(), self._stored_weights)
            self._begun = True
        self.server.send_message({"precompute": count})
        for done in range(count):
            number = self.number
            reply = self._made(number, progress, "full")
            if not reply:
                if self._pair is not None:  # its masks are used now, whether it can be kept or not
                    self.number = number + 1
                reply = self._expect("stored", "full")
            if "full" in reply:
                raise StoreError(self.server.peer, f"{printable(reply.get('what'))} (kept {done} of {count})")
            if reply["stored"] != number:
                raise out_of_place(self.server)
            self.number = number + 1
            try:
                self.store.add(self.session, number, query_key(self.seed, number))
            except StoreError:
                self.server.send_message({"stop": number})
                raise
            self.kept += 1
            self.server.send_message({"kept": number})
            if progress:
                progress("precompute", done + 1, count)

    def vouched(self) -> tuple[SessionFacts, tuple[SignedStatement, ...]]:
        received, weights = Meter(received=self.weights.downloaded), self.weights.commitment
        dealt = self._live and self._pair is None
        return vouched_for(self.server, self.notes, received, weights, dealt, self.waiting)

    def close(self) -> None:
        goodbye(self.server)
        self.server.close()
        self._background.stop()
        self.settle(CLOSE_TIMEOUT)

    def settle(self, seconds: float | None = None) -> None:
        """Wait until all background tasks have ended."""
        self._background.join(seconds)

    def agree(self, more: bool = False, runs: Runs = ONE_RUN, progress: Progress | None = None) -> Agreed:
        """Agree with the server on the correlations of the next query, and wait until both sides have them. `more`,
        `runs`, `progress`: as of `query`."""
        started, part_run, before = time.perf_counter(), runs.turn, self.server.meter.snapshot()
        if self._coming is not None and self._coming.part_run != part_run:
            self._skip()
        while True:
            coming = self._coming = self._coming or self._plan(self._choose(), part_run)
            after = self._choose(coming.ref) if more else None
            more = more and (after is not None or (self.use_store != "only" and self._pair is None))
            then = self._plan(after, runs.following) if more else None
            number, ref = self.number, None if then is None else then.ref
            sources = {"store": coming.ref, "more": more, "then": ref}
            self.server.send_message(Ask.model_validate({**dict(runs), "query": number, **sources}).message())
            if coming.ref is None and coming.task is None:
                self._made(number, progress)
                coming.task = self._prepare(number, part_run)
            reply = self._expect("taken", "missing", "ready", "spent")  # Busy: what is coming is kept for the next time
            if "taken" in reply and coming.ref is not None:
                coming.task = self._take(coming.ref)
                reply = self._expect("ready", "spent")
            self._coming = None
            passed_on = self._passed_on(part_run) if "ready" in reply else bytearray()
            if "missing" in reply and coming.ref is not None:
                self._learn(coming.ref, reply)
                continue
            self.number += 1
            if "spent" in reply:
                raise StoreError(self.server.peer, printable(reply.get("what")))
            if coming.task is None or reply.get("ready") != number:
                raise out_of_place(self.server)
            if then is not None:
                self._coming = self._begin_next(then, reply.get("then"))
            try:
                tape, key = coming.task.result([self.server], "correlations")
                costs = price(self.program.part(part_run.part))
                grown = costs.held_bytes - costs.dealt_bytes
                take_keys(tape, passed_on, keep=are_grown_ahead(grown, costs.dealt_bytes))
            except StoreError:
                self.server.send_message({"abort": number})
                raise
            self.server.send_message({"go": number})
            seconds, moved = time.perf_counter() - started, self.server.meter.since(before)
            live = coming.ref is None
            pair_bytes = moved.sent + moved.received if live and self._pair is not None else None
            return Agreed(number, runs, tape, key, reply, not live, seconds, pair_bytes)

    def _passed_on(self, part_run: PartRun) -> bytearray:
        """What the server passes on of the correlations."""
        size = price(self.program.part(part_run.part)).passed_on_bytes
        if not size:
            return bytearray()
        self.notes.passed_on(received=size)
        return self.server.recv(size)

    def announce(self, part_run: PartRun) -> None:
        if self._pair is not None or (self._coming is not None and self._coming.part_run == part_run):
            return
        self._skip()
        self._go_live()
        self.server.send_message(Announce(announce=self.number, turn=part_run).model_dump())
        self._coming = Coming(None, part_run, self._prepare(self.number, part_run))

    def _choose(self, after: Ref | None = None) -> Ref | None:
        return None if self._proposals is None else self._proposals.next(after)

    def _skip(self) -> None:
        """The query that `more` announced does not come: its number is never used."""
        if self._coming is not None:
            self._coming, self._block = None, RunBlock()
            self.number += 1

    def _plan(self, ref: Ref | None, part_run: PartRun) -> Coming[ClientTape]:
        """A query's correlations are to come from the store, or (None) from the dealer."""
        if ref is None:
            if self.use_store == "only":
                remedy = "make some with `blindformer precompute`, or allow live ones"
                place = "store" if self.store is None else self.store.folder
                raise StoreError(place, f"holds no correlations for this model and this server; {remedy}")
            self._go_live()
        return Coming(ref, part_run)

    def _begin_next(self, then: Coming[ClientTape], reply: object) -> Coming[ClientTape] | None:
        """Begin this side's correlations of the query after this one, if the server has begun its own."""
        answer = reply if isinstance(reply, dict) else {}
        if then.ref is None:
            then.task = self._prepare(self.number, then.part_run)
        elif "taken" in answer:
            then.task = self._take(then.ref)
        else:
            if "missing" in answer:
                self._learn(then.ref, answer)
            return None
        return then

    def _learn(self, ref: Ref, reply: dict) -> None:
        assert self._proposals is not None
        self._proposals.learn(ref, read_missing(self.server, ref, reply))

    def _prepare(self, number: int, part_run: PartRun) -> BackgroundTask[ClientTape]:
        """This side's live correlations, with its half of every linear layer: neither needs the data."""
        key, block = query_key(self.seed, number), self._block

        def prepare() -> ClientTape:
            if (left := block.take(part_run)) is not None:
                return ClientTape(self._pace.made(left), key)
            if self.store is not None:
                self.store.ledger.record(key, self.session, number)
            self.prepared.truncate(part_run.rows)
            tape = block.fill(part_run, self.program.part(part_run.part), self._tapes(key, part_run))
            return ClientTape(self._pace.made(tape), key)

        return self._background.begin(prepare, "client")

    def _take(self, ref: Ref) -> BackgroundTask[ClientTape]:
        """This side's correlations from the store."""
        store = self.store
        assert store is not None

        def take() -> ClientTape:
            entry = store.ledger.take(ref.session, ref.number)
            if entry is None:
                raise StoreError(store.folder, "these correlations were used before, so they are left alone; ask again")
            (tape,) = self._tapes(entry.key, PartRun())
            return ClientTape(tape, entry.key)

        return self._background.begin(take, "client")

    def _tapes(self, key: bytes, part_run: PartRun) -> list[Tape]:
        program = self.program.part(part_run.part)
        correlations = Correlations(program, runs=part_run.runs)
        total = price(program).held_bytes * part_run.runs  # which takes a moment once: here, while nobody waits for it
        step = lambda tape: self._pace.wait(len(tape), self._pace.count, total)  # noqa: E731
        more: dict[str, Any] = {"states": self.prepared, "step": step, "large": is_large(total)}
        tape = correlations.follow(masks(key, self.device), self._place(self.weights.masked), **more)
        settle(self.device)
        return correlations.tapes(tape)

    def _go_live(self) -> None:
        if not self._live:
            if self.seed_dealer is not None:
                self.seed_dealer(self.seed)
            self.server.send_message({"live": True})
            self._expect("live")
            if self._pair is not None:
                self._pair.set_up()
            self._live = True

    def _made(self, number: int, progress: Progress | None, *instead: str) -> dict:
        """Without a dealer: make the corrections of a query with the server, or return what it says `instead`."""
        if self._pair is None:
            return {}
        reply = self._expect("make", *instead)
        if "make" not in reply:
            return reply
        if reply["make"] != number:
            raise out_of_place(self.server)
        tell = None if progress is None else lambda done, total: progress("correlations", done, total)
        self._pair.make(Correlations(self.program), query_key(self.seed, number), {}, progress=tell)
        return {}

    def _expect(self, *expected: str) -> dict:
        return receive_expected(self.server, expected, self.waiting)
