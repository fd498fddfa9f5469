"""How N parties find each other: who is missing is named, and who is not one of them is turned away."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import pytest
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import client_context, server_context
from blindformer.parties.session.parties import Parties
from blindformer.parties.session.rendezvous_n import PartyContext, meet_parties
from blindformer.parties.transport.handshake import Hello, hello
from blindformer.parties.transport.tls import Listener, dial, listen
from blindformer.protocols.errors import PeerDisagrees, PeerError, PeerRefused
from blindformer.tests.parties.session.site import small_case
from blindformer.tests.patience import PATIENCE

PROGRAM = small_case().program
NAMES = ("alice", "bob", "carol")
SHORT = 1.0  # seconds that a party waits where another does not come


@pytest.fixture(scope="module")
def certs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many-certificates")
    make_certificates(folder, NAMES)
    return folder


@pytest.fixture
def strangers(tmp_path):
    """The same names, from another CA."""
    make_certificates(tmp_path, NAMES)
    return tmp_path


@dataclass
class Site:
    """Where three parties listen, and how each of them would meet the others."""

    certs: object
    aside: object
    listeners: dict[str, Listener]
    addresses: dict[str, tuple[str, int]]

    def place(self, name: str, wait: float = 20, names=NAMES, certs=None, refused=lambda error: None) -> PartyContext:
        parties = Parties(names)
        context = client_context(certs or self.certs, name)
        return PartyContext(parties, parties.rank(name), context, wait, 20, refused=refused)

    def hello(self, name: str, names=NAMES) -> Hello:
        return self.place(name, names=names).hello(PROGRAM, "")

    def meet(self, name: str, listener: bool = True, **options):
        place = self.place(name, **options)
        addresses = {rank: self.addresses[n] for rank, n in enumerate(NAMES) if n in self.addresses}
        return self.aside(meet_parties, place, PROGRAM, addresses, self.listeners.get(name) if listener else None)


@pytest.fixture
def site(certs, aside):
    listeners = {name: listen("127.0.0.1", 0, server_context(certs, name), timeout=PATIENCE) for name in NAMES[:2]}
    yield Site(certs, aside, listeners, {name: listener.address for name, listener in listeners.items()})
    for listener in listeners.values():
        listener.close()


def end(*met):
    for future in met:
        for channel in future.result(PATIENCE)[1].values():
            channel.close()


def join(site: Site, name: str):
    """The channel of a party that has met alice when this returns, and goes no further."""
    channel = dial(*site.addresses["alice"], client_context(site.certs, name), "alice", timeout=PATIENCE)
    hello(channel, site.hello(name), "alice")
    return channel


def failure(future) -> PeerError:
    error = future.exception(PATIENCE)
    assert isinstance(error, PeerError)
    assert "\n" not in str(error)
    return error


def test_three_parties_find_each_other_in_one_session(site):
    met = [site.meet(name) for name in NAMES]
    sessions = {future.result(PATIENCE)[0] for future in met}
    assert len(sessions) == 1
    assert [sorted(future.result()[1]) for future in met] == [[1, 2], [0, 2], [0, 1]]
    end(*met)


@pytest.mark.parametrize("missing", NAMES)
def test_who_is_missing_is_named_by_all_others_and_how_long_they_waited(site, missing):
    if missing in site.listeners:
        site.listeners[missing].close()  # nobody is there
    met = [site.meet(name, wait=SHORT) for name in NAMES if name != missing]
    for error in map(failure, met):
        assert missing in str(error)
        assert "1 seconds" in str(error)


def test_who_waits_at_the_door_of_a_party_that_gives_up_is_told_why(site):
    """Carol has met alice; bob, whom she dials next, cannot find alice."""
    site.listeners["alice"].close()
    bob = site.meet("bob", wait=SHORT)
    carol = dial(*site.addresses["bob"], client_context(site.certs, "carol"), "bob", timeout=PATIENCE)
    with pytest.raises(PeerError, match=r"^bob: stopped and said: alice: nobody listens at .* after 1 seconds"):
        hello(carol, site.hello("carol"), "bob")
    carol.close()
    failure(bob)


def test_a_second_process_of_one_party_is_turned_away_and_the_first_goes_on(site):
    refusals = []
    alice = site.meet("alice", refused=refusals.append)
    bob = join(site, "bob")
    second = failure(site.meet("bob", listener=False))
    assert str(second).startswith("alice: stopped and said: bob: is here already, from another process")
    carol = join(site, "carol")
    end(alice)
    assert [error.party for error in refusals] == ["bob"]
    bob.close()
    carol.close()


def test_who_counts_the_parties_otherwise_is_turned_away(site):
    alice, bob = site.meet("alice"), site.meet("bob", names=("alice", "bob"), listener=False)
    for error in (failure(alice), failure(bob)):
        assert isinstance(error, PeerDisagrees)
        assert "has config" in str(error)


def test_another_version_of_crypten_is_named(site):
    alice = site.meet("alice", names=("alice", "bob"))
    bob = dial(*site.addresses["alice"], client_context(site.certs, "bob"), "alice", timeout=PATIENCE)
    mine = site.hello("bob", ("alice", "bob"))
    mine = mine.model_copy(update={"blindformer": mine.blindformer.partition("+")[0] + "+crypten.0.4.0"})
    with pytest.raises(PeerDisagrees, match=r"has blindformer \S+\+crypten\.\S+, this side has \S+\+crypten\.0\.4\.0"):
        hello(bob, mine, "alice")
    assert "+crypten.0.4.0" in str(failure(alice))
    bob.close()


def test_strangers_are_turned_away_and_the_session_begins(site, strangers):
    """Another CA's certificate, a certificate of somebody else, and no TLS at all."""
    refusals = []
    alice = site.meet("alice", names=("alice", "bob"), refused=refusals.append)
    address = site.addresses["alice"]
    assert isinstance(failure(site.meet("bob", names=("alice", "bob"), certs=strangers)), PeerRefused)
    carol = dial(*address, client_context(site.certs, "carol"), "alice", timeout=PATIENCE)
    with pytest.raises(PeerError, match="showed the certificate of a carol where a bob was expected"):
        carol.recv_message()
    carol.close()
    with socket.create_connection(address) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.settimeout(PATIENCE)
        while plain.recv(1024):
            pass
    bob = site.meet("bob", names=("alice", "bob"), listener=False)
    end(alice, bob)
    assert len(refusals) >= 2
