"""A receipt holds what every party vouches for and nothing of the text; and a changed byte never passes its check."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import blindformer as bf
import pytest
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.delegated.folder import load_part
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import CertificateError, fingerprint, load_certificate
from blindformer.parties.cli.receipt import DIGITS
from blindformer.parties.config import ConfigError
from blindformer.parties.receipts.receipt import Receipt, checked_prices, costs_of
from blindformer.parties.receipts.statement import ReceiptError, Signer
from blindformer.parties.session.statements import FRAME_BYTES, receive_statements, send_statements
from blindformer.protocols.errors import PeerError
from blindformer.tests.parties.service.helped import Helped
from blindformer.tests.parties.session.site import Site, small_case
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.memory import memory_pair
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama

SHORT, LONG = "not good , bad !", "how is my password ? not good , bad !"  # padded to 8 and to 16 tokens
PRICES = {"currency": "EUR", "cpu_hour": {"server": 3.6, "dealer": 7.2}, "gb": {"server": 1000.0}, "watts": 36.0}


@pytest.fixture(scope="module")
def asked(site, tmp_path_factory):
    """(a receipt of a client that asked three texts of two lengths, the reports of its answers)."""
    with site.client(cache=tmp_path_factory.mktemp("cache")) as client:  # it has none of the masked weights
        results = client.query_many([SHORT, LONG, SHORT])
        receipt = client.receipt(PRICES)
    return receipt, [result.report for result in results]


@pytest.fixture
def file(asked, tmp_path) -> Path:
    asked[0].save(tmp_path / "answer.json")
    return tmp_path / "answer.json"


def traffic(facts: Any, kind: str, peer: str) -> int:
    return sum(row.sent + row.received for row in facts.bytes if (row.kind, row.peer) == (kind, peer))


def checked(file: Path, **options: Any) -> Receipt:
    receipt = Receipt.load(file)
    receipt.check(**options)
    return receipt


def test_every_party_of_every_session_vouches_for_it(asked, site, file):
    receipt, reports = asked
    assert checked(file, ca=site.certificates / "ca.pem") == receipt
    own, parties = receipt.own.statement, [one.statement.party for one in receipt.others]
    assert [facts.queries for facts in own.facts] == [2, 1]
    assert parties == ["server", "dealer"] * 2
    online = sum(traffic(facts, "rounds", "server") for facts in own.facts)
    assert online == sum(report.online_bytes for report in reports)
    assert sum(traffic(facts, "weights", "server") for facts in own.facts) > 0
    shown = {role: fingerprint(load_certificate(site.certificates / f"{role}.pem")) for role in ("server", "dealer")}
    assert own.facts[0].certificates == {"server": shown["server"]}
    assert receipt.others[0].statement.facts[0].certificates["dealer"] == shown["dealer"]
    assert own.revealed == ("logits",)
    assert own.released
    assert (own.facts[0].verify, own.facts[0].passed) == ("none", None)


def test_two_clients_of_one_model_have_one_commitment_to_its_weights(asked, site):
    with site.client() as client:
        client.query(SHORT)
        again = client.receipt()
    first = asked[0].own.statement.facts[0]
    assert again.own.statement.facts[0].weights == first.weights != ""
    assert again.own.statement.facts[0].session != first.session


def test_costs_are_seconds_and_bytes_by_the_price_list(asked):
    own = asked[0].own.statement
    server, dealer, client = ({cost.party: cost for cost in own.costs}[name] for name in ("server", "dealer", "client"))
    assert min(server.cpu_ms, dealer.cpu_ms, client.cpu_ms) > 0
    assert Decimal(server.money) == Decimal(server.cpu_ms) / 10**6 + Decimal(server.sent) / 10**6
    assert Decimal(dealer.money) == 2 * Decimal(dealer.cpu_ms) / 10**6
    assert Decimal(client.money) == 0
    assert Decimal(client.watt_hours) == Decimal(client.cpu_ms) / 10**5


def test_a_changed_byte_never_passes(file):
    content = file.read_bytes()
    for place in range(0, len(content), 29):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ReceiptError, match=r"^receipt: .*; ask its issuer"):
            checked(file)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("others.0.statement.facts.0.queries", "others.0.statement.facts.0.queries"),
        ("others.0.statement.facts.0.bytes.1.sent", "own.statement.facts.0.bytes"),
        ("others.1.statement.spent.cpu_ms", "others.1.statement"),
        ("others.0.statement.at", "others.0.statement"),
        ("own.statement.facts.1.queries", "others.2.statement.facts.0.queries"),
        ("own.statement.costs.0.cpu_ms", "own.statement"),
    ],
)
def test_the_line_names_the_field(file, path, field):
    content = json.loads(file.read_text())
    *way, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    inner = content
    for word in way:
        inner = inner[word]
    inner[last] += 1
    file.write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")
    with pytest.raises(ReceiptError, match=rf"^receipt: {re.escape(field)}: (is|are) not"):
        checked(file)


def test_a_receipt_of_another_ca_is_not_taken_for_this_one_s(file, tmp_path):
    """Whoever has a CA can make a whole receipt up; whoever asks for a CA's own is not deceived."""
    make_certificates(tmp_path / "others")
    with pytest.raises(ReceiptError, match=r"^receipt: ca: is not the certificate in"):
        checked(file, ca=tmp_path / "others" / "ca.pem")
    with pytest.raises(CertificateError, match="missing"):
        checked(file, ca=tmp_path / "nowhere.pem")


def test_a_client_s_key_signs_for_no_server(asked, site):
    """A statement that a client has written and signed itself, in the server's name."""
    receipt = asked[0]
    forged = Signer(site.certificates, "client").sign(receipt.others[0].statement)
    changed = receipt.model_copy(update={"others": (forged, *receipt.others[1:])})
    with pytest.raises(ReceiptError, match=r"certificates\.server: is not the certificate|is of client, not of server"):
        changed.check()


def test_a_party_that_another_names_may_not_be_left_out(asked, site):
    """A client that leaves the dealer's statement out, and what it cost, and signs that."""
    receipt, client = asked[0], Signer(site.certificates, "client")
    others = tuple(one for one in receipt.others if one.statement.party != "dealer")
    own = receipt.own.statement.model_copy(update={"others": tuple(one.digest for one in others)})
    own = own.model_copy(update={"costs": costs_of([own, *(one.statement for one in others)], own.prices)})
    changed = receipt.model_copy(update={"others": others, "own": client.sign(own)})
    with pytest.raises(ReceiptError, match=r"facts\.0\.session: is not that of any statement of the dealer"):
        changed.check()


def test_prices_that_cannot_be_used_are_one_line(asked):
    with pytest.raises(ConfigError, match=r"prices\.gb\.server = -1"):
        checked_prices({"gb": {"server": -1}})
    with pytest.raises(ConfigError, match=r"prices\.currency"):
        checked_prices({"currency": "\x1b[2J"})
    assert checked_prices({"gb": {"server": 1e-7}, "watts": 1e-300}).gb == {"server": "0.0000001"}


# --- what a receipt says of the text: nothing -------------------------------------------------------------------------
MAY_DIFFER = re.compile(
    r"(\.session|\.at|\.cpu_ms|signature|\.watt_hours|\.money|statement\.others\.\d+)$|"
    r"\.costs\.\d+\.sent$|\.bytes\.\w+ messages\.(sent|received)$|"
    r"others\.\d+\.statement\.facts\.0\.bytes\.(dealer|server) correlations\.(sent|received)$"
)


def fields(value: Any, path: str = "") -> dict[str, Any]:
    """All that it holds, by where it stands: bytes by peer and kind."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, list) and value and isinstance(value[0], dict) and "sent" in value[0] and "kind" in value[0]:
        items = ((f"{row['peer']} {row['kind']}", row) for row in value)
    inner = {where: one for name, item in items for where, one in fields(item, f"{path}.{name}").items()}
    return inner if isinstance(value, dict | list) else {path: value}


def test_two_texts_of_one_padded_length_have_receipts_that_differ_in_ids_and_times_alone(site, tmp_path):
    """And messages that hold times, whose digits count as bytes; rounds, weights and all else are equal."""
    receipts, texts = [], (SHORT, "what a good red")
    for text in texts:
        with site.client(cache=tmp_path / "none") as client:
            answer = client.query(text)
            receipts.append(client.receipt())
        assert answer.length == 8
        shown = receipts[-1].text()
        assert text not in shown
        assert not any(word in shown for word in ("password", "LABEL"))
        assert all(f"{score['score']:.4f}" not in shown for score in answer.value)
    one, other = (fields(receipt.model_dump(mode="json")) for receipt in receipts)
    assert one.keys() == other.keys()
    weights = re.compile(r"\.bytes\.\w+ weights\.")  # the second client has the masked weights already
    differing = {path for path in one if one[path] != other[path] and not MAY_DIFFER.search(path)}
    assert {path for path in differing if not weights.search(path)} == set()


# --- who may ask, and what travels ----------------------------------------------------------------------------------
def test_statements_travel_in_frames_of_one_size(asked):
    """However many there are, and whatever numbers are in them."""
    seen: list[bytes] = []
    mine, theirs = memory_pair("server", "client", record={"client": seen})
    for count in (1, 3):
        sent = asked[0].others[:count]
        send_statements(mine, sent)
        assert receive_statements(theirs) == sent
    assert [len(frame) for frame in seen] == [len(seen[0]), FRAME_BYTES] * 2


@pytest.mark.parametrize("wish", [{"receipt": "I owe you"}, {"receipt": True, "what": "I owe you"}])
def test_nobody_signs_words_of_a_client_s_choice(tmp_path, wish):
    make_certificates(tmp_path)
    site = Site(small_case())
    with site.client(server={"signer": Signer(tmp_path, "server")}) as party:
        site.ask(party)
        party.server.send_message(wish)
        with pytest.raises(PeerError):
            party.server.recv_message()
    assert "has no place here" in str(site.errors()[0])


def test_a_helper_vouches_too(compiled, tmp_path):
    with Helped(tmp_path, compiled) as site, site.client() as client:
        client.query(SHORT)
        receipt = client.receipt(PRICES)
    own = receipt.own.statement
    assert [one.statement.party for one in receipt.others] == ["server", "dealer", "helper"]
    assert own.facts[0].topology == "helper"
    assert set(own.facts[0].certificates) == {"server", "helper"}
    assert own.facts[0].weights == ""  # which the helper has in the client's place
    assert receipt.others[0].statement.facts[0].weights == receipt.others[2].statement.facts[0].weights != ""
    assert {cost.party for cost in own.costs} == {"client", "server", "dealer", "helper"}


# --- public models ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def public(tiny_classifier, tmp_path_factory):
    root = tmp_path_factory.mktemp("public")
    folder = delegate_folder(tiny_classifier, root / "open")
    with Deployment(root, folder, server={"store": root / "theirs"}) as site:
        yield site


@pytest.mark.parametrize("own", [False, True], ids=["dealer", "own"])
def test_a_delegated_receipt_says_which_weights_were_proven(public, call, tmp_path, own):
    """Of stored passes and live ones; of those that the client deals to itself no dealer vouches."""
    digest = load_part(public.client_folder).model.manifest.digest
    words = [public.client_folder, *public.words(), "--store", tmp_path / "store"]
    words += ["--dealer", "local"] * own
    assert call("precompute", *words, 1, "--length", 16)[0] == 0
    file, asked = tmp_path / "answer.json", [SHORT] * (1 if own else 2)
    assert call("query", *words, *asked, "--length", 16, "--receipt", file)[0] == 0
    receipt = checked(file, ca=public.certificates / "ca.pem")
    mine = receipt.own.statement.facts[0]
    assert (mine.queries, mine.verify, mine.passed) == (len(asked), "products", True)
    assert {mine.program, mine.weights} | {one.statement.facts[0].program for one in receipt.others} == {digest}
    assert [one.statement.party for one in receipt.others] == (["server"] if own else ["server", "dealer"])
    assert traffic(mine, "rounds", "server") > 0
    assert receipt.own.statement.adversary.startswith("parties that deviate in any way")
    code, printed, _ = call("receipt", "show", file)
    assert re.search(r"^verified +every product, against the weights below *$", printed, re.MULTILINE)
    assert (code, printed.count(digest[:DIGITS])) == (0, 2)


def test_a_public_conversation_and_a_module_have_receipts(call, loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model, file = tiny_llama(tmp_path / "llama", TEMPLATE), tmp_path / "talk.json"
    words = ("chat", model, "Hi", "--weights", "public", "--max-new-tokens", 3, "--format", "json")
    code, printed, _ = call(*words, "--receipt", file)
    assert (code, checked(file).own.statement.facts[0].queries) == (0, json.loads(printed)["passes"])
    with bf.make_private(loaded.model, weights="public") as private:
        private(**loaded.encode(SHORT, 8))
        private.receipt(PRICES).check()
    whose = {"private": ["classifier.*"], "rest": "public"}
    with bf.make_private(loaded, weights=whose, calibration=[loaded.encode(SHORT, 8)] * 2) as private:
        private(**loaded.encode(SHORT, 8))
        with pytest.raises(ReceiptError, match=r"take those of private\.base and private\.head"):
            private.receipt()
        for part in (private.base, private.head):  # type: ignore[attr-defined]
            part.receipt().check()


# --- the commands ---------------------------------------------------------------------------------------------------
def test_a_query_s_receipt_is_shown_as_tables_and_checked(call, site, tmp_path):
    file, prices = tmp_path / "answer.json", tmp_path / "prices.toml"
    prices.write_text('[prices]\ncurrency = "EUR"\n[prices.gb]\nserver = 1000\n')
    asking = ("query", site.client_folder, SHORT, *site.words(), "--receipt", file, "--config", prices)
    code, _, errors = call(*asking)
    assert (code, f"note: {file}: a receipt; blindformer receipt show and check read it" in errors) == (0, True)
    code, printed, _ = call("receipt", "show", file)
    assert code == 0
    assert re.search(r"^secure against +semi-honest", printed, re.MULTILINE)
    assert re.search(r"^server +\d+\.\d+ +\d+\.\d+ +\d+\.\d+ +0\.\d+$", printed, re.MULTILINE)
    assert "money EUR" in printed
    code, printed, _ = call("receipt", "check", file, "--ca", site.certificates / "ca.pem")
    assert (code, "signed by client, server, dealer" in " ".join(printed.split())) == (0, True)


class Unsigned:
    """A receipt that no party gives."""

    def __call__(self, *_: object) -> Receipt:
        raise ReceiptError("receipt: the parties do not agree; ask in a new session")


@pytest.mark.parametrize("command", ["query", "chat"])
def test_a_receipt_that_cannot_be_had_loses_no_answer(call, site, chat_folder, monkeypatch, tmp_path, command):
    """The answer comes first, then the one line, and the code of an error."""
    words: dict[str, tuple[Any, ...]] = {
        "query": (site.client_folder, SHORT, *site.words()),
        "chat": (chat_folder, "Hi Ho Hi", "--max-new-tokens", 2),
    }
    monkeypatch.setattr("blindformer.parties.receipts.receipt._issued", Unsigned())
    code, printed, errors = call(command, *words[command], "--format", "json", "--receipt", tmp_path / "r.json")
    assert (code, errors.splitlines()[-1]) == (
        1,
        "blindformer: receipt: the parties do not agree; ask in a new session",
    )
    assert json.loads(printed)
    assert not (tmp_path / "r.json").exists()


def test_a_conversation_s_receipt_counts_its_passes_and_not_its_words(call, chat_folder, tmp_path):
    file = tmp_path / "conversation.json"
    code, printed, _ = call(
        "chat", chat_folder, "Hi Ho Hi", "--max-new-tokens", 3, "--format", "json", "--receipt", file
    )
    answer = json.loads(printed)
    own = checked(file).own.statement
    assert (code, own.facts[0].queries) == (0, answer["passes"])
    assert "Hi Ho" not in file.read_text()
    assert own.adversary.startswith("semi-honest")


@pytest.mark.parametrize("protocol", ["clear", "crypten", "ckks"])
def test_where_nobody_signs_there_is_no_receipt_and_nothing_is_begun(refused, protocol, tmp_path):
    line = refused("run", "minilm", "a text", "--protocol", protocol, "--receipt", tmp_path / "answer.json")
    assert f"protocol {protocol} signs nothing; use protocol beaver" in line


def test_a_private_model_gives_its_receipt(loaded):
    batches = [loaded.encode(text, 8) for text in (SHORT, "what a good red !")]
    with bf.make_private(loaded.model, calibration=batches) as private:
        private(**batches[0])
        receipt = private.receipt(PRICES)
    receipt.check()
    assert receipt.own.statement.facts[0].queries == 1
    with (
        bf.make_private(loaded.model, calibration=batches) as private,
        pytest.raises(ReceiptError, match="no session is open"),
    ):
        private.receipt()
