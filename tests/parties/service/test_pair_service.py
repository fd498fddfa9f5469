"""A server whose clients do without a dealer, by the commands: what is made ahead, asked, vouched for and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nacl")
pytest.importorskip("seal")
from blindformer.parties.config import ConfigError, load_settings
from blindformer.parties.receipts.receipt import Receipt
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.protocols.errors import PeerDisagrees
from blindformer.protocols.kernels import library
from blindformer.tests.shared.deployment import WithoutDealer

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")
TEXT = "how is my password ?"


@pytest.fixture(scope="module")
def site(tmp_path_factory, compiled):
    folder = tmp_path_factory.mktemp("pair")
    with WithoutDealer(folder, compiled, server={"store": folder / "server-store"}) as site:
        yield site


def words(site: WithoutDealer, folder: Path) -> list[str]:
    return [str(site.client_folder), "--length", "8", *site.words(), "--dealer", "none", "--store", str(folder)]


def test_a_query_made_ahead_is_answered_as_a_live_one_and_a_receipt_names_both_parties(site, report_of, tmp_path):
    folder, receipt = site.folder / "client-store", tmp_path / "receipt.json"
    report = report_of("precompute", *words(site, folder), "1")
    assert (report["kept"], report["left"], PreprocessingStore(site.folder / "server-store").left()) == (1, 1, 1)
    asked = report_of("query", *words(site, folder), TEXT, TEXT, "--receipt", receipt)
    ahead, live = asked["results"]
    for one, other in zip(ahead["labels"], live["labels"], strict=True):
        assert one["label"] == other["label"]
        assert one["score"] == pytest.approx(other["score"], abs=0.003)
    assert PreprocessingStore(folder).left() == 0
    whole = Receipt.load(receipt)
    whole.check()
    assert whole.undealt == []
    assert {one.statement.party for one in whole.others} == {"server"}


def test_both_sides_are_told_of_the_other_topology(site):
    addresses = {"topology": "dealer", "dealer": "localhost:1", "wait": 0.0}
    with site.client(**addresses) as client, pytest.raises(PeerDisagrees, match='write topology = "pair"'):
        client.query(TEXT)
    site.server.wait_for("refused", kind="PeerDisagrees")


def test_what_goes_with_a_dealer_alone_is_refused_in_one_line(refused, tmp_path):
    with pytest.raises(ConfigError, match="no dealer is of protocol beaver, and this is ckks"):
        load_settings(**{"session.protocol": "ckks", "parties.dealer.address": "none"})
    with pytest.raises(ConfigError, match="in topology dealer; leave it out"):
        load_settings(**{"session.audits": 0.1, "parties.dealer.address": "none"})
    with pytest.raises(ConfigError, match="is of topology pair alone"):
        load_settings(**{"session.topology": "helper", "parties.dealer.address": "none"})
    assert "here it is none, or left out" in refused("run", "minilm", TEXT, "--dealer", "localhost:1")
    assert "give --store, or client.store" in refused("precompute", tmp_path, "1", "--dealer", "none")
