"""Everything that can be asked wrongly of the HTTPS service: a clear error, after which it still answers."""

from __future__ import annotations

import json
import re
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from blindformer.models.artifacts import save
from blindformer.models.building import compile_lengths
from blindformer.models.loading.load import load
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.client.http import Api, KeysGone, ServerConnection
from blindformer.parties.config import parse_address
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.ckks.frames import head, pack
from blindformer.protocols.errors import PeerError
from blindformer.tests.parties.service.https.conftest import TEXTS, Site, refused, request_of
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import eventually

REFUSALS = (
    "answered|is damaged|not whole|holds .* bytes|compressed as|no header|too much|ended the process|another|lack"
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
        refusal = refused(api, "PUT", f"/v1/keys/{name}", b"".join(message))
        assert any(part in refusal for part in error.split("|")), refusal
        with pytest.raises(KeysGone):
            api.ask("GET", f"/v1/keys/{name}")
    # Of the same sizes, so that only SEAL can tell, which a worker asks when they are needed.
    turned, others = [*sealed[:2], *sealed[3:], sealed[2]], list(of_other_parameters(client).sealed_evaluation())
    for keys, error in ((turned, "is the key of another rotation"), (others, "of other parameters")):
        name = api.ask("POST", f"/v1/models/{program}/keys")["keys"]
        api.ask("PUT", f"/v1/keys/{name}", pack("keys", program, keys))
        body = request_of(client, ClientKeys(part.circuit.ends, part.circuit.facts.parameters), TEXTS[:1])
        assert error in refused(api, "POST", f"/v1/keys/{name}/queries", body)


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
def test_every_refusal_has_its_status_and_says_why(client, keyed, api, other, program):
    good, path, query = request_of(client, keyed.keys, TEXTS[:2]), f"/v1/keys/{keyed.name}", "POST"
    queries, noise = f"{path}/queries", bytes(range(256)) * 40
    for asking, method, place, body, status, words in (
        (api, query, queries, b"", "400", "end before their head"),
        (api, query, queries, noise, "400", "no message of kind request"),
        (api, query, queries, good[:-1], "400", "end before their ciphertext"),
        (api, query, queries, good + b"\0", "400|413", "go on beyond their end|longer than this can be"),
        (api, query, queries, good + bytes(10**6), "413", "longer than this can be"),
        (api, query, queries, good[:2000] + noise + good[2000 + len(noise) :], "400",
         "damaged|of other parameters|is not whole|another level"),
        (api, query, queries, request_of(client, of_other_parameters(client), TEXTS[:2]), "400", "of other parameters"),
        (api, query, queries, head("request", "cd" * 32) + good[38:], "409", "for another program"),
        (api, "GET", "/v1/nothing", b"", "404", "/docs has what there is"),
        (api, "POST", f"/v1/models/{'cd' * 32}/keys", b"", "404", "is not served here"),
        (api, "PATCH", path, b"", "405", "/docs has what there is"),
        (api, "PUT", path, b"", "409", "these keys are here"),
        (api, "GET", f"/v1/keys/{'0' * 32}", b"", "410", "never sent, or expired"),
        (other, query, queries, good, "410", "never sent, or expired"),
    ):  # fmt: skip
        code, reply = status_of(asking, method, place, [body])
        assert re.fullmatch(status, str(code)), (place, code, reply)
        assert (list(reply), bool(re.search(words, reply["error"]))) == (["error"], True), (place, reply)


def status_of(api, method, path, body, length=None):
    """(status, the reply's JSON). `length`: announced; without it the body comes in chunks."""
    connection = ServerConnection(api.address, api._context, 60)
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


def workers_of(site):
    """Those that hold the model, and not what they fork."""
    running = [p for p in site.service.children() if "blindformer.parties.service.https.worker" in p.cmdline()]
    return [p for p in running if p.ppid() not in {other.pid for other in running}]


@pytest.mark.usefixtures("unharmed")
def test_more_than_the_queue_holds_are_told_when_to_come_back(site, client, keyed, api):
    """One query may wait. The worker stands still meanwhile."""
    (worker,) = workers_of(site)
    body, outcomes = request_of(client, keyed.keys, TEXTS[:2]), []

    def ask():
        try:
            lines = list(api.lines(f"/v1/keys/{keyed.name}/queries", [body]))
            outcomes.append("answer" if "answer" in lines[-1] else lines[-1])
        except SlotsBusy as busy:
            outcomes.append("busy" if 1 <= busy.retry_after <= 600 else busy)

    threads, logged_before = [], len(site.service.logged("busy"))

    def one_more():
        """Whether the reason was the queue: of several at once, some may find others still sending."""
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
        return any("the queue is full" in row["what"] for row in site.service.logged("busy")[logged_before:])

    worker.suspend()
    try:
        for _ in range(5):
            one_more()
        eventually(one_more, "one is told that the queue is full")
        eventually(lambda: len(outcomes) >= len(threads) - 2, "the others are sent away")
    finally:
        worker.resume()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {"answer", "busy"}


@pytest.mark.usefixtures("unharmed")
def test_a_worker_that_dies_is_replaced_and_its_query_is_an_error(site, client, keyed, api):
    request, last = [request_of(client, keyed.keys, TEXTS[:2])], {"answer": ""}
    while "answer" in last:
        (worker,) = eventually(lambda: workers_of(site), "there is a worker")
        lines = api.lines(f"/v1/keys/{keyed.name}/queries", request)
        next(lines)
        worker.kill()
        *_, last = lines
        if "answer" in last:  # it was done before it died, which the next query finds
            with pytest.raises(PeerError):
                client.query(TEXTS[0])
            site.service.wait_for("worker-replaced")
    assert last == {"error": "the worker failed on this; it is replaced, and nobody else is affected", "status": 500}
    site.service.wait_for("worker-replaced")
    assert "replaced" in site.service.logged("query-failed")[-1]["what"]


def outcome(api, keys, request):
    """The last line of a reply, or the refusal in place of one."""
    try:
        return list(api.lines(f"/v1/keys/{keys}/queries", [request]))[-1].get("error", "answered")
    except PeerError as error:
        return str(error)


@pytest.mark.usefixtures("unharmed")
def test_a_request_that_ends_its_process_is_one_refusal_and_touches_no_other(site, client, api):
    """As a crash of SEAL's would. Another client's request waits for the same worker, and is answered."""
    expected, (worker,) = client.query(TEXTS[1]).value, workers_of(site)
    others, replaced = worker.children(), len(site.service.logged("worker-replaced"))
    with site.client() as ending, ThreadPoolExecutor(2) as pool:
        ending.query(TEXTS[0])
        (process,) = {*worker.children()} - {*others}
        (keyed,) = ending.server.keyed.values()
        request = request_of(ending, keyed.keys, TEXTS[:2])
        process.suspend()
        ended = pool.submit(outcome, api, keyed.name, request)
        site.service.wait_for_metrics("blindformer_running 1.0")
        answered = pool.submit(client.query, TEXTS[1])
        site.service.wait_for_metrics("blindformer_queued 1.0")
        process.kill()
        assert "the request ended the process that computed on it; make new keys" in ended.result(PATIENCE)
        assert answered.result(PATIENCE).value[0]["label"] == expected[0]["label"]
        assert outcome(api, keyed.name, request) == "answered"
    assert (workers_of(site), len(site.service.logged("worker-replaced"))) == ([worker], replaced)


@pytest.mark.usefixtures("unharmed")
def test_damaged_keys_are_one_refusal_each_wherever_they_are_damaged(site, client, api, program):
    """In the heads of their parts and within; some bytes are as good as others, and the answer is noise."""
    from blindformer.protocols.ckks.keys import ClientKeys

    part, (worker,) = client.part.for_length(), workers_of(site)
    keys = ClientKeys(part.circuit.ends, part.circuit.facts.parameters)
    sealed, request = list(keys.sealed_evaluation()), request_of(client, keys, TEXTS[:1])
    replaced, outcomes = len(site.service.logged("worker-replaced")), []
    for number in (0, 1, 2):
        for at in (16, 40, 60, 90, 130, 170, 250, len(sealed[number]) // 2, len(sealed[number]) - 9):
            bad = bytearray(sealed[number])
            bad[at] ^= 0xFF
            name = api.ask("POST", f"/v1/models/{program}/keys")["keys"]
            try:
                api.ask(
                    "PUT", f"/v1/keys/{name}", pack("keys", program, [*sealed[:number], bad, *sealed[number + 1 :]])
                )
            except PeerError as error:
                outcomes.append(str(error))
            else:
                outcomes.append(outcome(api, name, request))
                api.ask("DELETE", f"/v1/keys/{name}")
    assert all(re.search(REFUSALS, said) for said in outcomes), outcomes
    assert sum("answered" not in said for said in outcomes) > 9
    assert (workers_of(site), len(site.service.logged("worker-replaced"))) == ([worker], replaced)


@pytest.mark.usefixtures("unharmed")
def test_a_client_that_leaves_stops_its_query(site, client, keyed, api):
    lines = api.lines(f"/v1/keys/{keyed.name}/queries", [request_of(client, keyed.keys, TEXTS[:2])])
    next(lines)
    lines.close()


def test_a_strangers_bytes_are_no_request(site):
    with socket.create_connection(parse_address(site.address)) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.settimeout(PATIENCE)
        assert b"HTTP" not in sock.recv(1000)


def test_a_session_that_expired_begins_again(made):
    with Site(made, workers=1, keys_seconds=6.0) as site, site.client() as mine:
        mine.query(TEXTS[0])
        (keyed,) = mine.server.keyed.values()
        api, folder = mine.server.api(), Path(tempfile.gettempdir())

        def gone():
            return not list(folder.glob(f"bf-server-*/{keyed.name}"))

        assert not gone()
        eventually(gone, "its keys have left the disk")
        with pytest.raises(KeysGone, match="send keys again"):
            api.ask("GET", f"/v1/keys/{keyed.name}")
        again = mine.query(TEXTS[1])
        assert "expired" in again.retried
        assert again.report.setup_bytes > 0


@pytest.mark.parametrize(("plan", "error"), [("faithful", "is not compiled for encrypted queries"), ("he", "128 bits")])
def test_a_folder_that_cannot_be_served_is_said_at_the_start(call, made, tiny_classifier, tmp_path, plan, error):
    """A program of another plan, and one in a ring for tests."""
    folder = made.folder
    if plan != "he":
        loaded = load(tiny_classifier)
        folder = save(compile_lengths(loaded, [8], plan, texts=TEXTS), tmp_path, loaded)
    code, _, errors = call("serve", folder / "server", "--protocol", "ckks", "--certs", made.certificates,
                           "--listen", "127.0.0.1:0")  # fmt: skip
    assert code == 1
    assert error in errors
    assert errors.count("\n") == 1
