"""Audits: how a server finds a client that sends other messages than the protocol does (topology `dealer`).

Some runs of a query are audits. In an audit the server knows all of the client's masks, so it computes each message
that the client has to send, and compares. Only the dealer, which draws them, and the server know which runs are audits;
the client learns it when the run is over. So whoever changes a message, in any way, is found with the probability
`Program.audits`, before an answer is given for it.

    client -> server    X - r                    masked values, for this run alone; r: the client's key stream
    dealer -> server    a run for an answer:     r - y, so that (X - r) + (r - y) and y share X
                        an audit:                the key of all of the client's masks but r: of y, too
    client, server      the run. In an audit X - r and y share a number that means nothing
    server              an audit: runs the client's part on y, and compares all frames
    server -> client    {"done"}, and its share of the answer; or {"done", "audited"}: the client asks again

Both cards of the dealer have the same size, and neither side does anything else before the run is over. The program is
that of two servers (models/program/two_server.py): the client's values come in as shares, and its share of the answer
stays with the server until then. What each learns, and against whom this holds: docs/protocol.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...models.program.correlations import Correlations
from ...models.program.interpreter import interpret
from ...models.program.program import Program
from ...models.program.two_server import answer_layout, audit_traffic, input_layout
from ...protocols.beaver.engine import OnlineEngine
from ...protocols.beaver.owner import Layout, join, layout_bytes, pack_shares, seed_shares, split, unpack_shares
from ...protocols.beaver.point_function import take_keys
from ...protocols.beaver.values import Tape
from ...protocols.channel import Buffer, Channel, Frames, Meter
from ...protocols.errors import PeerDeviated, PeerProtocolError
from ...protocols.ring import Ring
from ...protocols.rounds import over_channel
from ...protocols.streams import SEED_BYTES, Stream
from .masked_weights import Served, constants_of
from .messages import ONE_RUN, SAME_VERSION, Runs
from .online import Answer, Progress, Timings, added, total
from .preprocessed import BackgroundTask, masks
from .two_party_client import Agreed, ClientParty

_AUDIT, _ANSWER = b"\1", b"\0"
_BANNED = "it gets no answers here under this certificate's name"

Draw = Callable[[float], bool]  # of a rate


def is_drawn(rate: float) -> bool:
    """True with the probability `rate`, by the system's randomness."""
    return secrets.randbelow(1 << 53) < rate * (1 << 53)


def input_shares(stream: Stream, program: Program) -> dict[str, Tensor]:
    """y: the client's shares of a run's inputs."""
    return {name: stream.integers(f"input {name}", shape) for name, (shape, _) in input_layout(program).items()}


# The dealer.


def draw_audit_token(program: Program, key: bytes, draw: Draw = is_drawn) -> bytes:
    """What the dealer says of a run. `key`: the client's, of this query."""
    layout, stream = input_layout(program), masks(key)
    outer, inner = seed_shares(key, layout), input_shares(stream, program)
    corrections = pack_shares({name: outer[name] - inner[name] for name in layout}, layout)
    audit_token = _AUDIT + stream.key if draw(program.audits) else _ANSWER + bytes(corrections)
    return audit_token.ljust(audit_traffic(program).audit_token, b"\0")


@dataclass(frozen=True)
class AuditToken:
    """What the server knows of a run. It is not looked at before the run: how long it takes to read is nothing that a
    client could tell audits by."""

    content: bytearray

    @property
    def key(self) -> bytes | None:
        """Of the client's masks, in an audit."""
        return bytes(self.content[1 : 1 + SEED_BYTES]) if self.content[:1] == _AUDIT else None

    def corrections(self, layout: Layout) -> dict[str, Tensor]:
        """Of the inputs: in an audit zeros, which take as long."""
        times = 0 if self.key else 1
        content = unpack_shares(self.content[1 : 1 + layout_bytes(layout)], layout)
        return {name: times * numbers for name, numbers in content.items()}


def receive_audit_token(dealer: Frames, program: Program) -> AuditToken | None:
    """None for a program without audits. Errors: those of the channel."""
    return AuditToken(dealer.recv(audit_traffic(program).audit_token)) if program.audits else None


# The server.


class RecordedFrames:
    """A channel's frames, of which copies are kept: those of all runs, so that an audit takes no longer."""

    def __init__(self, channel: Frames) -> None:
        self._channel = channel
        self.sent, self.received = list[bytes](), list[bytes]()

    def send(self, data: Buffer) -> None:
        self.sent.append(bytes(data))
        self._channel.send(data)

    def recv(self, size: int) -> bytearray:
        return self._keep(self._channel.recv(size))

    def exchange(self, data: Buffer, size: int) -> bytearray:
        self.sent.append(bytes(data))
        return self._keep(self._channel.exchange(data, size))

    def _keep(self, frame: bytearray) -> bytearray:
        self.received.append(bytes(frame))
        return frame


class _Repeated:
    """The client's end of recorded frames: it receives what was sent to it, and must send what it sent.

    Errors: PeerDeviated, which does not say where.
    """

    def __init__(self, recorded: RecordedFrames, peer: str) -> None:
        self._to_client, self._from_client = iter(recorded.sent), iter(recorded.received)
        self._peer = peer

    def send(self, data: Buffer) -> None:
        if next(self._from_client, None) != data:
            raise PeerDeviated(self._peer, "sent a message that the protocol does not send, as an audit shows", _BANNED)

    def recv(self, size: int) -> bytearray:
        return bytearray(next(self._to_client))

    def exchange(self, data: Buffer, size: int) -> bytearray:
        self.send(data)
        return self.recv(size)


class AuditedRun:
    """One run at the server: the client's inputs, all frames, and what becomes of the server's share of the answer."""

    def __init__(self, audit_token: AuditToken, tape: Tape, served: Served, client: Channel) -> None:
        """`tape`: the server's, of this run."""
        self.audit_token, self.served, self.client = audit_token, served, client
        self.program = served.program
        self._dealt = {key: tape.look(key).cpu() for key in Correlations(self.program).products()}
        self.frames = RecordedFrames(client)

    @property
    def is_audit(self) -> bool:
        return self.audit_token.key is not None

    def shares(self) -> Mapping[str, Tensor]:
        """This party's shares of the run's inputs. Errors: those of the channel."""
        layout = input_layout(self.program)
        masked = unpack_shares(self.client.recv(layout_bytes(layout)), layout)
        corrections = self.audit_token.corrections(layout)
        return {name: masked[name] + corrections[name] for name in layout}

    def check(self, passed_on: bytearray) -> None:
        """After an audit. `passed_on`: of the correlations. Nothing that the client does now keeps it from being found.

        Errors: PeerDeviated if the client has changed anything, or the check fails: only one that came to its end is
        passed. PeerError if the client is gone.
        """

        def compare() -> None:
            try:
                self._compare(passed_on)
            except PeerDeviated:
                raise
            except Exception as error:
                what = f"has sent a run that an audit cannot check ({type(error).__name__})"
                raise PeerDeviated(self.client.peer, what, _BANNED) from error

        work = BackgroundTask(compare, "audit")
        try:
            work.result([self.client], "check")
        except BaseException:  # the client is gone, or the server stops
            work.result((), "check")
            raise

    def _compare(self, passed_on: bytearray) -> None:
        assert self.audit_token.key is not None
        program, served = self.program, self.served
        stream = Stream.of_key(self.audit_token.key)
        tape = Correlations(program).audit(stream, served.weights, self._dealt)
        take_keys(tape, passed_on, keep=False)
        values, constants = input_shares(stream, program), constants_of(served, "", 0)
        engine = OnlineEngine("client", tape, Ring(program.ring), values, constants)
        interpret(program, engine, over_channel(_Repeated(self.frames, self.client.peer)))

    def answer(self, outputs: Mapping[str, Any]) -> None:
        """Send this party's share."""
        self.client.send(pack_shares(outputs, answer_layout(self.program)))

    def count(self, timings: Timings) -> None:
        """Add what travels around the rounds; an audit has no answer."""
        more = run_traffic(self.program, self.is_audit)
        timings.online = total([timings.online, Meter(sent=more.received, received=more.sent)])
        timings.rounds += not self.is_audit
        timings.audits += self.is_audit


def run_traffic(program: Program, is_audit: bool) -> Meter:
    """Bytes at the client, beside those of the rounds."""
    traffic = audit_traffic(program)
    return Meter(sent=traffic.values, received=0 if is_audit else traffic.answer)


MOST_IN_A_ROW = 256  # audits of one query: at the highest rate, more come once in 2^106 queries


class AuditedClient(ClientParty):
    """A client of a server that audits. Whoever asks notices nothing but the time that audits take."""

    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        runs: Runs = ONE_RUN,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        spent: list[Answer] = []  # in audits, and in the run that gives the answer
        while len(spent) < MOST_IN_A_ROW:
            spent.append(super().query(sources, progress, more, runs, constants))
            if not spent[-1].timings.audits:
                return added(spent)
        raise PeerProtocolError(self.server.peer, "says of all runs that they were audits", SAME_VERSION)

    def _enter(self, agreed: Agreed, sources: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        layout = input_layout(self.program)
        self.server.send(pack_shares(split(sources, agreed.key, layout), layout))
        return input_shares(masks(agreed.key), self.program)

    def _leave(self, outputs: dict[str, Any], done: Mapping[str, Any], timings: Timings) -> dict[str, Any]:
        audited, layout = done.get("audited") is True, answer_layout(self.program)
        timings.online = total([timings.online, run_traffic(self.program, audited)])
        timings.rounds += not audited
        timings.audits += audited
        if audited:
            return {}
        return join((unpack_shares(self.server.recv(layout_bytes(layout)), layout), outputs), layout)


def client_kind(program: Program) -> type[ClientParty]:
    """The client of a program with audits, or without."""
    return AuditedClient if program.audits else ClientParty
