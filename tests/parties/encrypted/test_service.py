"""Encrypted queries over HTTPS: the answers, what the server sees of them, and everything that can be asked wrongly."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import torch
from blindformer.models.artifacts import save
from blindformer.models.artifacts.client import sources_of
from blindformer.models.building import compile_lengths
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.encrypted import real_values
from blindformer.models.interpreter import interpret
from blindformer.models.loading import load
from blindformer.parties.admission import Busy
from blindformer.parties.certificates import add_certificate, client_context, make_certificates
from blindformer.parties.config import parse_address
from blindformer.parties.encrypted.http import Api, KeysGone, _Connection
from blindformer.protocols.ckks.frames import head, pack
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.errors import PeerRefused
from blindformer.tests.parties.encrypted.conftest import TEXTS, Site
from blindformer.tests.parties.service.harness import eventually

ERROR = 2.0**-12


def clear(made, questions):
    sources = {**sources_of(questions), **made.compiled.weights, **made.compiled.constants}
    return made.compiled.decode(interpret(made.compiled.program, ClearEngine(sources)).outputs)


@pytest.fixture(scope="module")
def client(site):
    with site.client() as found:
        yield found


@pytest.fixture
def keyed(client):
    """The client's keys, which the server has now."""
    client.query(TEXTS[0])
    (found,) = client._keyed.values()
    return found


@pytest.fixture
def api(site):
    return Api(parse_address(site.address), client_context(site.made.certificates, "client"), 60)


@pytest.fixture
def other(site):
    """Another client, with a certificate of its own."""
    return Api(parse_address(site.address), client_context(site.made.certificates, "client", "other"), 60)


@pytest.fixture
def program(made):
    return made.compiled.program.hash()


def request_of(client, keys, texts):
    questions = [client.part.encode(text) for text in texts]
    values = real_values(questions[0].part, sources_of(questions))
    return b"".join(pack("request", questions[0].part.program.hash(), keys.sealed_request(values)))


# Answers.


def test_texts_share_requests_and_answers_are_those_of_clear(client, made):
    told, modules = [], []
    client.progress = lambda phase, done, total: told.append((phase, done, total))
    client.layer = modules.append
    results = client.query_many(TEXTS[:3])
    client.progress = client.layer = None
    named = client.part.for_length().circuit.facts.steps
    assert modules == 2 * [*named[1:], named[-1]], "what it works on next"
    steps = len(named)
    assert [entry for entry in told if entry[0] == "online"] == 2 * [("online", n + 1, steps) for n in range(steps)]
    for pair in (TEXTS[:2], TEXTS[2:3]):
        expected = clear(made, [client.part.encode(text) for text in pair])["logits"]
        for place, text in enumerate(pair):
            found = results[TEXTS.index(text)]
            assert (found.outputs["logits"][0] - expected[place]).abs().max() < ERROR
            assert {row["label"] for row in found.value} == {"calm", "glad", "cross"}
    assert client(TEXTS[0])[0].keys() == {"label", "score"}


def test_a_text_out_of_range_takes_no_other_with_it(client, monkeypatch):
    asked, answer = [], client.answer

    def refusing(questions):
        asked.append(len(questions))
        if any(torch.equal(question.inputs["input_ids"], wrong) for question in questions):
            raise AnswerOutOfRange("out of range")
        return answer(questions)

    wrong = client.part.encode(TEXTS[1]).inputs["input_ids"]
    monkeypatch.setattr(client, "answer", refusing)
    first, second = (result for _, result in client.stream(TEXTS[:2]))
    assert (first.error, first.value is None) == (None, False)
    assert isinstance(second.error, AnswerOutOfRange)
    assert asked == [2, 1, 1]


def test_several_clients_are_answered(site, made):
    found = {}

    def ask(name):
        with site.client(wait=120) as mine:
            found[name] = mine.query(TEXTS[name]).value[0]["label"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {0, 1, 2}


def test_keys_that_the_server_forgot_are_sent_again(client, keyed, api):
    api.ask("DELETE", f"/v1/keys/{keyed.name}")
    result = client.query(TEXTS[0])
    assert "never sent, or expired" in result.retried
    assert result.value


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
        (keyed,) = mine._keyed.values()
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
        (keyed,) = mine._keyed.values()
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
        (stranger,) = mine._keyed.values()
        stranger.name = keyed.name
        result = next(iter(mine.stream([TEXTS[0]])))[1]
        mine._keyed.clear()  # they are the other client's
    assert isinstance(result.error, AnswerOutOfRange)


# What is refused, after which the server still answers.


@pytest.fixture
def unharmed(client, made):
    yield
    expected = clear(made, [client.part.encode(TEXTS[1])])["logits"][0]
    assert (client.query(TEXTS[1]).outputs["logits"][0] - expected).abs().max() < ERROR


def refused(api, method, path, body=None):
    with pytest.raises(PeerRefused) as found:
        api.ask(method, path, None if body is None else [body])
    return str(found.value)


@pytest.mark.usefixtures("unharmed")
def test_requests_that_are_none_are_refused(client, keyed, api, program):
    path = f"/v1/keys/{keyed.name}/queries"
    good = request_of(client, keyed.keys, TEXTS[:2])
    noise = bytes(range(256)) * 40
    for body, error in (
        (b"", "end before their head"),
        (noise, "no message of kind request"),
        (good[:-1], "end before their ciphertext"),
        (good + b"\0", "go on beyond their end|longer than this can be"),
        (good + bytes(10**6), "longer than this can be"),
        (head("request", "cd" * 32) + good[38:], "for another program"),
        (good[:2000] + noise + good[2000 + len(noise) :], "damaged|of other parameters|is not whole|another level"),
    ):
        found = refused(api, "POST", path, body)
        assert any(part in found for part in error.split("|")), found
    assert "of other parameters" in refused(
        api, "POST", path, request_of(client, of_other_parameters(client), TEXTS[:2])
    )


def of_other_parameters(client):
    """Keys of the same sizes for other primes."""
    from blindformer.protocols.ckks.keys import ClientKeys
    from blindformer.protocols.ckks.parameters import insecure_parameters

    part = client.part.for_length()
    given = part.circuit.facts.parameters
    return ClientKeys(part.circuit.ends, insecure_parameters(given.degree, given.levels, given.scale_bits - 1))


@pytest.mark.usefixtures("unharmed")
def test_keys_that_are_none_are_refused(client, api, program):
    from blindformer.protocols.ckks.keys import ClientKeys

    part = client.part.for_length()
    sealed = list(ClientKeys(part.circuit.ends, part.circuit.facts.parameters).sealed_evaluation())
    for message, error in (
        (pack("keys", program, sealed[:-1]), "end before their rotation key"),
        (pack("keys", program, sealed[1:]), "holds .* bytes|where these parameters have"),
        (pack("request", program, sealed), "no message of kind keys"),
        ([bytes(10_000)], "no message of kind keys"),
    ):
        name = api.ask("POST", f"/v1/models/{program}/keys")["keys"]
        found = refused(api, "PUT", f"/v1/keys/{name}", b"".join(message))
        assert any(part in found for part in error.split("|")), found
        with pytest.raises(KeysGone):
            api.ask("GET", f"/v1/keys/{name}")
    name = api.ask("POST", f"/v1/models/{program}/keys")["keys"]
    api.ask("PUT", f"/v1/keys/{name}", pack("keys", program, [*sealed[:1], *sealed[2:], sealed[1]]))
    body = request_of(client, ClientKeys(part.circuit.ends, part.circuit.facts.parameters), TEXTS[:1])
    assert "is the key of another rotation" in refused(api, "POST", f"/v1/keys/{name}/queries", body)
    assert "is not served here" in refused(api, "POST", f"/v1/models/{'cd' * 32}/keys")


@pytest.mark.usefixtures("unharmed")
def test_keys_of_other_parameters_are_refused(client, api, program):
    """Of the same sizes, so that only SEAL can tell, which a worker asks when they are needed."""
    keys = of_other_parameters(client)
    name = api.ask("POST", f"/v1/models/{program}/keys")["keys"]
    api.ask("PUT", f"/v1/keys/{name}", pack("keys", program, keys.sealed_evaluation()))
    body = request_of(client, keys, TEXTS[:2])
    assert "of other parameters" in refused(api, "POST", f"/v1/keys/{name}/queries", body)


@pytest.mark.usefixtures("unharmed")
def test_what_is_longer_than_it_can_be_is_not_kept(site, client, keyed, api, program):
    """Announced or not, of queries and of keys; what comes is let go, and neither memory nor disk grows by it."""

    def path(kind):
        if kind == "request":
            return "POST", f"/v1/keys/{keyed.name}/queries"
        return "PUT", f"/v1/keys/{api.ask('POST', f'/v1/models/{program}/keys')['keys']}"

    before, megabyte = site.service.memory(), bytes(1 << 20)
    for kind, length, status in (
        ("request", 48 << 20, 413),
        ("request", None, 413),
        ("keys", 48 << 20, 413),
        ("keys", None, 400),  # its first object is none
    ):
        assert status_of(api, *path(kind), [head(kind, program), *[megabyte] * 48], length)[0] == status
    assert site.service.memory() - before < 30


@pytest.mark.usefixtures("unharmed")
def test_every_refusal_has_its_status(client, keyed, api, other, program):
    good, path = request_of(client, keyed.keys, TEXTS[:2]), f"/v1/keys/{keyed.name}"
    for asking, method, place, body, status in (
        (api, "POST", f"{path}/queries", b"noise" * 100, 400),
        (api, "POST", f"{path}/queries", good[:-1], 400),
        (api, "GET", "/v1/nothing", b"", 404),
        (api, "POST", f"/v1/models/{'cd' * 32}/keys", b"", 404),
        (api, "PATCH", path, b"", 405),
        (api, "POST", f"{path}/queries", head("request", "cd" * 32) + good[38:], 409),
        (api, "PUT", path, b"", 409),
        (api, "GET", f"/v1/keys/{'0' * 32}", b"", 410),
        (other, "POST", f"{path}/queries", good, 410),
    ):
        found, said = status_of(asking, method, place, [body])
        assert (found, set(said)) == (status, {"error"}), (place, found, said)


def status_of(api, method, path, body, length=None):
    """(status, the reply's JSON). `length`: announced; without it the body comes in chunks."""
    connection = _Connection(api.address, api._context, 60)
    headers = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
    with closing(connection):
        connection.connect()
        connection.request(method, path, iter(body), headers, encode_chunked=length is None)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())


def test_keys_are_their_certificates_alone(client, keyed, api, other):
    assert api.ask("GET", f"/v1/keys/{keyed.name}")["keys"] == keyed.name
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/queries")):
        with pytest.raises(KeysGone):
            other.ask(method, f"/v1/keys/{keyed.name}{path}", [b"x"] if method == "POST" else None)
    assert client.query(TEXTS[0]).retried == ""


def test_a_certificate_of_another_role_is_refused(site):
    stranger = Api(parse_address(site.address), client_context(site.made.certificates, "server"), 60)
    assert "not a client's" in refused(stranger, "GET", "/v1/models")


@pytest.mark.usefixtures("unharmed")
def test_more_than_the_queue_holds_are_told_when_to_come_back(site, client, keyed, api):
    """One runs, one waits; share 1 lets one certificate have both."""
    body, outcomes = request_of(client, keyed.keys, TEXTS[:2]), []

    def ask():
        try:
            lines = list(api.lines(f"/v1/keys/{keyed.name}/queries", [body]))
            outcomes.append("answer" if "answer" in lines[-1] else lines[-1])
        except Busy as busy:
            outcomes.append("busy" if 1 <= busy.retry_after <= 600 else busy)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"answer", "busy"}
    assert "places are taken" in site.service.logged("busy")[-1]["what"]


@pytest.mark.usefixtures("unharmed")
def test_a_worker_that_dies_is_replaced_and_its_query_is_an_error(site, client, keyed, api):
    workers = [p for p in site.service.children() if "blindformer.parties.encrypted.worker" in p.cmdline()]
    lines = api.lines(f"/v1/keys/{keyed.name}/queries", [request_of(client, keyed.keys, TEXTS[:2])])
    next(lines)
    workers[0].kill()
    assert list(lines)[-1] == {"error": "the worker failed on this; it is replaced, and nobody else is affected",
                               "status": 500}  # fmt: skip
    site.service.wait_for("worker-replaced")
    assert "replaced" in site.service.logged("query-failed")[-1]["what"]


@pytest.mark.usefixtures("unharmed")
def test_a_client_that_leaves_stops_its_query(site, client, keyed, api):
    lines = api.lines(f"/v1/keys/{keyed.name}/queries", [request_of(client, keyed.keys, TEXTS[:2])])
    next(lines)
    lines.close()


def test_a_strangers_bytes_are_no_request(site):
    with socket.create_connection(parse_address(site.address)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.settimeout(30)
        assert b"HTTP" not in sock.recv(1000)


# What it says of itself.


def test_the_interface_is_described_without_anything_from_elsewhere(api, site):
    schema = api.ask("GET", "/openapi.json")
    assert set(schema["paths"]["/v1/keys/{name}"]) == {"get", "put", "delete"}
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(schema)):
        assert name in schema["components"]["schemas"]
    query = schema["paths"]["/v1/keys/{name}/queries"]["post"]
    assert [found["name"] for found in query["parameters"]] == ["name"]
    assert set(query["responses"]) == {"200", "400", "403", "408", "409", "410", "413", "500", "503", "504"}
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
    host, port = site.service.metrics

    def queries():
        with urlopen(f"http://{host}:{port}/metrics") as reply:
            rows = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if line[0] != "#")
        return float(rows.get("blindformer_queries_total", 0)) > 0 and float(rows["blindformer_key_bytes"]) > 0

    eventually(queries, "metrics")
    assert api.ask("GET", "/v1/health") == {"healthy": True, "stopping": False}


@pytest.fixture(scope="module")
def alone(made, tmp_path_factory):
    """A service with certificates of its own."""
    certificates = tmp_path_factory.mktemp("alone")
    make_certificates(certificates, keep_ca_key=True, days=30)
    with Site(replace(made, certificates=certificates), "--workers", "1", "--query-processes", "2") as running:
        yield running


def test_new_certificates_are_taken_up_without_a_stop(alone, tmp_path):
    """A new CA, too: who has none of its certificates is no client any more. Keys stay: they are a certificate's."""
    certificates, service = alone.made.certificates, alone.service
    with alone.client() as before:
        before.query(TEXTS[0])
        old = shutil.copytree(certificates, tmp_path / "old")
        add_certificate(certificates, "server", days=7, force=True)
        service.send(signal.SIGHUP)
        service.wait_for("certificates-reloaded")
        assert days_left(alone, certificates) <= 7
        assert before.query(TEXTS[1]).report.setup_bytes > 0, "of the keys that it sent before"
        assert before.query(TEXTS[1]).retried == ""
        key = certificates / "server.key"
        moved = key.rename(key.with_suffix(".moved"))
        service.send(signal.SIGHUP)
        assert "server.key" in service.wait_for("certificates-kept")["what"]
        moved.rename(key)
        before.query(TEXTS[0])
    make_certificates(certificates, days=90, force=True)
    service.send(signal.SIGHUP)
    service.wait_for("certificates-reloaded")
    assert 7 < days_left(alone, certificates) <= 90
    with alone.client() as after:
        assert after.query(TEXTS[0]).value
    assert greeted(alone, certificates)
    assert not greeted(alone, old)


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
        expected = clear(made, [client.part.encode(text) for text in TEXTS[:2]])["logits"]
        assert (client.query_many(TEXTS[:2])[1].outputs["logits"] - expected[1]).abs().max() < ERROR


def test_a_session_that_expired_begins_again(made):
    with Site(made, "--workers", "1", "--keys-seconds", "3") as site, site.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine._keyed.values()
        api, folder = mine._server(), Path(tempfile.gettempdir())

        def gone():
            return not list(folder.glob(f"bf-server-*/{keyed.name}"))

        assert not gone()
        eventually(gone, "its keys have left the disk")
        with pytest.raises(KeysGone, match="send keys again"):
            api.ask("GET", f"/v1/keys/{keyed.name}")
        again = mine.query(TEXTS[1])
        assert "expired" in again.retried
        assert again.report.setup_bytes > 0


@pytest.mark.parametrize(("plan", "said"), [("faithful", "is not compiled for encrypted queries"), ("he", "128 bits")])
def test_a_folder_that_cannot_be_served_is_said_at_the_start(call, made, tiny_classifier, tmp_path, plan, said):
    """A program of another plan, and one in a ring for tests."""
    folder = made.folder
    if plan != "he":
        loaded = load(tiny_classifier)
        folder = save(compile_lengths(loaded, [8], plan, texts=TEXTS), tmp_path, loaded)
    code, _, errors = call("serve", folder / "server", "--protocol", "ckks", "--certs", made.certificates,
                           "--listen", "127.0.0.1:0", "--workers", "1")  # fmt: skip
    assert code == 1
    assert said in errors
    assert errors.count("\n") == 1


def test_it_stops_in_order(alone):
    assert alone.service.stop() == 0
    assert not alone.service.noise


def test_the_log_says_what_happened_and_to_whom(site, program):
    with site.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine._keyed.values()
        refused(mine._server(), "POST", f"/v1/keys/{keyed.name}/queries", b"noise")
    session = keyed.name[:8]
    (line,) = site.service.logged("keys-received", session=session)
    assert line["bytes"] > 100_000
    (answered,) = site.service.logged("answered", session=session)
    assert (answered["owner"], answered["bytes"] > 10_000) == (line["owner"], True)
    eventually(lambda: site.service.logged("keys-gone", session=session), "the log says that keys are gone")
    assert site.service.logged("refused", owner=line["owner"])


def test_nothing_was_written_beside_the_log(site):
    assert not site.service.noise
