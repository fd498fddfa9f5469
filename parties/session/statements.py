"""How the parties of a session vouch for it: what each notes as it goes on, and how signed statements travel.

    client -> server   {"receipt": true}, between two queries
    server -> dealer   {"receipt": true}; the dealer answers with its statement
    server -> client   {"receipt": true}, then its own statement and the dealer's

With a helper, the client asks the helper, which asks the server and adds its own. Statements travel in frames of one
size, whatever they say. What a party spent is read once for each number of answered queries, so that whoever asks
again does not meter the load of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...models.program.two_server import is_for_two_servers
from ...protocols.channel import Channel, Meter
from ...protocols.errors import PeerProtocolError
from ...versions import spoken_version
from ..receipts.statement import (
    BytesByKind,
    Consumption,
    PartyStatement,
    ReceiptError,
    SessionFacts,
    SignedStatement,
    Signer,
    Spending,
    canonical,
)
from .messages import SAME_VERSION, Waiting, out_of_place, receive_expected
from .online import Timings, total

FRAME_BYTES, STATEMENT_BYTES = 32768, 8192
MOST = 3  # statements at once: of server, dealer and helper
REQUEST = {"receipt": True}
_STATEMENTS = TypeAdapter(tuple[SignedStatement, ...])


@dataclass
class SessionNotes:
    """What a party notes of a session. `program`, `topology`: what the hello names; `rounds`: the traffic of all online
    phases; `correlations`: what server and client sent each other of these."""

    program: Any
    session: str
    spending: Spending = field(default_factory=Spending)
    topology: str = "dealer"
    queries: int = 0
    audits: int = 0
    rounds: Meter = field(default_factory=Meter)
    correlations: Meter = field(default_factory=Meter)
    _read: tuple[int, Consumption] | None = None

    def spent(self) -> Consumption:
        """As it was at the first call after the last answer."""
        if self._read is None or self._read[0] != self.queries:
            self._read = self.queries, self.spending.so_far()
        return self._read[1]

    def answered(self, timings: Timings) -> None:
        self.audits += timings.audits
        self.queries += not timings.audits
        self.rounds = total([self.rounds, timings.online])

    def passed_on(self, **bytes: int) -> None:
        self.correlations = total([self.correlations, Meter(**bytes)])

    def facts(self, *channels: Channel, bytes: Sequence[BytesByKind], weights: str = "") -> SessionFacts:
        """`channels`: to the peers, whose certificates are named; `bytes`: of `by_kind`, `in_all`."""
        shown = {channel.peer: getattr(channel, "certificate", None) for channel in channels}
        certificates: Any = {
            peer: certificate.fingerprint for peer, certificate in shown.items() if certificate is not None
        }
        return SessionFacts(
            session=self.session,
            blindformer=spoken_version(),
            program=self.program.hash(),
            weights=weights,
            queries=self.queries,
            certificates=certificates,
            bytes=tuple(bytes),
            **self.about(),
        )

    def about(self) -> dict[str, Any]:
        """Fields of SessionFacts: what the protocol is and verifies. A session in which a check fails ends."""
        return {
            "topology": "helper" if is_for_two_servers(self.program) else self.topology,
            "plan": self.program.plan,
            "verify": "audits" if self.program.audits else "none",
            "passed": True if self.audits else None,
        }

    def by_kind(self, channel: Channel, weights: Meter) -> list[BytesByKind]:
        """The traffic with a peer that rounds are run with, so far. `weights`: of masked weights."""
        kinds = {"weights": weights, "rounds": self.rounds}
        if self.correlations != Meter():
            kinds["correlations"] = self.correlations
        rest = channel.meter.since(total(kinds.values()))
        return [_row(channel, kind, meter) for kind, meter in {**kinds, "messages": rest}.items()]


def in_all(channel: Channel, kind: str) -> BytesByKind:
    """All traffic of a channel so far, as one kind."""
    return _row(channel, kind, channel.meter)


def _row(channel: Channel, kind: Any, meter: Meter) -> BytesByKind:
    peer: Any = channel.peer
    return BytesByKind(peer=peer, kind=kind, sent=meter.sent, received=meter.received)


def able_to_sign(signer: Signer | None, peer: Channel) -> Signer:
    """Errors: `PeerProtocolError` for a peer that asks where no party has certificates."""
    if signer is None:
        raise PeerProtocolError(peer.peer, "asked for a receipt where no party has a certificate", SAME_VERSION)
    return signer


def sign(signer: Signer, party: Any, notes: SessionNotes, facts: SessionFacts) -> SignedStatement:
    """This party's statement."""
    return signer.sign(PartyStatement(party=party, spent=notes.spent(), facts=(facts,)))


def vouch_as_server(
    client: Channel,
    dealer: Channel | None,
    background: Any,
    signer: Signer | None,
    notes: SessionNotes,
    sent: Meter,
    weights: str,
) -> None:
    """Sign what the server knows of the session so far; the dealer's own statement goes with it. `background`: a
    TaskQueue, the dealer's; `sent`: masked weights; `weights`: as of SessionFacts."""
    signing = able_to_sign(signer, client)  # before the dealer is asked
    bytes = notes.by_kind(client, sent)
    dealt: tuple[SignedStatement, ...] = ()
    if dealer is not None:  # after the client's traffic: signs of life may come between
        asked = background.begin(partial(_dealt, dealer), "receipt")
        row, dealt = asked.result([client], "receipt")
        bytes.append(row)
    channels = [client, *([] if dealer is None else [dealer])]
    facts = notes.facts(*channels, bytes=bytes, weights=weights)
    send_statements(client, [sign(signing, "server", notes, facts), *dealt])


def _dealt(dealer: Channel) -> tuple[BytesByKind, tuple[SignedStatement, ...]]:
    """The server's traffic with the dealer so far, and what the dealer signs."""
    dealer.send_message(REQUEST)
    return in_all(dealer, "correlations"), receive_statements(dealer, most=1)


def vouch_as_dealer(server: Channel, signer: Signer | None, notes: SessionNotes) -> None:
    facts = notes.facts(server, bytes=[in_all(server, "correlations")])
    send_statements(server, [sign(able_to_sign(signer, server), "dealer", notes, facts)])


def vouched_for(
    server: Channel, notes: SessionNotes, received: Meter, weights: str, dealt: bool, waiting: Waiting | None
) -> tuple[SessionFacts, tuple[SignedStatement, ...]]:
    """The session as its client saw it, and the others' statements. `received`: masked weights; `dealt`: the dealer
    has to have one. Errors: PeerError."""
    server.send_message(REQUEST)
    facts = notes.facts(server, bytes=notes.by_kind(server, received), weights=weights)
    statements = receive_statements(server, waiting, most=2)
    if dealt and "dealer" not in [one.statement.party for one in statements]:
        raise PeerProtocolError(server.peer, "sent no statement of the dealer", SAME_VERSION)
    return facts, statements


def send_statements(channel: Channel, statements: Sequence[SignedStatement]) -> None:
    content = b"[" + b",".join(map(canonical, statements)) + b"]"
    if len(content) > FRAME_BYTES:  # of this party's own; those of others were bounded
        raise ReceiptError("receipt: this party's certificate is too long for one; use a shorter certificate")
    channel.send_message(REQUEST)
    channel.send(content.ljust(FRAME_BYTES))


def receive_statements(
    channel: Channel, waiting: Waiting | None = None, most: int = MOST
) -> tuple[SignedStatement, ...]:
    """After REQUEST. Errors: `PeerError`."""
    receive_expected(channel, ("receipt",), waiting)
    try:
        statements = _STATEMENTS.validate_json(bytes(channel.recv(FRAME_BYTES)))
    except ValidationError:
        raise out_of_place(channel) from None
    if not 0 < len(statements) <= most or any(len(canonical(one)) > STATEMENT_BYTES for one in statements):
        raise out_of_place(channel)
    return statements
