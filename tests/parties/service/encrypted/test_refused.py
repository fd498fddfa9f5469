"""Everything that can be asked wrongly of the service: a clear error, after which it still answers."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import psutil
import pytest
from blindformer.models.artifacts import save
from blindformer.models.building import compile_lengths
from blindformer.models.loading.load import load
from blindformer.parties.session.encrypted_queries import KeysGone, send_sealed
from blindformer.parties.session.messages import SlotsBusy
from blindformer.protocols.errors import PeerError, PeerGone, PeerProtocolError
from blindformer.tests.parties.service.encrypted.conftest import TEXTS, Site, connect, new_keys, request_of
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import eventually

REFUSALS = (
    "is damaged|not whole|holds .* bytes|compressed as|no header|too much|ended the process|another|lack"
    "|cannot be one of these"
)


def of_other_parameters(client):
    """Keys of the same sizes for other primes."""
    from blindformer.protocols.ckks.keys import ClientKeys
    from blindformer.protocols.ckks.parameters import insecure_parameters

    part = client.part.for_length()
    given = part.circuit.facts.parameters
    return ClientKeys(part.circuit.ends, insecure_parameters(given.degree, given.levels, given.scale_bits - 1))


def outcome(site, keys, request, sealed=None):
    """Of a session of its own: "answered", or why not. `sealed`: keys that are sent first."""
    with closing(connect(site)) as session:
        try:
            name = session.upload(sealed) if sealed else keys
            session.ask(name, request, lambda step: None)
        except PeerError as error:
            return str(error)
        if sealed:
            session.forget(name)
        return "answered"


@pytest.mark.usefixtures("unharmed")
def test_keys_that_are_none_are_refused(site, client):
    keys = new_keys(client)
    sealed, request = list(keys.sealed_evaluation()), request_of(client, keys, TEXTS[:1])
    others = list(of_other_parameters(client).sealed_evaluation())
    for wrong, error in (
        (sealed[1:], "are more than one of these parameters can have|holds .* bytes"),
        ([bytes(1000)], "cannot be one of these|has no header of SEAL's"),
        # Of the same sizes, so that only SEAL can tell, which reads them when they are needed.
        ([*sealed[:2], *sealed[3:], sealed[2]], "is the key of another rotation"),
        (others, "of other parameters"),
    ):
        assert re.search(error, outcome(site, "", request, wrong)), error


def processes(site):
    """Those that sessions have forked for their clients' bytes."""
    forked = set()
    for child in psutil.Process(site.service.pid).children():
        with suppress(psutil.Error):
            forked |= set(child.children())
    return forked


def on_disk(name):
    return list(Path(tempfile.gettempdir()).glob(f"bf-server-*/{name}"))


def test_keys_whose_upload_is_cut_are_not_kept(site, client):
    sealed = list(new_keys(client).sealed_evaluation())
    with closing(connect(site)) as session:
        session.channel.send_message({"upload": True})
        name = session.channel.recv_message()["name"]
        send_sealed(session.channel, sealed[:2])
        eventually(lambda: on_disk(name), "its keys are on the disk")
    eventually(lambda: not on_disk(name), "its keys have left the disk")
    with closing(connect(site)) as session:
        assert not session.has(name)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("what", ["keys", "query"])
def test_what_is_longer_than_it_can_be_is_not_kept(site, keyed, what):
    """Its length is refused before a byte of it is kept."""
    with closing(connect(site)) as session:
        if what == "keys":
            session.channel.send_message({"upload": True})
            session.channel.recv_message()
        else:
            session.channel.send_message({"query": 0, "keys": keyed.name})
        before = site.service.memory()  # the session's process among it
        session.channel.send_message({"bytes": 48 << 20})
        with pytest.raises(PeerProtocolError, match="50331648 bytes are more than one of these parameters can have"):
            session.channel.recv_message()
    assert site.service.memory() - before < 30


@pytest.mark.usefixtures("unharmed")
def test_every_refusal_says_why(site, client, keyed):
    good, noise = request_of(client, keyed.keys, TEXTS[:2]), bytes(range(256)) * 4
    damaged = good[0][:200] + noise + good[0][200 + len(noise) :]
    for request, error in (
        ([noise], "cannot be one of these|has no header of SEAL's"),
        ([good[0][:-1]], "has no header of SEAL's|is not whole"),
        ([good[0] + b"\0"], "more than one of these|has no header of SEAL's"),
        ([damaged, *good[1:]], "damaged|of other parameters|is not whole|another level"),
        (request_of(client, of_other_parameters(client), TEXTS[:2]), "of other parameters"),
    ):
        assert re.search(error, outcome(site, keyed.name, request)), error
    for message in (
        {"query": -1, "keys": keyed.name},
        {"query": 0, "keys": "../" * 10 + "ab"},
        {"query": 0, "keys": keyed.name, "more": 1},
        {"kept": keyed.name.upper()},
        {"upload": "yes"},
        {"forget": 3},
        {"anything": True},
    ):
        with closing(connect(site)) as session:
            session.channel.send_message(message)
            with pytest.raises(PeerProtocolError, match="sent a message that has no place here"):
                session.channel.recv_message()


def speak_until_refused(channel, keys):
    while True:
        channel.send_message({"kept": keys})
        assert channel.recv_message() == {"waiting": True}


@pytest.mark.usefixtures("unharmed")
def test_who_speaks_while_its_query_computes_is_no_client(site, client, keyed):
    request, others = request_of(client, keyed.keys, TEXTS[:2]), processes(site)
    with closing(connect(site)) as session:
        session.ask(keyed.name, request, lambda step: None)
        (computing,) = processes(site) - others
        computing.suspend()  # so that it computes until the session has read what comes meanwhile
        session.channel.send_message({"query": 1, "keys": keyed.name})
        send_sealed(session.channel, request)
        time.sleep(0.5)  # it has read the query, most likely; what it reads with it counts as the next request
        with pytest.raises(PeerProtocolError, match="sent a message that has no place here"):
            speak_until_refused(session.channel, keyed.name)


def test_keys_are_their_certificates_alone(client, keyed, session, other):
    assert session.has(keyed.name)
    assert not other.has(keyed.name)
    with pytest.raises(KeysGone, match="never sent, or expired"):
        other.ask(keyed.name, request_of(client, keyed.keys, TEXTS[:2]), lambda step: None)
    other.forget(keyed.name)
    assert not other.has(keyed.name)
    assert session.has(keyed.name)
    assert client.query(TEXTS[0]).retried == ""


@pytest.mark.usefixtures("unharmed")
def test_more_than_the_queue_holds_are_told_when_to_come_back(site, client, keyed):
    """One query may wait. The one that computes stands still meanwhile."""
    body, outcomes = request_of(client, keyed.keys, TEXTS[:2]), []

    def ask():
        with closing(connect(site)) as session:
            try:
                session.ask(keyed.name, body, lambda step: None)
                outcomes.append("answer")
            except SlotsBusy as busy:
                outcomes.append("the queue is full" if "the queue is full" in str(busy) else busy)

    hang_up(site, client)
    threads = [threading.Thread(target=ask) for _ in range(3)]
    threads[0].start()
    (process,) = eventually(lambda: processes(site), "one computes")
    process.suspend()
    try:
        for thread in threads[1:]:
            thread.start()
        eventually(lambda: outcomes, "one is sent away")
    finally:
        process.resume()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answer", "answer", "the queue is full"]


def hang_up(site, client):
    """Returns when no session of this client is left at the service."""
    client.sessions.get(client.part.for_length()).close()
    eventually(lambda: not processes(site), "nobody computes")
    site.service.wait_for_metrics("blindformer_sessions 0.0")


@pytest.mark.usefixtures("unharmed")
def test_a_request_that_ends_its_process_is_one_refusal_and_touches_no_other(site, client):
    """As a crash of SEAL's would. Another client's request waits for the same place, and is answered."""
    expected = client.query(TEXTS[1]).value
    hang_up(site, client)
    with site.client() as ending, ThreadPoolExecutor(2) as pool:
        ending.query(TEXTS[0])
        (process,) = processes(site)
        process.suspend()
        ended = pool.submit(ending.query, TEXTS[0])
        site.service.wait_for_metrics("blindformer_running 1.0")
        answered = pool.submit(client.query, TEXTS[1])
        site.service.wait_for_metrics("blindformer_queued 1.0")
        process.kill()
        with pytest.raises(PeerProtocolError, match="the request ended the process that computed on it; make new keys"):
            ended.result(PATIENCE)
        assert answered.result(PATIENCE).value[0]["label"] == expected[0]["label"]
        assert ending.query(TEXTS[0]).value


@pytest.mark.usefixtures("unharmed")
def test_damaged_keys_are_one_refusal_each_wherever_they_are_damaged(site, client):
    """In the heads of their parts and within; some bytes are as good as others, and the answer is noise."""
    keys, outcomes = new_keys(client), []
    sealed, request = list(keys.sealed_evaluation()), request_of(client, keys, TEXTS[:1])
    for number in (0, 1, 2):
        for at in (16, 40, 60, 90, 130, 170, 250, len(sealed[number]) // 2, len(sealed[number]) - 9):
            bad = bytearray(sealed[number])
            bad[at] ^= 0xFF
            outcomes.append(outcome(site, "", request, [*sealed[:number], bad, *sealed[number + 1 :]]))
    assert all(re.search(f"answered|{REFUSALS}", each) for each in outcomes), outcomes
    assert sum(each != "answered" for each in outcomes) > 9


@pytest.mark.usefixtures("unharmed")
def test_a_client_that_leaves_stops_its_query(site, client, keyed):
    hang_up(site, client)
    session = connect(site)
    session.channel.send_message({"query": 0, "keys": keyed.name})
    send_sealed(session.channel, request_of(client, keyed.keys, TEXTS[:2]))
    (process,) = eventually(lambda: processes(site), "it computes")
    process.suspend()
    session.channel.close()
    eventually(lambda: not process.is_running(), "its process has ended")


@pytest.mark.slow
def test_a_query_that_takes_too_long_is_ended(made):
    with Site(made, workers=1, query_seconds=8) as site, site.client() as client:
        client.query(TEXTS[0])
        (process,) = processes(site)
        process.suspend()
        (connection,) = client.server._idle[client.part.for_length().program.hash()]
        (keyed,) = client.server.keyed.values()
        with pytest.raises(PeerGone, match="has ended a query that took longer than"):
            connection.ask(keyed.name, request_of(client, keyed.keys, TEXTS[:2]), lambda step: None)
        assert client.query(TEXTS[0]).value


@pytest.mark.slow
def test_keys_that_expired_are_sent_again(made):
    with Site(made, workers=1, keys_seconds=6) as site, site.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine.server.keyed.values()
        assert on_disk(keyed.name)
        eventually(lambda: not on_disk(keyed.name), "its keys have left the disk")
        with closing(connect(site)) as session:
            assert not session.has(keyed.name)
        again = mine.query(TEXTS[1])
        assert "expired" in again.retried
        assert again.report.setup_bytes > 0


def test_keys_that_find_no_room_in_memory_are_read_for_each_query(made):
    with Site(made, workers=1, keys_memory_gb=0.000001) as site, site.client() as mine:
        for text in TEXTS[:2]:
            assert mine.query(text).retried == ""
            eventually(lambda: not processes(site), "its process has ended")


@pytest.mark.parametrize(("plan", "error"), [("faithful", "is not compiled for encrypted queries"), ("he", "128 bits")])
def test_a_folder_that_cannot_be_served_is_said_at_the_start(refused, made, tiny_classifier, tmp_path, plan, error):
    """A program of another plan, and one in a ring for tests."""
    folder = made.folder
    if plan != "he":
        loaded = load(tiny_classifier)
        folder = save(compile_lengths(loaded, [8], plan, texts=TEXTS), tmp_path, loaded)
    own = ("--protocol", "ckks", "--certs", made.certificates, "--listen", "127.0.0.1:0")
    assert error in refused("serve", folder / "server", *own)
