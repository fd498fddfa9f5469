"""Encrypted queries over HTTPS: the answers, what the server sees of them, and everything that can be asked wrongly."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import ssl
import time
from dataclasses import replace

import psutil
import pytest
from blindformer.models.artifacts.client import sources_of
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.loading.huggingface import InputError
from blindformer.parties.certificates.issuing import add_certificate, make_certificates, renew_certificates, revoke
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.client.http import Api
from blindformer.parties.config import parse_address
from blindformer.parties.service.quota import Quota
from blindformer.parties.session.compute_slots import LimitReached, SlotsBusy
from blindformer.protocols.ckks.keys import ClientKeys
from blindformer.protocols.errors import PeerGone, PeerRefused
from blindformer.tests.parties.service.answers import clear
from blindformer.tests.parties.service.https.conftest import ERROR, TEXTS, Site, refused, request_of
from blindformer.tests.shared.deployment import eventually

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
    program, ask, asked = client.part.for_length().program.hash(), Api.ask, []

    def fails_once(self, method, path, *body):
        asked.append((method, path))
        if path.startswith("/v1/keys/") and len([one for one in asked if one[1] == path]) == 1:
            raise error
        return ask(self, method, path, *body)

    kept = client.server.keyed[program]
    client.sessions.get(client.part.for_length()).close()
    monkeypatch.setattr(Api, "ask", fails_once)
    with contextlib.suppress(PeerGone):
        client.query(TEXTS[0])
    client.query(TEXTS[0])
    assert client.server.keyed[program] is kept
    assert asked.count(("GET", f"/v1/keys/{kept.name}")) == 2
    assert not [method for method, path in asked if method == "PUT" or path.endswith("/keys")]


def test_an_answer_out_of_range_shows_in_nothing_that_the_server_sees(client, monkeypatch):
    """It would learn how what it sends decrypts: one bit a query, which it could choose. The first request's answer is
    bad, for one of its texts; a consumer reads all, or leaves at the first result, or wants none of it then."""
    decrypt, exchange, seen = ClientKeys.decrypt, Api._exchange, []

    def recorded(self, method, path, body):
        size = [0] if body is not None else []
        seen.append((method, path, size))

        def counted():
            for piece in body:
                size[0] += len(piece)
                yield piece

        return exchange(self, method, path, counted() if size else None)

    monkeypatch.setattr(Api, "_exchange", recorded)
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
        assert [entry[:2] for entry in requests] == [entry[:2] for entry in expected]
        assert len(requests) == 2
        for request, usual in zip(requests, expected, strict=True):
            assert request[2] == pytest.approx(usual[2], rel=0.01)  # how well what is random compresses is random
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
    """Neither as SEAL saves it, nor as it lies in memory; and every message is keys or ciphertexts, and no more."""
    sent = bytearray()
    counted = Api._count
    monkeypatch.setattr(Api, "_count", lambda self, piece: sent.extend(piece) or counted(self, piece))
    with site.client() as mine:
        mine.query_many(TEXTS)
        (keyed,) = mine.server.keyed.values()
        secret = keyed.keys.secret_bytes()
    windows = {secret[at : at + 16] for at in range(1000, len(secret) - 16, len(secret) // 20)}
    assert raw(keyed.keys) not in sent
    assert not any(window in sent for window in windows)
    sent += secret
    assert all(window in sent for window in windows)  # the search finds what is there
    assert sent.count(b"BFHE") == 1 + 2


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


def test_one_request_has_another_reply_each_time(client, keyed, api):
    """What is computed has no chance in it, so a client could hold it against weights that it guesses."""
    request = request_of(client, keyed.keys, TEXTS[:2])
    replies = [list(api.lines(f"/v1/keys/{keyed.name}/queries", [request]))[-1]["answer"] for _ in range(2)]
    assert replies[0] != replies[1]


# What it says of itself.


def test_the_interface_is_described_without_anything_from_elsewhere(api, site):
    schema = api.ask("GET", "/openapi.json")
    assert set(schema["paths"]["/v1/keys/{name}"]) == {"get", "put", "delete"}
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)):
        assert name in schema["components"]["schemas"]
    query = schema["paths"]["/v1/keys/{name}/queries"]["post"]
    assert [parameter["name"] for parameter in query["parameters"]] == ["name"]
    assert set(query["responses"]) == {"200", "400", "403", "408", "409", "410", "413", "429", "500", "503", "504"}
    assert set(schema["paths"]["/v1/health"]["get"]["responses"]) == {"200", "403", "503"}
    assert "Retry-After" in query["responses"]["503"]["headers"]
    with api._exchange("GET", "/docs", None) as reply:
        page = reply.read().decode()
    assert "/v1/keys/{name}/queries" in page
    assert "<script" not in page
    assert "src=" not in page
    for leads in re.findall('href="#(.*?)"', page):
        assert f'id="{leads}"' in page
    assert "no such" not in refused(api, "GET", "/nothing")


def test_models_say_sizes(api, made):
    (model,) = api.ask("GET", "/v1/models")["models"]
    assert model["facts"]["program"] == made.compiled.program.hash()
    assert model["reply_most_bytes"] < model["request_most_bytes"] < model["keys_most_bytes"]


def test_metrics_and_health(site, client, api):
    client.query(TEXTS[0])
    site.service.wait_for_metrics(r"blindformer_queries_total [1-9].*", r"blindformer_key_bytes [1-9].*")
    assert api.ask("GET", "/v1/health") == {"healthy": True, "stopping": False}


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """A service with certificates of its own."""
    certificates = tmp_path_factory.mktemp("alone")
    make_certificates(certificates, keep_ca_key=True, days=30)
    own = {"workers": 1, "query_processes": 2, "queries_each": 1000, "state": certificates / "state"}
    with Site(replace(made, certificates=certificates), **own) as running:
        yield running


def test_new_certificates_are_taken_up_without_a_stop(alone, tmp_path):
    """A new CA, too: who has none of its certificates is no client any more. Keys stay: they are a certificate's."""
    certificates, service = alone.made.certificates, alone.service
    with alone.client() as before:
        before.query(TEXTS[0])
        old = shutil.copytree(certificates, tmp_path / "old")
        add_certificate(certificates, "server", days=7, force=True)
        service.wait_for("certificates-reloaded")  # by itself
        service.wait_for("certificate-ends")
        assert days_left(alone, certificates) <= 7
        assert before.query(TEXTS[1]).report.setup_bytes > 0, "of the keys that it sent before"
        assert before.query(TEXTS[1]).retried == ""
        renew_certificates(certificates, days=9, within=99, names=["client"])
        assert "never sent, or expired" in before.query(TEXTS[1]).retried, "keys are the old certificate's"
        key = certificates / "server.key"
        moved = key.rename(key.with_suffix(".moved"))
        service.send(signal.SIGHUP)
        assert "server.key" in service.wait_for("certificates-kept")["what"]
        moved.rename(key)
        service.wait_for("certificates-reloaded")
        before.query(TEXTS[0])
    make_certificates(certificates, days=90, force=True)
    service.send(signal.SIGHUP)
    service.wait_for("certificates-reloaded")
    assert 7 < days_left(alone, certificates) <= 90
    with alone.client() as after:
        assert after.query(TEXTS[0]).value
    assert greeted(alone, certificates)
    assert not greeted(alone, old)


def test_who_is_revoked_asks_no_more_and_its_keys_go(alone, tmp_path):
    """Without a restart or a signal. Others' keys stay, and their queries are answered."""
    certificates, service = alone.made.certificates, alone.service
    make_certificates(certificates, keep_ca_key=True, force=True)
    service.send(signal.SIGHUP)
    service.wait_for("certificates-reloaded")
    old = shutil.copytree(certificates, tmp_path / "old")
    revoked = Api(parse_address(alone.address), client_context(old, "client"), 20)
    with alone.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine.server.keyed.values()
        assert revoked.ask("GET", f"/v1/keys/{keyed.name}")
        add_certificate(certificates, "client", force=True)
        with alone.client() as other:
            other.query(TEXTS[0])
            revoke(certificates, str(old / "client.pem"))
            service.wait_for("certificates-reloaded")
            service.wait_for("keys-gone", session=keyed.name[:8])
            for path, body in (("/v1/models", None), (f"/v1/keys/{keyed.name}/queries", [bytes(10**6)] * 9)):
                with pytest.raises(PeerRefused, match="server: refused this side's certificate: it was revoked; ask"):
                    revoked.ask("POST" if body else "GET", path, body)
                assert "its certificate was revoked" in service.wait_for("refused", kind="PeerRefused")["what"]
            assert other.query(TEXTS[1]).retried == ""


def greeted(site, certificates):
    """Whether the server speaks HTTP with this client, who takes any server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    with socket.create_connection(parse_address(site.address)) as plain, context.wrap_socket(plain) as tls:
        try:
            tls.sendall(b"GET /v1/health HTTP/1.1\r\nHost: here\r\n\r\n")
            return tls.recv(4) == b"HTTP"
        except OSError:
            return False


def days_left(site, certificates):
    """Of the certificate that the server shows now."""
    context = client_context(certificates, "client")
    with (
        socket.create_connection(parse_address(site.address)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        ends = ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"])
    return (ends - time.time()) / 86400


def test_processes_may_share_a_query(alone, made):
    with alone.client() as client:
        expected = clear(made.compiled, sources_of([client.part.encode(text) for text in TEXTS[:2]]))["logits"]
        assert (client.query_many(TEXTS[:2])[1].outputs["logits"] - expected[1]).abs().max() < ERROR


def test_a_request_counts_as_all_its_texts_and_beyond_the_limit_none_is_read(alone):
    certificates, address = alone.made.certificates, parse_address(alone.address)
    add_certificate(certificates, "client", name="curious", force=True)
    for file in ("client.pem", "client.key"):
        shutil.copy(certificates / "curious" / file, certificates / file)
    quota = Quota(certificates / "state", 1000, 86400.0)
    quota.spend("commonName=blindformer curious", 997)
    with alone.client() as mine:
        assert mine.query(TEXTS[0]).value  # one text, in a request that has places for two
        (keyed,) = mine.server.keyed.values()
        with pytest.raises(
            LimitReached, match=r"server: has answered the 1000 texts .* in 1 day; ask again in 1"
        ) as caught:
            mine.query(TEXTS[1])
        assert caught.value.retry_after > 86400
        assert "asked" not in caught.value.party
        api = Api(address, client_context(certificates, "client"), 20)
        with pytest.raises(LimitReached):
            api.ask("POST", f"/v1/keys/{keyed.name}/queries", [b"nobody looks at this"])
    quota.spend("commonName=blindformer curious", 1)
    assert alone.service.wait_for("limited")["owner"]


def test_it_stops_in_order(alone):
    assert alone.service.stop() == 0
    assert not alone.service.noise


def test_the_log_says_what_happened_and_to_whom(site, program):
    with site.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine.server.keyed.values()
        refused(mine.server.api(), "POST", f"/v1/keys/{keyed.name}/queries", b"noise")
    session = keyed.name[:8]
    (line,) = site.service.logged("keys-received", session=session)
    assert line["bytes"] > 100_000
    (answered,) = site.service.logged("answered", session=session)
    assert (answered["owner"], answered["bytes"] > 10_000) == (line["owner"], True)
    eventually(lambda: site.service.logged("keys-gone", session=session), "the log says that keys are gone")
    assert site.service.logged("refused", owner=line["owner"])


def test_nothing_was_written_beside_the_log(site):
    assert not site.service.noise
