"""The server, party P0, in one session of two parties: it owns the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from ...models.program.pricing import price
from ...protocols.beaver.engine import OnlineEngine
from ...protocols.beaver.point_function import pack_keys
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel, Meter
from ...protocols.crypten.mesh import Mesh
from ...protocols.errors import PeerProtocolError, PeerTimeout
from ...protocols.ring import Ring
from ...protocols.rounds import over_channel
from ...protocols.states import KeptStates
from ...protocols.streams import new_seed
from ..receipts.statement import Signer
from .audits import AuditedRun, AuditToken, receive_audit_token
from .dealing import RemoteDealer, Replay
from .helper_topology import OwnerShares
from .ledger import Entry
from .masked_weights import Served, constants_of
from .messages import (
    Announce,
    Ask,
    ComputeSlots,
    PartRun,
    Precompute,
    Unlimited,
    amount,
    out_of_place,
    read,
    read_number,
    receive_expected,
    refusing,
    requests,
)
from .online import OnQuery, Timings, check_runs, count_of, rows_of_a_run, run_online
from .pair_corrections import stored_weights
from .pair_dealing import PairDealing
from .preprocessed import CLOSE_TIMEOUT, BackgroundTask, Coming, Pace, RunBlock, TaskQueue, query_key
from .preprocessing_store import Missing, PreprocessingStore, Ref, StoreError, answer_proposal
from .statements import REQUEST, SessionNotes, vouch_as_server
from .weight_transfer import send_weights

Dealing = RemoteDealer | PairDealing


@dataclass
class ServerTape:
    """The server's correlations of one query, the seconds that they took here, the dealer's report of them, and what it
    says of a run with audits."""

    tape: Tape
    seconds: float
    dealt: dict
    audit_token: AuditToken | None = None


@dataclass
class FinishedRun:
    """A run whose rounds are over. `audited`: of a program with audits; `passed_on`: of its correlations; `seconds`:
    since it was admitted."""

    outputs: dict[str, Any]
    timings: Timings
    audited: AuditedRun | None
    passed_on: bytearray
    seconds: float

    @property
    def is_audit(self) -> bool:
        return self.audited is not None and self.audited.is_audit


class ServerParty:
    """The server's end of one session, on the client's connection, after the hello.

    dealer      dials this session's dealer; called at the first query that needs live correlations. None: there is none
    session     the session's id
    client_id   the fingerprint of the client's certificate: correlations of the store are for the client that made them
    store       preprocessed correlations, and the ledger that notes live ones, too
    count       called once for each query, before its answer is computed, with the number of texts, or of tokens that
                it reveals of a conversation: `LimitReached` refuses the query
    outside     source of input shares and sink of result shares, for a data owner outside the computation
    check_peer  called before each query and each answer: `PeerError` ends the session
    check_dealer  asked while live correlations are waited for: `PeerError` ends the session
    seconds     of a run, beyond which a client that is audited gets no answer: an audit of such a run might be ended
    signer      signs what this side vouches for, if the client asks for a receipt

    Errors of `set_up` and `serve`: `PeerError`. Then `abort` the channels that `abandon` returns.
    """

    def __init__(
        self,
        served: Served,
        client: Channel,
        dealer: Callable[[], Channel] | None,
        *,
        session: str = "",
        client_id: str = "",
        admission: ComputeSlots | None = None,
        store: PreprocessingStore | None = None,
        outside: OwnerShares | None = None,
        check_peer: Callable[[], None] = lambda: None,
        check_dealer: Callable[[], None] | None = None,
        seconds: float = math.inf,
        count: Callable[[int], None] | None = None,
        signer: Signer | None = None,
    ) -> None:
        topology = "pair" if dealer is None else "dealer"
        self.notes = SessionNotes(served.program, session, topology=topology)
        self.signer, self._sent_weights = signer, 0
        self.served, self.client, self.dial_dealer = served, client, dealer
        self.device = served.device
        self.outside, self.count = outside, count
        self.check_peer, self.check_dealer, self.seconds = check_peer, check_dealer, seconds
        self._counted = (-1, 0)  # the last query that was counted, and for what
        self._begun = False  # whether the store knows the session
        self.session, self.client_id = session, client_id
        self.admission, self.store = admission or Unlimited(), store
        self.program = served.program
        self.seed = new_seed()
        self.states, self.prepared = (
            KeptStates(self.device),
            KeptStates(self.device),
        )  # of the online phase, and of the correlations, which are made before it
        self._rows, self._block = 0, RunBlock[Tape]()  # rows that queries have kept; correlations of runs to come
        self.number = 0  # of the next query
        self._dealer: Channel | None = None
        self._dealing: Dealing | None = None
        self._background = TaskQueue()  # one after the other: they share the dealer's channel
        # Without a dealer the client makes them with this side, and waits for no sign of life.
        self._waiting = [] if dealer is None else [client]
        self._stored_weights = stored_weights(self._commitment) if dealer is None else self._commitment
        self._pace = Pace(self._background)
        self._coming: Coming[ServerTape] | None = None  # of the next query
        self._announced = False  # a query, since the last one
        self._refused: PartRun | None = None  # of a refused query, of which the client has its correlations

    def set_up(self) -> None:
        """Send the masked weights that the client does not have."""
        _ = self.served.place
        mesh = Mesh(0, {1: self.client})
        self._sent_weights = send_weights(self.served.masked, mesh, store=self.store is not None)

    def serve(self, on_query: OnQuery | None = None, idle: float | None = None) -> None:
        """Answer the client's requests until its goodbye. `idle`: seconds it may be silent between queries."""
        for message in requests(self.client, idle):
            if message.get("live"):
                self._go_live()
            elif "announce" in message:
                self._announce(read(self.client, Announce, message))
            elif "precompute" in message:
                self._precompute(read(self.client, Precompute, message).precompute)
            elif message == REQUEST:
                self._vouch()
            else:
                ask = read(self.client, Ask, message)
                timings = self._query(ask)
                if timings is not None and on_query:
                    on_query(ask.query, timings)

    @property
    def _commitment(self) -> str:
        return self.served.masked.catalogue.commitment

    def close(self) -> None:
        """End the session in order, after `serve`."""
        if self._background.join(CLOSE_TIMEOUT) and self._dealing is not None:
            self._dealing.goodbye()
        for channel in self.abandon():
            channel.close()

    def abandon(self) -> list[Channel]:
        """Stop the background tasks; returns the open channels, for the caller to abort."""
        self._background.end(self._dealer if self._waiting else self.client)
        return [self.client] if self._dealer is None else [self.client, self._dealer]

    def _go_live(self) -> None:
        def connect(dial: Callable[[], Channel]) -> RemoteDealer:
            self._dealer = dial()
            dealing = RemoteDealer(self._dealer, self.served)
            dealing.set_up(self.seed)
            return dealing

        if self.dial_dealer is None:
            if self._dealing is not None:
                raise out_of_place(self.client)
            self.client.send_message({"live": True})
            self._dealing = PairDealing(self.client, self.served, self.notes)
            self._dealing.set_up(self.seed)
            return
        if self._dealing is None:
            work = self._background.begin(partial(connect, self.dial_dealer), "dealer")
            self._dealing = work.result([self.client], "dealer", self.check_dealer)
        self.client.send_message({"live": True})

    def _vouch(self) -> None:
        sent = Meter(sent=self._sent_weights)
        vouch_as_server(self.client, self._dealer, self._background, self.signer, self.notes, sent, self._commitment)

    def _announce(self, announced: Announce) -> None:
        """Begin the correlations of the next query, at a dealer. Once between two queries."""
        check_runs(self.client, self.program, self._rows, announced.turn)
        self._skip(unless=announced.turn)
        if (
            self._announced or self._coming is not None or not self._waiting
        ):  # by the query before, too: its correlations are made once
            raise out_of_place(self.client)
        read_number(self.client, {"announce": announced.announce}, "announce", self.number, self.number)
        self._announced, self._coming = True, self._live(announced.turn)

    def _query(self, ask: Ask) -> Timings | None:
        self._skip(unless=ask.turn)
        self._announced = False
        following = (ask.following,) if ask.more else ()
        check_runs(self.client, self.program, self._rows, ask.turn, *following, revealed=ask.revealed)
        read_number(self.client, {"query": ask.query}, "query", self.number, self.number)
        self.check_peer()
        ran, admitted = None, False
        try:
            with refusing(self.client), self._slot(ask.query):
                self._count(ask)
                ran, admitted = self._run(ask), True
                if ran is not None and not ran.is_audit:
                    self._answer(ask, ran)
        finally:
            # Beside the slot, whose time a client could use up with its last message; and even if the server stops.
            if ran is not None and ran.audited is not None and ran.is_audit:
                ran.audited.check(ran.passed_on)
        if not admitted:
            self._refused = ask.turn
        if ran is None:
            return None
        if ran.is_audit:
            self._counted = (ask.query + 1, self._counted[1])  # the query is asked for again, by the next number
            self._done(ask, ran)
        return ran.timings

    def _slot(self, number: int) -> AbstractContextManager[None]:
        return self.admission.slot(number, lambda place: self.client.send_message({"queued": place}))

    def _count(self, ask: Ask) -> None:
        """Count what a number reveals once: it is asked for again where correlations were missing, and then for more,
        perhaps. Errors: `LimitReached`."""
        if self.count is None:
            return
        number, counted = self._counted
        before = counted if number == ask.query else 0
        needed = count_of(self.program.part(ask.turn.part), ask.revealed)
        if needed > before:
            self.count(needed - before)
        self._counted = (ask.query, max(needed, before))

    def _run(self, ask: Ask) -> FinishedRun | None:
        """One query, from correlations to the last round; None if it failed and the client knows why."""
        started = time.perf_counter()
        work = self._find(ask)
        if work is None:
            return None
        try:
            peers = self._waiting if ask.store is None else [self.client]
            prepared = work.result(peers, "correlations", None if ask.store else self.check_dealer)
        except StoreError as error:
            self.number += 1
            self.client.send_message({"spent": ask.query, "what": error.what})
            return None
        offline = time.perf_counter() - started
        self.number += 1
        ready = {
            "ready": ask.query,
            "offline_s": prepared.seconds,
            "dealer_s": amount(prepared.dealt, "seconds"),
            "dealer_peak_rss_mb": amount(prepared.dealt, "peak_rss_mb"),
        }
        if ask.more:
            ready["then"] = self._begin_next(ask.then, ask.following)
        self.client.send_message(ready)
        if passed_on := pack_keys(prepared.tape):
            self.client.send(passed_on)
            self.notes.passed_on(sent=len(passed_on))
        if "go" not in receive_expected(self.client, ("go", "abort")):
            return None
        audited = (
            None
            if prepared.audit_token is None
            else AuditedRun(prepared.audit_token, prepared.tape, self.served, self.client)
        )
        place = self.served.place
        values = place(self.served.weights)
        if self.outside is not None:
            values = {**values, **place(self.outside.shares(ask.turn.part, ask.revealed))}
        if audited is not None:
            values = {**values, **place(audited.shares())}
        program = self.program.part(ask.turn.part)
        constants = place(constants_of(self.served, ask.turn.part, ask.turn.rows))
        self.states.truncate(ask.turn.rows)
        more = (self.states, ask.revealed, self.device)
        engine = OnlineEngine("server", prepared.tape, Ring(program.ring), values, constants, *more)
        wire = over_channel(self.client if audited is None else audited.frames, device=self.device)
        outputs, timings = run_online(program, engine, wire, [self.client])
        self._rows = ask.turn.rows + rows_of_a_run(program)
        timings.offline_s, timings.offline_bytes = offline, price(program).offline_bytes
        if audited is not None:
            audited.count(timings)
        return FinishedRun(outputs, timings, audited, passed_on, time.perf_counter() - started)

    def _answer(self, ask: Ask, ran: FinishedRun) -> None:
        """Give the result away. An audit has none."""
        self.check_peer()
        if self.outside is not None:
            self.outside.answer(ran.outputs, ask.turn.part, ask.revealed)
        if ran.audited is not None and ran.seconds > self.seconds:
            what = f"took {ran.seconds:.0f} seconds for a run, and gets no answer after {self.seconds:.0f}"
            raise PeerTimeout(self.client.peer, what, "ask on a faster network, or raise server.query_seconds")
        self._done(ask, ran)
        if ran.audited is not None:
            ran.audited.answer(ran.outputs)

    def _done(self, ask: Ask, ran: FinishedRun) -> None:
        self.notes.answered(ran.timings)
        report = {"online_s": ran.timings.online_s, "peak_rss_mb": ran.timings.peak_rss_mb}
        self.client.send_message({"done": ask.query, **report, **({"audited": True} if ran.is_audit else {})})

    def _find(self, ask: Ask) -> BackgroundTask[ServerTape] | None:
        """The correlations that the client asks for; None if the store lacks them and the client knows it."""
        coming, self._coming = self._coming, None
        if coming is not None and coming.ref == ask.store:
            return coming.task
        if ask.store is None:
            return self._deal(ask.query, ask.turn)
        work, reply = self._take(ask.store)
        if "spent" in reply:
            self.number += 1
        self.client.send_message(reply)
        return work

    def _skip(self, unless: PartRun | None = None) -> None:
        """The query that was announced or refused does not come (`unless` it is this one): neither its number nor the
        rows that it would keep are ever used."""
        expected, self._refused = self._refused if self._coming is None else self._coming.part_run, None
        if expected is None or expected == unless:
            return
        self._rows, self._block = min(self._rows, expected.rows), RunBlock()
        self._coming = None
        self.number += 1

    def _begin_next(self, ref: Ref | None, part_run: PartRun) -> dict:
        """Begin the next query's correlations, which the client has named; the reply to it."""
        if ref is None:
            if not self._waiting:  # the connection is needed for this query
                raise out_of_place(self.client)
            self._coming = self._live(part_run)
            return {"live": True}
        work, reply = self._take(ref)
        if work is not None:
            self._coming = Coming(ref, part_run, work)
        return reply

    def _live(self, part_run: PartRun) -> Coming[ServerTape]:
        return Coming(None, part_run, self._deal(self.number, part_run))

    def _deal(self, number: int, part_run: PartRun) -> BackgroundTask[ServerTape]:
        """Live correlations."""
        dealing, key, block, pace = self._dealt_to(), query_key(self.seed, number), self._block, self._pace

        def deal() -> ServerTape:
            if (left := block.take(part_run)) is not None:
                return ServerTape(pace.made(left), 0.0, {})
            started = time.perf_counter() - pace.waited  # where it waits for the present run, it makes none
            self.prepared.truncate(part_run.rows)
            tapes, dealt, audit_token = dealing.lead(number, key, part_run, self.prepared, pace)
            if self.store is not None:
                self.store.ledger.record(key, self.session, number)
            tape = block.fill(part_run, self.program.part(part_run.part), tapes)
            return ServerTape(pace.made(tape), time.perf_counter() - pace.waited - started, dealt, audit_token)

        return self._background.begin(deal, "correlations")

    def _dealt_to(self) -> Dealing:
        if self._dealing is None:
            remedy = "use the same version on both sides"
            raise PeerProtocolError(self.client.peer, "asked for correlations before it asked for live ones", remedy)
        return self._dealing

    def _take(self, ref: Ref) -> tuple[BackgroundTask[ServerTape] | None, dict]:
        """The correlations of the store that the client proposes, marked as used; and the reply to it."""
        if self.store is None:
            return None, Missing(False, None).message(ref)
        try:
            entry = answer_proposal(self.store, ref, self.program.hash(), self._stored_weights, self.client_id)
        except StoreError as error:
            return None, {"spent": self.number, "what": error.what}
        if isinstance(entry, Missing):
            return None, entry.message(ref)
        return self._load(self.store, entry), {"taken": ref.number}

    def _load(self, store: PreprocessingStore, entry: Entry) -> BackgroundTask[ServerTape]:
        def load() -> ServerTape:
            started = time.perf_counter()
            content = Replay(memoryview(store.fetch(entry)))
            replay = cast(Channel, content)
            (tape,) = self.served.lead(entry.key, replay, self.served.correlations())
            audit_token = receive_audit_token(replay, self.program)
            if not content.is_whole:
                raise StoreError("server", "the correlations are another program's; they are spent: ask again")
            return ServerTape(tape, time.perf_counter() - started, {}, audit_token)

        return self._background.begin(load, "store")

    def _precompute(self, count: int) -> None:
        """Preprocess `count` queries' correlations, one by one as the client keeps its part, until a party stops."""
        self._skip()
        try:
            if self.store is None:
                raise StoreError("server", "keeps no store; start it with one")
            if self.program.parts:
                raise StoreError("server", "makes the correlations of a conversation while it goes on, not ahead")
            dealing = self._dealt_to()
            if not self._begun:
                self.store.begin(self.session, self.program.hash(), self._stored_weights, self.client_id)
                self._begun = True
            with refusing(self.client):
                for _ in range(count):
                    number = self.number
                    self.store.room(price(self.program).dealt_bytes, self.client_id)
                    with self._slot(number):
                        work = self._store(self.store, dealing, number)
                        if self.dial_dealer is None:  # its masks are used now, whether it can be kept or not
                            self.number = number + 1
                        work.result(self._waiting, "correlations")
                    self.number = number + 1
                    self.client.send_message({"stored": number})
                    if "kept" not in receive_expected(self.client, ("kept", "stop")):
                        return
        except StoreError as error:
            self.client.send_message({"full": count, "what": error.what})

    def _store(self, store: PreprocessingStore, dealing: Dealing, number: int) -> BackgroundTask[None]:
        frames = dealing.frames(number)

        def write() -> None:
            try:
                store.add(self.session, number, query_key(self.seed, number), frames)
            finally:
                for _ in frames:  # the dealer's stream comes to its end even if the disk took only a part of it
                    pass

        return self._background.begin(write, "store")
