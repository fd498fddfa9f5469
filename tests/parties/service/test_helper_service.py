"""A real dealer, server and helper, as processes over TLS, and data owners who only split and add."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
import pytest
from blindformer.models.artifacts import load_server
from blindformer.models.program.two_server import for_two_servers, owner_traffic
from blindformer.parties.certificates.issuing import add_certificate
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.service.quota import Quota
from blindformer.parties.session.helper_topology import ask_two_servers
from blindformer.parties.session.messages import LimitReached
from blindformer.parties.session.rendezvous_two import my_hello
from blindformer.parties.transport.handshake import meet, new_session
from blindformer.protocols.errors import PeerDisagrees, PeerError, PeerRefused
from blindformer.tests.parties.service.answers import check, clear
from blindformer.tests.parties.service.helped import TEXT, Helped, Owner
from blindformer.tests.shared.deployment import eventually


@pytest.fixture(scope="module")
def shared_site(compiled, tmp_path_factory) -> Iterator[Helped]:
    limit = {"queries_each": 1000, "state": "state"}
    with Helped(tmp_path_factory.mktemp("helped"), compiled, **limit) as site:
        yield site


@pytest.fixture(scope="module")
def expected(compiled, part) -> Callable:
    """expected(text, length): the answer in the clear."""
    server = load_server(compiled)
    return lambda text=TEXT, length=8: clear(server.for_length(length), part.encode(text, length).sources())


def test_answers_are_right_at_every_length_and_nothing_heavy_reaches_the_owner(site, part, expected):
    for length in (8, 16):
        with closing(Owner(site, part, length)) as owner:
            assert length == 8 or owner.party.helper_setup_bytes == 0, "the helper has the weights, which lengths share"
            check(owner.ask(more=True), expected(TEXT, length))
            check(owner.ask(), expected(TEXT, length))
            received = owner.party.server.meter.received + owner.party.helper.meter.received
            assert (
                received < 2 * 2 * owner_traffic(for_two_servers(owner.program)).from_each + 4000
            )  # and short messages


def test_services_say_at_start_who_together_can_read_every_text(site):
    for service in (site.server, site.helper):
        assert service.ready["together"].startswith("any two of server, helper and dealer together can read every text")
    assert site.dealer.ready["together"].startswith("the dealer and any party that computes together can read every")


def test_several_owners_at_once(site, part, expected):
    texts = {"client": TEXT, "client-2": "not good , bad !", "client-3": "what a good red !"}
    for name in ("client-2", "client-3"):
        add_certificate(site.certificates, "client", name=name, force=True)

    def ask(name: str) -> None:
        with closing(Owner(site, part, name=name, text=texts[name])) as owner:
            for number in range(3):
                check(owner.ask(more=number < 2), expected(texts[name]))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(ask, texts))


def test_an_owner_s_certificate_counts_and_nothing_is_sent_beyond_the_limit(site, part, expected):
    add_certificate(site.certificates, "client", name="curious", force=True)
    quota = Quota(site.folder / "state", 1000, 86400.0)
    quota.spend("commonName=blindformer curious", 998)
    with closing(Owner(site, part, name="curious")) as owner:
        check(owner.ask(), expected())
        check(owner.ask(), expected())
        sent = owner.party.server.meter.sent + owner.party.helper.meter.sent
        with pytest.raises(
            LimitReached, match=r"server: has answered the 1000 texts .* in 1 day; ask again in 1.* days?, at"
        ):
            owner.ask()
        assert owner.party.server.meter.sent + owner.party.helper.meter.sent < sent + 100
    site.server.wait_for("limited", peer="client")
    with closing(Owner(site, part)) as owner:
        check(owner.ask(), expected())


# --- roles -----------------------------------------------------------------------------------------------------------
def test_a_client_s_certificate_cannot_act_as_a_helper(site, part):
    program = for_two_servers(part.for_length(8).program)
    mine = my_hello(program, "helper", new_session())
    context = client_context(site.certificates, "client")
    channel = meet(site.server.address, context, "server", mine, site.timeout)
    with closing(channel), pytest.raises(PeerRefused, match="says it is a helper where a client was expected"):
        channel.recv_message()


def test_a_server_s_certificate_cannot_act_as_a_helper(site, part):
    program = for_two_servers(part.for_length(8).program)
    context = client_context(site.certificates, "client")
    with pytest.raises(PeerRefused, match="showed the certificate of a server where a helper was expected"):
        ask_two_servers(program, context, site.server.address, site.server.address, site.timeout)


@pytest.mark.parametrize("role", ["server", "helper"])
def test_only_clients_may_ask_a_helper(site, part, role):
    mine = my_hello(for_two_servers(part.for_length(8).program), role, new_session())
    context = client_context(site.certificates, role)
    with pytest.raises(PeerRefused, match=f"showed the certificate of a {role} where a client was expected"):
        meet(site.helper.address, context, "helper", mine, site.timeout)


def test_a_client_that_would_take_part_itself_is_told_of_the_other_topology(site, part):
    mine = my_hello(part.for_length(8).program, "client", new_session())
    context = client_context(site.certificates, "client")
    what = 'has topology helper, this side has dealer; write topology = "helper" in '
    with pytest.raises(PeerDisagrees, match=what):
        meet(site.server.address, context, "server", mine, site.timeout)
    with pytest.raises(PeerDisagrees, match=what):
        meet(site.helper.address, context, "helper", mine, site.timeout)
    site.server.wait_for("refused", kind="PeerDisagrees")


# --- failures --------------------------------------------------------------------------------------------------------
def serving(running, role: str, session: str) -> psutil.Process:
    """The process that serves a peer of this session."""
    line = running.wait_for("session-opened", peer=role, session=session)
    return psutil.Process(line["pid"])


KILLED = [("server", "helper"), ("server", "client"), ("helper", "client"), ("dealer", "server")]


@pytest.mark.parametrize(("party", "peer"), KILLED)
def test_a_process_that_is_killed_ends_its_session_alone(site, part, expected, party, peer):
    """Its owner gets a typed error, another owner's session goes on, and the next one is answered."""
    with closing(Owner(site, part)) as other, closing(Owner(site, part)) as owner:
        check(other.ask(), expected())
        check(owner.ask(), expected())
        service = getattr(site, party)
        opened = service.logged("session-opened", peer=peer)
        psutil.Process(opened[-1]["pid"]).send_signal(signal.SIGKILL)
        with pytest.raises(PeerError):
            owner.ask()
        check(other.ask(), expected())
    with closing(Owner(site, part)) as owner:
        check(owner.ask(), expected())
    for running in (site.dealer, site.server, site.helper):
        eventually(lambda running=running: not running.children(), f"{running.words[0]} keeps processes")


def test_an_owner_that_hangs_up_leaves_nothing_behind(site, part, expected):
    owner = Owner(site, part)
    owner.party.helper.send_message({"query": 0, "more": False})
    owner.party.helper.recv_message()
    owner.party.helper.interrupt()
    owner.party.server.interrupt()
    for running in (site.dealer, site.server, site.helper):
        eventually(lambda running=running: not running.children(), f"{running.words[0]} keeps processes")
    with closing(Owner(site, part)) as owner:
        check(owner.ask(), expected())


@pytest.mark.parametrize(
    ("party", "how"), [("helper", signal.SIGKILL), ("server", signal.SIGTERM), ("dealer", signal.SIGKILL)]
)
def test_a_service_that_ends_and_comes_back(site, part, expected, party, how):
    """However its supervisor ends: none of its processes is left."""
    with closing(Owner(site, part)) as owner:
        check(owner.ask(), expected())
        assert getattr(site, party).stop(how) == (0 if how == signal.SIGTERM else -how)
        with pytest.raises(PeerError, match=party):
            owner.ask()
    site.start(party)
    with closing(Owner(site, part)) as owner:
        check(owner.ask(), expected())
