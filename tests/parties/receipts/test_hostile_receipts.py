"""What parties write to be paid for what nobody confirms, to lose a client its answers, or to own its terminal."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
from blindformer.models.program.program import Program, ProgramError
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import fingerprint
from blindformer.parties.receipts.receipt import Receipt, VouchedSession, issue, stated
from blindformer.parties.receipts.statement import (
    Consumption,
    PartyStatement,
    ReceiptError,
    SessionFacts,
    Signer,
    canonical,
    der,
)
from blindformer.parties.session.statements import FRAME_BYTES, SessionNotes, receive_statements, send_statements
from blindformer.parties.session.two_party_client import ClientParty
from blindformer.protocols.errors import PeerProtocolError
from blindformer.tests.parties.session.site import small_case
from blindformer.tests.shared.memory import memory_pair
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

SESSION, HASH = "ab" * 16, "cd" * 32
ROWS = {  # peer, kind, sent, received
    "client": [("server", "weights", 0, 1000), ("server", "rounds", 500, 500)],
    "server": [("client", "weights", 1000, 0), ("client", "rounds", 500, 500), ("dealer", "correlations", 100, 900)],
    "dealer": [("server", "correlations", 900, 100)],
}
PRICES = {"gb": {"server": 1.0, "dealer": 1e-7}}


@pytest.fixture(scope="module")
def signers(tmp_path_factory) -> dict[str, Signer]:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return {name: Signer(folder, name) for name in ("server", "client", "dealer", "helper")}


def rows_of(rows: list[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    return [dict(zip(("peer", "kind", "sent", "received"), row, strict=True)) for row in rows]


def facts_of(party: str, signers: dict[str, Signer], **changes: Any) -> SessionFacts:
    rows = changes.pop("rows", ROWS.get(party, []))
    shown = {peer: fingerprint(signers[peer].certificate) for peer, *_ in ROWS.get(party, [])}
    fields = {"session": SESSION, "blindformer": "0", "topology": "dealer", "program": HASH, "plan": "", "queries": 1}
    fields |= {"weights": "" if party == "dealer" else HASH, "certificates": shown, "bytes": rows_of(rows), **changes}
    return SessionFacts.model_validate_json(json.dumps(fields))


def issued(
    signers: dict[str, Signer], *, others: tuple[str, ...] = ("server", "dealer"), model: str = "m", **changes: Any
) -> Receipt:
    """`changes`: by party, of its facts, its time (`at`) and what it spent (`cpu_ms`)."""
    signed = []
    for party in others:
        mine = dict(changes.get(party, {}))
        at = {"at": mine.pop("at")} if "at" in mine else {}
        spent = Consumption(cpu_ms=mine.pop("cpu_ms", 100))
        facts = facts_of(party, signers, **mine)
        signed.append(signers[party].sign(PartyStatement(party=party, spent=spent, facts=(facts,), **at)))  # type: ignore
    mine, program = facts_of("client", signers, **changes.get("client", {})), Program(model=model)
    about = {**stated(program), "plan": "plan", "protocol": "beaver"}
    vouched = VouchedSession(about, mine, tuple(signed), Consumption(cpu_ms=5), signers["client"])
    receipt = issue([vouched], PRICES)
    assert Receipt.model_validate_json(receipt.text()) == receipt
    return receipt


def test_parties_that_agree_get_a_receipt(signers):
    receipt = issued(signers)
    assert {cost.party for cost in receipt.own.statement.costs} == {"client", "server", "dealer"}
    assert receipt.undealt == []


def test_a_session_without_a_dealer_s_word_is_named(signers, call, tmp_path):
    alone = issued(signers, others=("server",), server={"rows": ROWS["server"][:2], "certificates": {
        "client": fingerprint(signers["client"].certificate)}})  # fmt: skip
    assert {cost.party for cost in alone.own.statement.costs} == {"client", "server"}
    alone.save(tmp_path / "r.json")
    for command in ("show", "check"):
        code, printed, _ = call("receipt", command, tmp_path / "r.json")
        assert (code, " ".join(printed.split()).count(f"no dealer vouches for {SESSION}")) == (0, 1)


NONE = {"rows": [], "certificates": {}}
MORE = ("server", "dealer", "helper")
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a row twice": ({"server": {"rows": ROWS["server"] * 2}}, r"0\.bytes: are not of one row each"),
    "a row towards itself": (
        {"server": {"rows": [*ROWS["server"], ("server", "messages", 10**12, 10**12)]}},
        r"others\.0.*bytes: are not those of client and dealer",
    ),
    "a row towards a party that has no row back": (
        {"dealer": {"rows": [*ROWS["dealer"], ("client", "messages", 10**12, 0)]}},
        r"others\.1.*bytes: are not those of server",
    ),
    "a kind that the other left out": (
        {"server": {"rows": [*ROWS["server"], ("client", "messages", 10**12, 0)]}},
        r"own.*bytes: are not those of others\.0",
    ),
    "a client without rows": ({"client": {"rows": []}}, r"own.*bytes: are not those of server"),
    "a server that names nobody": ({"server": NONE}, r"others\.0.*certificates: are not those of client and dealer"),
    "a helper in topology dealer": ({"others": MORE, "helper": NONE}, r"others\.2.*topology: has no helper"),
    "no server": ({"others": ("dealer",)}, "session: is not that of any statement of the server"),
    "no dealer": ({"others": ("server",)}, "session: is not that of any statement of the dealer"),
    "no weights": ({"server": {"weights": ""}}, r"own.*weights: is not that of"),
    "no weights anywhere": ({"server": {"weights": ""}, "client": {"weights": ""}}, r"own.*weights: is not that of"),
    "weights at the dealer": ({"dealer": {"weights": HASH}}, r"others\.1.*weights: is not that of"),
    "another verdict": ({"server": {"passed": False}}, r"others\.0.*passed: is not that of own"),
    "a statement of long ago": ({"server": {"at": 10**9}}, r"others\.0\.statement\.at: is not within"),
    "a terminal's escapes": ({"model": "m\x1b]0;owned\x07"}, "model: cannot be written in one"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_nobody_bills_or_says_what_the_others_do_not_confirm(signers, what):
    changes, line = HOSTILE[what]
    with pytest.raises(ReceiptError, match=line):
        issued(signers, **changes)


@pytest.mark.parametrize(
    "fields",
    [
        {"cpu_ms": 2**40},
        {"cpu_ms": 10**4000},
        {"cpu_ms": 1, "joules": 1},
    ],
)
def test_nobody_spends_without_end(fields):
    with pytest.raises(ValidationError):
        Consumption(**fields)


def test_a_sum_too_large_is_a_receipt_s_error(signers):
    """Not of a single party, for its spending is bounded."""
    receipt = issued(signers)
    own = receipt.own.statement.model_copy(update={"spent": Consumption.model_construct(cpu_ms=2**53)})
    changed = receipt.model_copy(update={"own": signers["client"].sign(own)})
    with pytest.raises(ReceiptError, match=r"own\.statement\.costs: are too large"):
        changed.check()


@pytest.mark.parametrize("words", [b"I, the dealer, owe Mallory".hex() * 10, "not hex", "ab", "AB" * 32])
def test_no_words_of_a_peer_are_signed_as_session_program_or_plan(signers, words):
    for field in ("session", "program", "plan", "weights"):
        with pytest.raises(ValidationError):
            facts_of("server", signers, **{field: words})
    program = json.loads(small_case().program.to_json()) | {"plan": words}
    with pytest.raises(ProgramError, match="program: plan: "):  # where a dealer receives it
        Program.from_json(json.dumps(program))


# --- a file -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("price", ["abc", "NaN", "sNaN", "-1", "1E+999999999999", "1E+9", "9" * 21, ""])
@pytest.mark.parametrize("name", ["watts", "gb"])
def test_a_file_s_prices_are_decimal_numbers(signers, tmp_path, price, name):
    content = json.loads(issued(signers).text())
    content["own"]["statement"]["prices"][name] = price if name == "watts" else {"server": price}
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ReceiptError, match=rf"^receipt: own\.statement\.prices\.{name}.*: String should match"):
        Receipt.load(tmp_path / "r.json")


def test_a_file_does_not_write_to_the_terminal(signers, call, tmp_path):
    """Neither its words, nor the names of its fields, nor the kinds that it claims."""
    file, content = tmp_path / "r.json", json.loads(issued(signers).text())
    word, name, kind = (json.loads(json.dumps(content)) for _ in range(3))
    word["own"]["statement"]["model"] = "m\x1b[2J"
    name["\x1b]0;owned\x07"] = 1
    kind["own"]["statement"]["kind"] = "\x1b[2J"
    for hostile in (word, name, kind):
        file.write_text(json.dumps(hostile))
        for command in ("show", "check"):
            code, printed, errors = call("receipt", command, file)
            assert (code, printed, errors.count("\n"), "\x1b" in errors) == (1, "", 1, False)


def twice_extended(signer: Signer) -> str:
    """A certificate (DER, hex) that has one extension two times; its signature does not count."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(signer.certificate.subject, signer.certificate.subject, key.public_key(), 1)
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(1))
    for kind in (x509.ObjectIdentifier("1.2.3.4"), x509.ObjectIdentifier("1.2.3.5")):
        builder = builder.add_extension(x509.UnrecognizedExtension(kind, b"\x05\x00"), False)
    return der(builder.sign(key, hashes.SHA256())).replace("06032a0305", "06032a0304")  # the second, too


def test_a_certificate_with_an_extension_twice_is_none(signers):
    receipt = issued(signers)
    hostile = receipt.others[0].model_copy(update={"certificate": twice_extended(signers["server"])})
    vars(hostile).pop("shown", None)
    with pytest.raises(ReceiptError, match=r"others\.0\.certificate: is no certificate"):
        receipt.model_copy(update={"others": (hostile, receipt.others[1])}).check()


# --- on the way -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["too long", "too many", "none", "too expensive"])
def test_statements_that_would_not_fit_on_are_their_sender_s_fault(signers, what):
    """A dealer cannot bring the server down, which passes its statement on."""
    honest = issued(signers).others[1]
    assert len(canonical(honest)) < 4096
    content: dict[str, list[Any]] = {
        "too long": [honest.model_copy(update={"signature": "00" * 4000})],
        "too many": [honest, honest],
        "none": [],
        "too expensive": [honest],
    }
    dealer, server = memory_pair("dealer", "server", 5)
    if what == "too expensive":
        written = json.dumps([json.loads(canonical(honest))]).replace('"cpu_ms": 100', f'"cpu_ms": {2**60}')
        dealer.send_message({"receipt": True})
        dealer.send(written.encode().ljust(FRAME_BYTES))
    else:
        send_statements(dealer, content[what])
    with pytest.raises(PeerProtocolError, match=r"^dealer: "):
        receive_statements(server, most=1)


def test_a_server_does_not_keep_back_what_the_dealer_vouches_for(signers):
    there, here = memory_pair("server", "client", 5)
    party = ClientParty(small_case().program, {}, here, lambda seed: None, session=SESSION)
    there.send_message({"live": True})
    party._go_live()
    send_statements(there, issued(signers).others[:1])
    with pytest.raises(PeerProtocolError, match="server: sent no statement of the dealer"):
        party.vouched()


def test_who_asks_again_meters_nobody_else_s_load():
    """CPU and energy are read once after each answer, however often a statement is asked for."""
    readings = iter(range(10))

    class Counting:
        def so_far(self) -> Consumption:
            return Consumption(cpu_ms=next(readings))

    notes = SessionNotes(small_case().program, SESSION, Counting())  # type: ignore[arg-type]
    assert [notes.spent().cpu_ms for _ in range(5)] == [0] * 5
    notes.queries += 1
    assert [notes.spent().cpu_ms for _ in range(5)] == [1] * 5
