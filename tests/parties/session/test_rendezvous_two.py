"""Who dials whom, over TLS: the same program or none, the role of the certificate, and a session's id."""

from __future__ import annotations

import pytest
from blindformer.parties.certificates.tls_folder import client_context, server_context
from blindformer.parties.session.rendezvous_two import (
    MemorySeeds,
    meet_as_dealer,
    my_hello,
    receive_seed,
    seed_dealer,
)
from blindformer.parties.transport.handshake import answer_of, greet, hello, meet, new_session
from blindformer.parties.transport.tls import dial, listen
from blindformer.protocols.errors import PeerDisagrees, PeerError, PeerProtocolError, PeerRefused, PeerTimeout
from blindformer.tests.parties.session.site import small_case
from blindformer.tests.patience import PATIENCE

CASE = small_case()
OTHER = CASE.program.model_copy(update={"model": "another"})
SESSION = "0f" * 16


@pytest.fixture
def listener(certificates, request):
    with listen("127.0.0.1", 0, server_context(certificates, request.param), timeout=PATIENCE) as listener:
        yield listener


def at(role: str):
    return pytest.mark.parametrize("listener", [role], indirect=True)


def wait_for(listener, roles, greeting, aside):
    """Whoever comes, in another thread: its channel, and what `greeting` makes of it."""

    def met():
        channel = listener.accept(20, roles)
        try:
            return channel, greeting(channel)
        except PeerError:
            channel.close()
            raise

    return aside(met)


def answering(*programs, config="", first=False):
    """How a server of these programs greets a client; `first`: whose first message it has read before."""
    hellos = {program.hash(): my_hello(program, "server", config=config) for program in programs}

    def answer(channel):
        return greet(channel, lambda theirs: answer_of(hellos, theirs), 20, channel.recv_message() if first else None)

    return answer


@at("server")
def test_a_client_finds_the_server_and_its_program(listener, certificates, aside):
    met = wait_for(listener, {"client"}, answering(CASE.program), aside)
    mine = my_hello(CASE.program, "client", new_session())
    channel = meet(listener.address, client_context(certificates, "client"), "server", mine, 20)
    theirs, hello = met.result(PATIENCE)
    assert hello == mine
    assert (channel.timeout, theirs.timeout) == (20, 20)
    assert len(theirs.certificate.fingerprint) == 64
    channel.send_message({"it": "works"})
    assert theirs.recv_message() == {"it": "works"}
    for end in (channel, theirs):
        end.close()


@at("server")
def test_one_of_several_programs_is_chosen_by_its_hash(listener, certificates, aside):
    for program in (OTHER, CASE.program):
        met = wait_for(listener, {"client"}, answering(OTHER, CASE.program), aside)
        mine = my_hello(program, "client", new_session())
        meet(listener.address, client_context(certificates, "client"), "server", mine, 20).close()
        channel, hello = met.result(PATIENCE)
        assert hello.program == program.hash()
        channel.close()


@at("server")
@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"program": OTHER.hash()}, "has program"),
        ({"blindformer": "99"}, "has blindformer"),
        ({"config": "ab" * 32}, "has config"),
    ],
)
def test_a_disagreement_is_told_on_both_sides(listener, certificates, aside, changed, what):
    met = wait_for(listener, {"client"}, answering(CASE.program, config="cd" * 32), aside)
    mine = my_hello(CASE.program, "client", new_session()).model_copy(update=changed)
    with pytest.raises(PeerDisagrees, match=f"server: {what}"):
        meet(listener.address, client_context(certificates, "client"), "server", mine, 20)
    error = met.exception(20)
    assert isinstance(error, PeerDisagrees)
    assert error.party == "client"


@at("dealer")
@pytest.mark.parametrize(
    ("topology", "reason"), [("", ""), ("dealer", ""), ("helper", "has topology helper, this side")]
)
def test_a_dealer_serves_both_topologies_unless_its_file_names_one(listener, certificates, aside, topology, reason):
    met = wait_for(listener, {"client"}, lambda channel: meet_as_dealer(channel, 20, topology=topology), aside)
    channel = dial(*listener.address, client_context(certificates, "client"), "dealer", timeout=PATIENCE)
    try:
        hello(channel, my_hello(CASE.program, "client", SESSION), "dealer")
        refusal = ""
    except PeerDisagrees as error:
        refusal = str(error)
    assert refusal[: len("dealer: ") + len(reason)] == (f"dealer: {reason}" if reason else "")
    assert (met.exception(20) is None) == (not reason)
    channel.close()


@at("dealer")
def test_a_hello_without_a_session_is_refused_and_told(listener, certificates, aside):
    met = wait_for(listener, {"client"}, lambda channel: meet_as_dealer(channel, 20), aside)
    channel = dial(*listener.address, client_context(certificates, "client"), "dealer", timeout=PATIENCE)
    hello(channel, my_hello(CASE.program, "client"), "dealer")
    with pytest.raises(PeerProtocolError, match="named no valid session"):
        channel.recv_message()
    channel.close()
    assert isinstance(met.exception(20), PeerProtocolError)


@at("dealer")
def test_a_role_that_the_certificate_does_not_prove_is_refused(listener, certificates, aside):
    met = wait_for(listener, {"client", "server"}, lambda channel: meet_as_dealer(channel, 20), aside)
    channel = dial(*listener.address, client_context(certificates, "client"), "dealer", timeout=PATIENCE)
    hello(channel, my_hello(CASE.program, "server", SESSION), "dealer")
    with pytest.raises(PeerRefused, match="says it is a server where a client was expected"):
        channel.recv_message()
    channel.close()
    assert isinstance(met.exception(20), PeerRefused)


@at("dealer")
def test_a_client_leaves_its_seed_and_the_server_finds_it(listener, certificates, aside):
    """With a dealer that has never heard of the program."""
    seeds = MemorySeeds()

    def keep(channel):
        receive_seed(channel, meet_as_dealer(channel, 20), seeds)
        channel.close()

    done = wait_for(listener, {"client"}, keep, aside)
    mine = my_hello(CASE.program, "client", SESSION)
    seed_dealer(client_context(certificates, "client"), listener.address, mine, 20, bytes(range(32)))
    done.result(PATIENCE)
    met = wait_for(listener, {"server"}, lambda channel: meet_as_dealer(channel, 20), aside)
    mine = my_hello(CASE.program, "server", SESSION)
    channel = meet(listener.address, client_context(certificates, "server"), "dealer", mine, 20)
    theirs, hello = met.result(PATIENCE)
    assert seeds.take(hello.session, hello.program) == bytes(range(32))
    for end in (channel, theirs):
        end.close()


@at("dealer")
def test_a_dealer_that_does_not_acknowledge_is_an_error(listener, certificates, aside):
    def deny(channel):
        meet_as_dealer(channel, 20)
        channel.recv_message()
        channel.send_message({"seeded": False})
        channel.close()

    done = wait_for(listener, {"client"}, deny, aside)
    mine = my_hello(CASE.program, "client", SESSION)
    with pytest.raises(PeerProtocolError, match="did not say that it has this side's seed"):
        seed_dealer(client_context(certificates, "client"), listener.address, mine, 20, bytes(32))
    done.result(PATIENCE)


@at("server")
def test_a_first_message_may_have_been_read_already(listener, certificates, aside):
    met = wait_for(listener, {"client"}, answering(CASE.program, first=True), aside)
    mine = my_hello(CASE.program, "client", new_session())
    meet(listener.address, client_context(certificates, "client"), "server", mine, 20).close()
    channel, hello = met.result(PATIENCE)
    assert hello == mine
    channel.close()


@at("server")
def test_silence_in_the_hello_is_bounded(listener, certificates, aside, monkeypatch):
    monkeypatch.setattr("blindformer.parties.transport.handshake.HELLO_SECONDS", 0.5)
    met = wait_for(listener, {"client"}, lambda channel: greet(channel, lambda theirs: theirs, 60), aside)
    channel = dial(*listener.address, client_context(certificates, "client"), "server", timeout=PATIENCE)
    assert isinstance(met.exception(20), PeerTimeout)
    channel.close()
