"""A receipt: the statements of a session's parties, put together by the client, and what they cost by its price list.

It is in the form that `text` writes, to the byte, and `check` finds every byte that was changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from cryptography import x509
from pydantic import ValidationError

from ...files import whole_file
from ...models.program.program import Program
from ...protocols.errors import writing
from ...versions import versions
from ..certificates.tls_folder import fingerprint, issued_by, load_certificate, role_in
from ..config import PricesSection, load_settings
from ..transport.frames import printable
from .statement import (
    ClientStatement,
    Consumption,
    Hex,
    PartyCost,
    PartyStatement,
    ReceiptError,
    Record,
    SessionFacts,
    SignedStatement,
    Signer,
    StatedPrices,
    der,
)

ADVERSARY = "semi-honest: every party follows the protocol, and no two of them collude"
AUDITED = (
    "semi-honest server and dealer; covert client: each run in which it changes a message is found with a probability"
)
SHOWN = ("released", "revealed")  # to the client, of all sessions
BY_PARTY = ("cpu_hour", "gb")  # of the prices
APART = 1800  # seconds between two clocks, and what it takes to ask all parties
PEERS: dict[str, dict[str, set[str]]] = {
    "dealer": {"client": {"server"}, "server": {"client", "dealer"}, "dealer": {"server"}},
    "helper": {
        "client": {"server", "helper"},
        "server": {"helper", "dealer"},  # another process of it takes the client's shares
        "helper": {"client", "server"},
        "dealer": {"server"},
    },
    "pair": {"client": {"server"}, "server": {"client"}},
}
"""Whom each party names and counts bytes with, by topology. The dealer speaks only where it dealt."""
Prices = PricesSection | Mapping[str, Any] | None


@dataclass(frozen=True)
class VouchedSession:
    """A session as its client saw it (`facts`, `spent`), and what the others signed. `stated`: model, plan, protocol,
    adversary, released and revealed, as of ClientStatement."""

    stated: Mapping[str, Any]
    facts: SessionFacts
    others: tuple[SignedStatement, ...]
    spent: Consumption
    signer: Signer


class Receipt(Record):
    """`own`: the statement of whoever issued it; `others`: those of server, dealer and helper; `ca`: their CA's
    certificate, DER."""

    version: Literal[1] = 1
    own: SignedStatement
    others: tuple[SignedStatement, ...] = ()
    ca: Hex

    def text(self) -> str:
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n"

    def save(self, file: str | Path) -> None:
        """Errors: BlindformerError."""
        with writing(Path(file), "choose another file"), whole_file(Path(file), 0o644) as stream:
            stream.write(self.text().encode())

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Errors: ReceiptError, naming the field that is wrong."""
        try:
            content = Path(file).read_bytes()
            receipt = cls.model_validate_json(content)
        except OSError as error:
            raise ReceiptError(f"{file}: cannot be read ({error.strerror}); name a receipt's file") from None
        except ValidationError as error:
            fault = error.errors()[0]
            words = [str(word) for word in fault["loc"]]  # pydantic names the kind of a statement, too
            way = [word for word, before in zip(words, ["", *words], strict=False) if before != "statement"]
            raise _wrong(printable(".".join(way), 80) or "the file", printable(fault["msg"], 80)) from None
        if receipt.text().encode() != content:
            raise _wrong("the file", "is not in the form that it was written in")
        return receipt

    def check(self, ca: str | Path | None = None) -> None:
        """Verify signatures, certificates, and that all statements agree. `ca`: the file of the CA that is trusted;
        without one, the receipt's own. Errors: ReceiptError, naming the field; CertificateError for `ca`."""
        authority, own = _certificate("ca", self.ca), self.own.statement
        if ca is not None and load_certificate(Path(ca)) != authority:
            raise ReceiptError(
                f"receipt: ca: is not the certificate in {ca}; give the CA of these parties, or ask them which it is"
            )
        if not issued_by(authority, authority):
            raise _wrong("ca", "is no CA's certificate")
        if not isinstance(own, ClientStatement) or any(
            not isinstance(one.statement, PartyStatement) for one in self.others
        ):
            raise _wrong("own.statement.kind", "is not that of a receipt")
        if own.ca != self.authority:
            raise _wrong("own.statement.ca", "is not the fingerprint of ca")
        named = [("own", self.own), *((f"others.{place}", one) for place, one in enumerate(self.others))]
        for place, one in named:
            _certificate(f"{place}.certificate", one.certificate)
        for parties in _seen(self.own, self.others):  # first, for what disagrees has a name
            _check_peers(parties)
            _check_agreement(parties)
        for place, one in named:
            _check_signed(place, one, authority)
        others = [one.digest for one in self.others]
        if list(own.others) != others:
            raise _wrong("own.statement.others", "are not the digests of the other statements")
        if own.costs != costs_of(self.statements, own.prices):
            raise _wrong("own.statement.costs", "do not follow from the statements and the prices")

    @property
    def authority(self) -> str:
        """The CA's fingerprint."""
        return fingerprint(_certificate("ca", self.ca))

    @property
    def undealt(self) -> list[str]:
        """The client's sessions of which no dealer vouches."""
        dealt = {one.statement.facts[0].session for one in self.others if one.statement.party == "dealer"}
        facts = [one for one in self.own.statement.facts if "dealer" in PEERS[one.topology]]
        return [one.session for one in facts if one.session not in dealt]

    @property
    def statements(self) -> list[Any]:
        return [self.own.statement, *(one.statement for one in self.others)]


def issue(sessions: Sequence[VouchedSession], prices: Prices = None) -> Receipt:
    """The receipt of a client's sessions. Errors: ReceiptError, also where the other parties' statements do not agree
    with what this side saw."""
    if not sessions:
        raise ReceiptError("receipt: no session is open; ask something first")
    first, signer = sessions[0], sessions[0].signer
    others = tuple(signed for one in sessions for signed in one.others)
    fields: dict[str, Any] = {
        "spent": max((one.spent for one in sessions), key=lambda spent: spent.cpu_ms),  # of one process
        "facts": tuple(one.facts for one in sessions),
        "others": tuple(one.digest for one in others),
        **first.stated,
        **{name: tuple(sorted({one for each in sessions for one in each.stated[name]})) for name in SHOWN},
        "versions": versions(),
    }
    return _issued(fields, signer, others, prices)


def stated(program: Program) -> dict[str, Any]:
    """What a client states of a program that runs in sessions of its own."""
    programs = (program.parts or {"": program}).values()
    return {
        "model": program.model,
        "adversary": f"{AUDITED} of {program.audits:g}; no two collude" if program.audits else ADVERSARY,
        "released": [name for part in programs for name in part.all_released()],
        "revealed": [name for part in programs for name in part.outputs],
    }


def _issued(fields: Mapping[str, Any], signer: Signer, others: tuple[SignedStatement, ...], prices: Prices) -> Receipt:
    checked = checked_prices(prices)
    try:
        draft = ClientStatement(**fields, ca=fingerprint(signer.authority), prices=checked, costs=())
    except ValidationError as error:
        raise ReceiptError(f"receipt: {error.errors()[0]['loc'][0]}: cannot be written in one; there is none") from None
    costs = costs_of([draft, *(one.statement for one in others)], checked)
    own = signer.sign(draft.model_copy(update={"costs": costs}))
    receipt = Receipt(own=own, others=others, ca=der(signer.authority))
    try:
        receipt.check()
    except ReceiptError as error:
        what = str(error).partition("; ")[0]
        raise ReceiptError(f"{what}; the parties do not agree, so there is none: ask in a new session") from None
    return receipt


def checked_prices(prices: Prices) -> StatedPrices:
    """Errors: ConfigError."""
    chosen = prices if isinstance(prices, PricesSection) else load_settings(None, prices=dict(prices or {})).prices
    words: Any = {name: {party: _digits(price) for party, price in getattr(chosen, name).items()} for name in BY_PARTY}
    return StatedPrices(currency=chosen.currency, watts=_digits(chosen.watts), **words)


def _digits(price: float) -> str:
    """Without an exponent."""
    whole, point, rest = f"{Decimal(str(price)):f}".partition(".")
    return whole + point + rest[:20]


def costs_of(statements: Iterable[Any], prices: StatedPrices) -> tuple[PartyCost, ...]:
    """What each party spent, of all its statements together. Errors: ReceiptError."""
    by_party: dict[Any, list[Any]] = {}
    for statement in statements:
        by_party.setdefault(statement.party, []).append(statement)
    try:
        return tuple(_cost(party, mine, prices) for party, mine in by_party.items())
    except (ValidationError, ArithmeticError):
        raise _wrong("own.statement.costs", "are too large") from None


def _cost(party: Any, statements: list[Any], prices: StatedPrices) -> PartyCost:
    cpu_ms = sum(one.spent.cpu_ms for one in statements)
    sent = sum(row.sent for one in statements for facts in one.facts for row in facts.bytes)
    joules = Decimal(prices.watts) * cpu_ms / 1000
    money = Decimal(prices.cpu_hour.get(party, "0")) * cpu_ms / 3_600_000
    money += Decimal(prices.gb.get(party, "0")) * sent / 10**9
    return PartyCost(party=party, cpu_ms=cpu_ms, sent=sent, watt_hours=f"{joules / 3600:.6f}", money=f"{money:.9f}")


class _Seen(NamedTuple):
    """What one party says of a session. `place`: in the receipt."""

    place: str
    facts: SessionFacts
    signed: SignedStatement


def _seen(own: SignedStatement, others: Sequence[SignedStatement]) -> Iterable[dict[str, _Seen]]:
    """By session, and there by party, the client first. Errors: ReceiptError for a session that the client does not
    know, and for a party that speaks twice."""
    mine = enumerate(own.statement.facts)
    sessions = {one.session: {"client": _Seen(f"own.statement.facts.{n}", one, own)} for n, one in mine}
    for number, signed in enumerate(others):
        (facts,), place, party = signed.statement.facts, f"others.{number}.statement.facts.0", signed.statement.party
        if facts.session not in sessions or party in sessions[facts.session]:
            raise _wrong(f"{place}.session", f"is not that of a session of which the {party} has yet to speak")
        sessions[facts.session][party] = _Seen(place, facts, signed)
    if len(sessions) != len(own.statement.facts):
        raise _wrong("own.statement.facts", "are not each of a session of its own")
    return sessions.values()


def _check_peers(parties: dict[str, _Seen]) -> None:
    """Each party speaks that has to, and names its own peers, all of them, each kind of bytes once."""
    client = parties["client"]
    peers = PEERS[client.facts.topology]
    if strange := sorted(parties.keys() - peers.keys()):
        raise _wrong(f"{parties[strange[0]].place}.topology", f"has no {strange[0]}")
    for party, one in parties.items():
        rows = [(row.peer, row.kind) for row in one.facts.bytes]
        if len(set(rows)) != len(rows):
            raise _wrong(f"{one.place}.bytes", "are not of one row each")
        for field, names in (("certificates", one.facts.certificates), ("bytes", dict(rows))):
            if silent := sorted((names.keys() | peers.keys() - {"dealer"}) - parties.keys()):
                raise _wrong(f"{one.place}.session", f"is not that of any statement of the {silent[0]}")
            if names.keys() != (expected := peers[party] & parties.keys()):
                raise _wrong(f"{one.place}.{field}", f"are not those of {' and '.join(sorted(expected))}")


def _check_agreement(parties: dict[str, _Seen]) -> None:
    """All parties saw the same session."""
    client, mine = parties["client"], parties["client"].facts
    peers, computing = PEERS[mine.topology], {"server", "helper" if mine.topology == "helper" else "client"}
    for party, one in parties.items():
        theirs = one.facts
        names = ["blindformer", "topology", "program", "plan"]
        names += ["queries", "verify", "passed"] * (party != "dealer")
        for name in names:
            if getattr(mine, name) != getattr(theirs, name):
                raise _wrong(f"{one.place}.{name}", f"is not that of {client.place}.{name}")
        if (party in computing) != bool(theirs.weights) or theirs.weights not in ("", parties["server"].facts.weights):
            raise _wrong(f"{one.place}.weights", f"is not that of {parties['server'].place}.weights")
        if abs(one.signed.statement.at - client.signed.statement.at) > APART:
            raise _wrong(f"{one.place.partition('.facts')[0]}.at", "is not within half an hour of the client's")
        for peer, digits in theirs.certificates.items():
            there = parties[peer]
            if digits != fingerprint(there.signed.shown):
                raise _wrong(f"{one.place}.certificates.{peer}", f"is not the certificate that the {peer} signed with")
            back = sorted((row.kind, row.received, row.sent) for row in there.facts.bytes if row.peer == party)
            sent = sorted((row.kind, row.sent, row.received) for row in theirs.bytes if row.peer == peer)
            if party in peers[peer] and sent != back:
                raise _wrong(f"{one.place}.bytes", f"are not those of {there.place}.bytes")


def _check_signed(place: str, signed: SignedStatement, authority: x509.Certificate) -> None:
    shown, statement = signed.shown, signed.statement
    if not issued_by(shown, authority):
        raise _wrong(f"{place}.certificate", "is not from the CA of the receipt")
    if role_in(shown) != statement.party:
        raise _wrong(f"{place}.certificate", f"is of {role_in(shown) or 'no role'}, not of {statement.party}")
    if not shown.not_valid_before_utc.timestamp() <= statement.at <= shown.not_valid_after_utc.timestamp():
        raise _wrong(f"{place}.certificate", "was not good when the statement was signed")
    if not signed.is_signed():
        raise _wrong(f"{place}.statement", f"is not what the {statement.party} signed")


def _certificate(place: str, content: str) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(bytes.fromhex(content))
        role_in(certificate)  # reads its extensions, which shows what is wrong in them
        return certificate
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise _wrong(place, "is no certificate") from None


def _wrong(place: str, what: str) -> ReceiptError:
    return ReceiptError(f"receipt: {place}: {what}; ask its issuer for the receipt as it was written")
