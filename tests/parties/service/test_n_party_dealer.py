"""The dealer of N parties is a service as any: who may come, what it keeps for whom, and what it says of a session."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.launch.processes import as_toml
from blindformer.parties.session.dealing import RemoteDealer
from blindformer.parties.session.masked_weights import Served
from blindformer.parties.session.parties import Parties
from blindformer.parties.session.preprocessed import query_key
from blindformer.parties.session.rendezvous_n import PartyContext, join_dealer
from blindformer.parties.transport.handshake import new_session
from blindformer.parties.transport.stream import StreamChannel
from blindformer.protocols.errors import PeerDisagrees, PeerError, PeerRefused
from blindformer.protocols.streams import new_seed
from blindformer.tests.parties.session.site import small_case
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import Running

CASE = small_case()
NAMES = ("alice", "bob", "carol")


@dataclass
class DealtSite:
    """The dealer, and how a party comes to it."""

    certificates: Path
    dealer: Running

    def join(self, name: str, session: str, names: tuple[str, ...] = NAMES) -> StreamChannel | None:
        parties = Parties(names)
        rank = names.index(name)
        context = PartyContext(parties, rank, client_context(self.certificates, name), PATIENCE, PATIENCE)
        return join_dealer(context, CASE.program, session, self.dealer.address, new_seed())

    def lead(self, session: str) -> StreamChannel:
        channel = self.join("alice", session)
        assert channel is not None
        return channel


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[DealtSite]:
    folder = tmp_path_factory.mktemp("dealt")
    make_certificates(folder, (*NAMES, "mallory", "dealer"))
    sections = {
        "session": {"protocol": "crypten"},
        "certificates": {"folder": folder},
        "dealer": {"listen": "127.0.0.1:0", "log_format": "json"},
        **{f"crypten.parties.{name}": {} for name in NAMES},
    }
    (folder / "blindformer.toml").write_text(as_toml(sections))
    dealer = Running(["dealer", "--config", str(folder / "blindformer.toml")])
    try:
        dealer.wait_for("ready")
        yield DealtSite(folder, dealer)
    finally:
        dealer.stop()


def test_it_deals_for_the_first_party_once_the_others_have_left_their_seeds(site):
    session, parties = new_session(), Parties(NAMES)
    for name in NAMES[1:]:
        assert site.join(name, session) is None
    leader = RemoteDealer(site.lead(session), Served(CASE, new_seed(), parties.sources(CASE.program)))
    seed = new_seed()
    leader.set_up(seed)
    for number in range(2):
        assert leader.lead(number, query_key(seed, number)).tapes
    leader.goodbye()
    leader.channel.close()
    assert site.dealer.wait_for("session-opened", session=session[:8])["peer"] == "alice"
    assert site.dealer.wait_for("answered", session=session[:8], number=1)["bytes"] > 0
    site.dealer.wait_for("session-closed", session=session[:8])


def test_a_party_whose_seed_is_missing_is_named(site):
    session = new_session()
    site.join("carol", session)
    with site.lead(session) as leader:
        leader.send_message({"seed": new_seed().hex()})
        with pytest.raises(PeerError, match="bob: cannot be dealt to; its seed for this session is not here"):
            leader.recv_message()


def test_a_party_leaves_one_seed_a_session(site):
    session = new_session()
    site.join("carol", session)
    with pytest.raises(PeerError, match="its seed for this session was left already"):
        site.join("carol", session)
    site.join("carol", new_session())


def test_who_is_no_party_or_counts_them_otherwise_is_turned_away(site):
    with pytest.raises(PeerRefused, match="certificate of a mallory where a alice or bob or carol was expected"):
        site.join("mallory", new_session(), ("alice", "mallory"))
    with pytest.raises(PeerDisagrees, match="has config"):
        site.join("bob", new_session(), ("alice", "bob"))
