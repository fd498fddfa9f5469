"""Encrypted queries as a service: the answers, and what the server sees of them."""

from __future__ import annotations

import contextlib
import shutil
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import psutil
import pytest
from blindformer.models.artifacts.client import sources_of
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.loading.huggingface import InputError
from blindformer.parties.certificates.issuing import add_certificate, make_certificates, revoke
from blindformer.parties.service.quota import Quota
from blindformer.parties.session.encrypted_queries import EncryptingClient
from blindformer.parties.session.messages import LimitReached, SlotsBusy
from blindformer.parties.transport.stream import StreamChannel
from blindformer.protocols.ckks.keys import ClientKeys
from blindformer.protocols.errors import PeerGone, PeerRefused
from blindformer.tests.parties.service.answers import clear
from blindformer.tests.parties.service.encrypted.conftest import ERROR, TEXTS, Site, connect, request_of

# Answers.


def test_texts_share_requests_and_answers_are_those_of_clear(client, made):
    progress, modules = [], []
    client.sessions.progress = lambda phase, done, total: progress.append((phase, done, total))
    client.server.layer = modules.append
    results = client.query_many(TEXTS[:3])
    client.sessions.progress = client.server.layer = None
    named = client.part.for_length().circuit.facts.steps
    assert modules == 2 * [*named[1:], named[-1]], "what it works on next"
    steps = len(named)
    assert [entry for entry in progress if entry[0] == "online"] == 2 * [("online", n + 1, steps) for n in range(steps)]
    for pair in (TEXTS[:2], TEXTS[2:3]):
        expected = clear(made.compiled, sources_of([client.part.encode(text) for text in pair]))["logits"]
        for place, text in enumerate(pair):
            result = results[TEXTS.index(text)]
            assert (result.outputs["logits"][0] - expected[place]).abs().max() < ERROR
            assert {row["label"] for row in result.value} == {"calm", "glad", "cross"}
    assert client(TEXTS[0])[0].keys() == {"label", "score"}


@pytest.mark.parametrize("error", [SlotsBusy("server", 0.0), PeerGone("server", "closed the connection", "ask again")])
def test_a_server_that_is_busy_or_away_for_a_moment_is_sent_no_new_keys(client, keyed, monkeypatch, error):
    """Keys that a lost session had are looked for once more; only a server that has forgotten them gets others."""
    program, has, asked = client.part.for_length().program.hash(), EncryptingClient.has, []

    def fails_once(self, name):
        asked.append(name)
        if len(asked) == 1:
            raise error
        return has(self, name)

    kept = client.server.keyed[program]
    client.sessions.get(client.part.for_length()).close()
    monkeypatch.setattr(EncryptingClient, "has", fails_once)
    monkeypatch.setattr(EncryptingClient, "upload", lambda *of: pytest.fail("sent keys again"))
    with contextlib.suppress(PeerGone):
        client.query(TEXTS[0])
    client.query(TEXTS[0])
    assert client.server.keyed[program] is kept
    assert asked == [kept.name] * 2


def test_requests_of_one_client_are_beside_each_other_as_far_as_there_are_places(client):
    """There are three places. More requests wait for one; none is lost."""
    expected = [client.query(text).value for text in TEXTS]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(client.query, TEXTS * 3))
    assert [result.value[0]["label"] for result in results] == [value[0]["label"] for value in expected] * 3
    assert not any(result.retried for result in results)
    (idle,) = client.server._idle.values()
    assert len(idle) == 1


def test_an_answer_out_of_range_shows_in_nothing_that_the_server_sees(client, monkeypatch):
    """It would learn how what it sends decrypts: one bit a query, which it could choose. The first request's answer is
    bad, for one of its texts; a consumer reads all, or leaves at the first result, or wants none of it then."""
    decrypt, send, message, seen = ClientKeys.decrypt, StreamChannel.send, StreamChannel.send_message, []

    def sent(self, data):
        seen.append(len(data))
        send(self, data)

    def said(self, words):
        seen.append(sorted(words))
        message(self, words)

    monkeypatch.setattr(StreamChannel, "send", sent)
    monkeypatch.setattr(StreamChannel, "send_message", said)
    client.query(TEXTS[0])

    def ask(consume, bad):
        def spoilt(keys, answers):
            outputs = decrypt(keys, answers)
            while bad:
                outputs["logits"][bad.pop()] = 1e30
            return outputs

        monkeypatch.setattr(ClientKeys, "decrypt", spoilt)
        seen.clear()
        with contextlib.suppress(AnswerOutOfRange):
            return consume(), list(seen)
        return None, list(seen)

    for consume in (
        lambda: dict(client.stream(["", *TEXTS[:3]])),
        lambda: next(client.stream(TEXTS[:3])),
        lambda: client.query_many(TEXTS[:3]),
    ):
        (good, expected), (outcome, requests) = ask(consume, []), ask(consume, [0])
        assert good is not None
        assert len(requests) == len(expected)
        assert requests.count(["keys", "query"]) == 2
        for request, usual in zip(requests, expected, strict=True):
            if isinstance(request, int):
                assert request == pytest.approx(usual, rel=0.01)  # how well what is random compresses is random
            else:
                assert request == usual
        if isinstance(outcome, dict):
            assert isinstance(outcome[1].error, AnswerOutOfRange)
            assert isinstance(outcome[0].error, InputError)
            assert all(outcome[number].value for number in (2, 3))  # of the same request, and of the next
        else:
            assert outcome is None or isinstance(outcome[1].error, AnswerOutOfRange)


def test_kept_keys_are_sent_once(site, tmp_path):
    with site.client(keys=tmp_path / "keys") as first:
        assert first.query(TEXTS[0]).report.setup_bytes > 100_000
    for file in (tmp_path / "keys").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    with site.client(keys=tmp_path / "keys") as second:
        assert second.query(TEXTS[0]).report.setup_bytes == 0


# Privacy.


def raw(keys):
    """The secret key's first coefficients as they lie in memory."""
    plain = keys._secret.data()
    return b"".join(plain.data(i).to_bytes(8, "little") for i in range(8))


def test_the_secret_key_is_in_nothing_that_is_sent(site, monkeypatch):
    """Neither as SEAL saves it, nor as it lies in memory."""
    sent, send = bytearray(), StreamChannel.send
    monkeypatch.setattr(StreamChannel, "send", lambda self, data: sent.extend(data) or send(self, data))
    with site.client() as mine:
        mine.query_many(TEXTS)
        (keyed,) = mine.server.keyed.values()
        secret = keyed.keys.secret_bytes()
    windows = {secret[at : at + 16] for at in range(1000, len(secret) - 16, len(secret) // 20)}
    assert raw(keyed.keys) not in sent
    assert not any(window in sent for window in windows)
    sent += secret
    assert all(window in sent for window in windows)  # the search finds what is there


def test_the_servers_processes_never_hold_the_secret_key(site):
    with site.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine.server.keyed.values()
        needle = raw(keyed.keys)
        try:
            assert holds(psutil.Process().pid, needle)
        except PermissionError:
            pytest.skip("this machine lets nobody read another process's memory")
        for process in [psutil.Process(site.service.pid), *site.service.children()]:
            assert not holds(process.pid, needle)


def holds(pid: int, needle: bytes) -> bool:
    """Whether a process has these bytes anywhere that it can write."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, mode, *_ = line.split()
            if mode.startswith("rw"):
                start, end = (int(number, 16) for number in place.split("-"))
                try:
                    memory.seek(start)
                    if needle in memory.read(end - start):
                        return True
                except OSError:
                    continue
    return False


def test_an_answer_to_another_key_is_an_error(site, client, keyed):
    """The server cannot tell; the client can."""
    with site.client() as mine:
        mine.query(TEXTS[0])
        (stranger,) = mine.server.keyed.values()
        stranger.name = keyed.name
        result = next(iter(mine.stream([TEXTS[0]])))[1]
        mine.server.keyed.clear()  # they are the other client's
    assert isinstance(result.error, AnswerOutOfRange)


def test_one_request_has_another_reply_each_time(client, keyed, session):
    """What is computed has no chance in it, so a client could hold it against weights that it guesses."""
    request = request_of(client, keyed.keys, TEXTS[:2])
    replies = [session.ask(keyed.name, request, lambda step: None)[0] for _ in range(2)]
    assert replies[0] != replies[1]


# What it says of itself.


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """A service with certificates of its own."""
    certificates = tmp_path_factory.mktemp("alone")
    make_certificates(certificates, keep_ca_key=True, days=30)
    own = {"workers": 1, "query_processes": 2, "queries_each": 1000, "state": certificates / "state"}
    with Site(replace(made, certificates=certificates), **own) as running:
        yield running


def test_who_is_revoked_asks_no_more_and_its_keys_go(alone, tmp_path):
    """Without a restart or a signal. Others' keys stay, and their queries are answered."""
    certificates, service = alone.made.certificates, alone.service
    old = shutil.copytree(certificates, tmp_path / "old")
    with alone.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine.server.keyed.values()
        with closing(connect(alone)) as revoked:
            assert revoked.has(keyed.name)
            add_certificate(certificates, "client", force=True)
            with alone.client() as other:
                other.query(TEXTS[0])
                revoke(certificates, str(old / "client.pem"))
                service.wait_for("certificates-reloaded")
                service.wait_for("keys-gone", session=keyed.name[:8])
                with pytest.raises(PeerRefused, match="its certificate was revoked"):
                    revoked.has(keyed.name)
                with pytest.raises(PeerRefused, match="refused this side's certificate: it was revoked; ask"):
                    connect(Namespace(address=alone.address, made=replace(alone.made, certificates=old)))
                assert other.query(TEXTS[1]).retried == ""


def test_processes_may_share_a_query(alone, made):
    with alone.client() as client:
        expected = clear(made.compiled, sources_of([client.part.encode(text) for text in TEXTS[:2]]))["logits"]
        assert (client.query_many(TEXTS[:2])[1].outputs["logits"] - expected[1]).abs().max() < ERROR


def test_a_request_counts_as_all_its_texts_and_beyond_the_limit_none_is_answered(alone):
    certificates = alone.made.certificates
    add_certificate(certificates, "client", name="curious", force=True)
    for file in ("client.pem", "client.key"):
        shutil.copy(certificates / "curious" / file, certificates / file)
    quota = Quota(certificates / "state", 1000, 86400.0)
    quota.spend("commonName=blindformer curious", 997)
    with alone.client() as mine:
        assert mine.query(TEXTS[0]).value  # one text, in a request that has places for two
        with pytest.raises(
            LimitReached, match=r"server: has answered the 1000 texts .* in 1 day; ask again in 1"
        ) as caught:
            mine.query(TEXTS[1])
        assert caught.value.retry_after > 86400
        assert "asked" not in caught.value.party
    quota.spend("commonName=blindformer curious", 1)
    assert alone.service.wait_for("limited")["owner"]
