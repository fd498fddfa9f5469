"""Topology `helper`: a second server, which must not collude with the first, plays P1 for data owners.

    OwnerParty    the data owner: splits its values, a seed to one server, a tensor to the other; adds answers. It needs
                  no masked weights and no correlations
    HelperParty   the helper: a client's session whose sources are the shares that it receives
    OwnerShares   the server: receives the owner's shares, and sends the owner its answer shares

The server has two processes for one session, the helper's and the owner's: service/helper.py.

    owner  -> server, helper   hello, with the session's id, which the owner draws
    helper -> server, dealer   hello, with the same id, then all that a client does (session/)
    helper -> owner            {"open"}: set-up is done
    a query  owner -> helper   {"query": k}
             helper, server    admission and correlations; meanwhile helper -> owner {"waiting"}, or {"busy"}
             helper -> owner   {"ready": k}: only now do shares leave the owner, never for a query that is turned away
             owner -> helper   a fresh seed         owner -> server   its shares, one tensor
             helper <-> server the rounds of the program
             helper, server -> owner  their shares of the answer

Both servers see uniform shares and masked openings; the owner sees a fresh sharing of its answer and nothing else.
Helper and server together see everything: they must be run by parties that do not work together.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from ...models.program.pricing import price
from ...models.program.program import Program
from ...models.program.two_server import answer_layout, for_two_servers, input_layout
from ...protocols.beaver.owner import Layout, join, layout_bytes, pack_shares, seed_shares, split, unpack_shares
from ...protocols.channel import Channel, Meter
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError
from ...protocols.operations.reveal import RevealedRows
from ...protocols.streams import new_seed
from ..receipts.statement import SessionFacts, SignedStatement
from ..transport.handshake import Address, abort, meet, new_session
from .masked_weights import PublicPart, constants_of
from .messages import (
    ONE_RUN,
    Announce,
    ComputeSlots,
    Handed,
    PartRun,
    Runs,
    Seed,
    Shares,
    SlotsBusy,
    Unlimited,
    Waiting,
    amount,
    goodbye,
    read,
    read_number,
    receive_expected,
    receive_for_query,
    refusing,
    requests,
)
from .online import Answer, OnQuery, Progress, QueryingParty, Timings, check_runs, peak_rss_mb, rows_of_a_run
from .preprocessed import BackgroundTask
from .rendezvous_two import my_hello
from .statements import REQUEST, SessionNotes, able_to_sign, in_all, receive_statements, send_statements, sign
from .two_party_client import ClientParty

REPORTED = ("helper_offline_s", "helper_online_s", "helper_peak_rss_mb", "server_offline_s", "server_online_s",
            "server_peak_rss_mb", "dealer_s", "dealer_peak_rss_mb")  # fmt: skip


class OwnerParty(QueryingParty):
    """The data owner in one session with `server` and `helper`.

    `program`: the one of two servers (models/program/two_server.py). `waiting` gets the helper's messages while this
    side waits: {"waiting": place in a queue}. `counts`: the server counts queries, before anything else is sent.

    Errors: `PeerError` ends the session; both servers get the reason. `SlotsBusy` and `LimitReached` end the query
    before any share is sent: ask again.
    """

    def __init__(
        self,
        program: Program,
        server: Channel,
        helper: Channel,
        *,
        waiting: Waiting | None = None,
        counts: bool = False,
        session: str = "",
    ) -> None:
        self.program, self.server, self.helper, self.waiting = program, server, helper, waiting
        self.counts, self.notes = counts, SessionNotes(program, session)
        self.number = 0  # of the next query
        self.helper_setup_bytes = 0

    def set_up(self, progress: Progress | None = None) -> None:
        """Wait until the helper has met server and dealer."""
        self.helper_setup_bytes = int(amount(receive_expected(self.helper, ("open",), self.waiting), "setup_bytes"))

    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        runs: Runs = ONE_RUN,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        # This side has no use for `constants`.
        try:
            return self._query(sources, progress, Handed(more=more, **dict(runs)))
        except PeerError as error:
            abort([self.helper, self.server], error)
            raise

    def announce(self, part_run: PartRun) -> None:
        self.helper.send_message(Announce(announce=self.number, turn=part_run).model_dump())

    def vouched(self) -> tuple[SessionFacts, tuple[SignedStatement, ...]]:
        self.helper.send_message(REQUEST)
        rows = [in_all(channel, "messages") for channel in (self.server, self.helper)]
        facts = self.notes.facts(self.server, self.helper, bytes=rows)
        return facts, receive_statements(self.helper, self.waiting)

    def close(self) -> None:
        for channel in (self.helper, self.server):
            goodbye(channel)
            channel.close()

    def _query(self, sources: Mapping[str, Tensor], progress: Progress | None, handed: Handed) -> Answer:
        number, started, program = self.number, time.perf_counter(), self.program.part(handed.turn.part)
        before = (self.server.meter.snapshot(), self.helper.meter.snapshot())
        shares = Shares(query=number, part=handed.turn.part, revealed=handed.revealed)
        if self.counts:
            self.server.send_message({"count": shares.message()})
            self._expect(self.server, "counted", number)
        self.helper.send_message({"query": number, **handed.message()})
        self._expect(self.helper, "ready", number)
        offline, started = time.perf_counter() - started, time.perf_counter()
        self._send_shares(sources, shares)
        self.number += 1
        if progress:
            progress("online", 1, 2)
        layout = answer_layout(program, handed.revealed)
        report, theirs = self._receive(self.helper, number, layout)
        _, ours = self._receive(self.server, number, layout)
        if progress:
            progress("online", 2, 2)
        traffic = [channel.meter.since(then) for channel, then in zip((self.server, self.helper), before, strict=True)]
        timings = Timings(
            offline_s=offline,
            online_s=time.perf_counter() - started,
            rounds=int(amount(report, "rounds")),
            online=Meter(sent=sum(m.sent for m in traffic), received=sum(m.received for m in traffic)),
            offline_bytes=price(program).offline_bytes,
            peak_rss_mb=peak_rss_mb(),
        )
        self.notes.answered(timings)
        return Answer(join((ours, theirs), layout), timings, {name: amount(report, name) for name in REPORTED})

    def _send_shares(self, sources: Mapping[str, Tensor], shares: Shares) -> None:
        """Send the tensor to the server, the seed to the helper. Each query has a seed of its own."""
        seed, inputs = new_seed(), input_layout(self.program.part(shares.part))
        self.server.send_message(shares.message())
        self.server.send(pack_shares(split(sources, seed, inputs), inputs))
        self.helper.send_message({"seed": seed.hex()})

    def _receive(
        self, channel: Channel, number: int, layout: Layout | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        reply, layout = self._expect(channel, "answer", number), layout or answer_layout(self.program)
        return reply, unpack_shares(channel.recv(layout_bytes(layout)), layout)

    def _expect(self, channel: Channel, name: str, number: int) -> dict[str, Any]:
        return receive_for_query(channel, name, number, self.waiting)


def ask_two_servers(
    program: Program,
    context: ssl.SSLContext,
    server: Address,
    helper: Address,
    timeout: float,
    *,
    config: str = "",
    waiting: Waiting | None = None,
) -> OwnerParty:
    """Dial both servers and open a session. `program`: the compiled one, or handed over already.

    `config`: Settings.shared_hash(). Errors: `PeerError`, `SlotsBusy`; a server that was reached gets the reason.
    """
    program = for_two_servers(program)
    mine = my_hello(program, "client", new_session(), config=config)
    met = [meet(server, context, "server", mine, timeout)]
    try:
        counts = receive_expected(met[0], ("open",)).get("counts") is True
        met.append(meet(helper, context, "helper", mine, timeout))
        party = OwnerParty(program, *met, waiting=waiting, counts=counts, session=mine.session)
        party.set_up()
    except PeerError as error:
        abort(met, error)
        raise
    except SlotsBusy:
        for channel in met:
            channel.close()
        raise
    return party


class OwnerShares:
    """The source of `ServerParty`'s input shares, and the sink of its result shares (`outside`).

    `owner`: the owner's own channel, or one to the process that holds it (`relay`). The owner sends shares once for
    each query that both servers are ready for, so this side counts queries by itself.
    """

    def __init__(self, owner: Channel, program: Program) -> None:
        self.owner, self.program = owner, program
        self._count = 0

    def shares(self, part: str = "", revealed: RevealedRows | None = None) -> Mapping[str, Tensor]:
        """This party's shares of a query's inputs, by name. `part`, `revealed`: as the helper says.

        Errors: those of the channel; `PeerProtocolError`.
        """
        message, layout = self.owner.recv_message(), input_layout(self.program.part(part))
        if read(self.owner, Shares, message) != Shares(query=self._count, part=part, revealed=revealed):
            raise PeerProtocolError(self.owner.peer, "sent no shares for this query", "open a new session")
        return unpack_shares(self.owner.recv(layout_bytes(layout)), layout)

    def answer(self, shares: Mapping[str, Tensor], part: str = "", revealed: RevealedRows | None = None) -> None:
        """Send the owner this party's shares of the results, by output name."""
        self.owner.send_message({"answer": self._count})
        self.owner.send(pack_shares(shares, answer_layout(self.program.part(part), revealed)))
        self._count += 1


T = TypeVar("T")


class HelperParty:
    """Answers one owner's queries with `party`, a client's end of a session on the handed-over program. `model`: the
    public numbers of its parts, if it has several.

    Errors of `set_up` and `serve`: `PeerError`, and whatever ends a client's session.
    """

    def __init__(
        self, owner: Channel, party: ClientParty, admission: ComputeSlots | None = None, model: PublicPart | None = None
    ) -> None:
        self.owner, self.party, self.admission = owner, party, admission or Unlimited()
        self.model = model
        self._rows = 0  # kept by queries that were run
        self._place = 0  # in the server's queue
        party.waiting = self._waiting

    def set_up(self) -> None:
        """Open a session as a client does, while the owner waits."""
        self._meanwhile(self.party.set_up)
        self.owner.send_message({"open": True, "setup_bytes": self.party.setup_bytes})

    def serve(self, on_query: OnQuery | None = None, idle: float | None = None) -> None:
        """Answer queries until the owner says goodbye. `idle`: seconds it may be silent between two of them."""
        expected = 0
        for message in requests(self.owner, idle):
            if message == REQUEST:
                self._vouch()
                continue
            if "announce" in message:
                part_run = read(self.owner, Announce, message).turn
                check_runs(self.owner, self.party.program, self._rows, part_run)
                self._meanwhile(lambda part_run=part_run: self.party.announce(part_run))
                continue
            number = read_number(self.owner, message, "query", expected, expected)
            handed = read(self.owner, Handed, {name: value for name, value in message.items() if name != "query"})
            expected += self._query(number, handed, on_query)

    def close(self) -> None:
        self.party.close()
        self.owner.close()

    def _vouch(self) -> None:
        """The statements of server and dealer, and this side's own."""
        mine, notes = in_all(self.owner, "messages"), self.party.notes
        seen, theirs = self._meanwhile(self.party.vouched)
        facts = notes.facts(self.owner, self.party.server, bytes=[*seen.bytes, mine], weights=seen.weights)
        send_statements(
            self.owner, [*theirs, sign(able_to_sign(self.party.signer, self.owner), "helper", notes, facts)]
        )

    def _query(self, number: int, handed: Handed, on_query: OnQuery | None) -> bool:
        """False if a server has no free slot: the owner has sent no share yet, and may ask again."""
        part_run, following = handed.turn, (handed.following,) if handed.more else ()
        check_runs(self.owner, self.party.program, self._rows, part_run, *following, revealed=handed.revealed)
        constants = None if self.model is None else constants_of(self.model, part_run.part, part_run.rows)
        program = self.party.program.part(part_run.part)
        waiting = lambda place: self.owner.send_message({"waiting": place})  # noqa: E731
        with refusing(self.owner), self.admission.slot(number, waiting):
            agreed = self._meanwhile(lambda: self.party.agree(handed.more, handed))
            shares = self._fetch(number, program)
            answer = self._meanwhile(lambda: self.party.run(agreed, shares, constants=constants))
            self._rows = part_run.rows + rows_of_a_run(program)
            self.owner.send_message({"answer": number, **_report(answer)})
            self.owner.send(pack_shares(answer.outputs, answer_layout(program, handed.revealed)))
            if on_query:
                on_query(number, answer.timings)
            return True
        return False

    def _fetch(self, number: int, program: Program) -> Mapping[str, Tensor]:
        """Both servers are ready: now the owner sends its shares; this side's is a seed."""
        self.owner.send_message({"ready": number})
        message = self.owner.recv_message()
        if message.get("bye"):
            raise PeerGone(self.owner.peer, "left before it sent its shares", "see its own message")
        seed = read(self.owner, Seed, message).seed
        return seed_shares(bytes.fromhex(seed), input_layout(program))

    def _meanwhile(self, work: Callable[[], T]) -> T:
        """Do `work` while the owner gets heartbeats. If the owner is gone, the work is broken off."""
        self._place, job = 0, BackgroundTask(work, "helper")
        try:
            while not job.join(self.owner.timeout / 3):
                self.owner.send_message({"waiting": self._place})
        except PeerError:
            self.party.server.interrupt()
            job.join(None)
            raise
        return job.result([self.owner], "")

    def _waiting(self, message: dict[str, Any]) -> None:
        self._place = int(amount(message, "queued"))


def _report(answer: Answer) -> dict[str, float]:
    """The report of a query to the owner, for display."""
    timings = answer.timings
    mine = {
        "rounds": timings.rounds,
        "helper_offline_s": timings.offline_s,
        "helper_online_s": timings.online_s,
        "helper_peak_rss_mb": timings.peak_rss_mb,
    }
    return {**answer.others, **mine}
