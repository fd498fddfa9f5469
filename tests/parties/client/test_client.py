"""`bf.Client`: the model's own answers from parties far away, or here, in the shapes of transformers' pipelines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import blindformer as bf
import psutil
import pytest
from blindformer.models.loading.huggingface import InputError
from blindformer.parties.client.client import Client, ClientError
from blindformer.parties.client.session import PartyAddresses, client_settings
from blindformer.parties.config import ConfigError
from blindformer.parties.transport import handshake
from blindformer.protocols.errors import BlindformerError, PeerError
from blindformer.tests.models.loading.test_task import nested
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import Deployment, eventually

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]
LONG = "how good is my red password ? not bad !"  # 11 tokens with the special ones
TOLERANCE = 2e-3


@pytest.fixture
def connect(tmp_path):
    """`connect(site)` is a client of a deployment, closed after the test."""
    clients = []

    def make(site: Deployment, **options) -> Client:
        clients.append(site.client(**{"cache": tmp_path / "cache", **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module")
def classify(tiny_classifier):
    """transformers' own pipeline of the same model."""
    from transformers import pipeline

    return pipeline("text-classification", str(tiny_classifier))


SERVICES = {"serve", "dealer"}  # what processes of this machine's services are called, and their sessions'


# --- answers ---------------------------------------------------------------------------------------------------------
def test_parties_here_are_gone_when_their_client_is_closed(compiled):
    before = set(psutil.Process().children(recursive=True))
    with bf.Client("local", folder=compiled) as here:
        result = here.query(TEXTS[0])
        assert (result.length, result.outputs["logits"].shape) == (8, (1, 3))
        mine = [child for child in set(psutil.Process().children(recursive=True)) - before if child.name() in SERVICES]
        assert {child.name() for child in mine} == SERVICES
    _, alive = psutil.wait_procs(mine, timeout=PATIENCE)
    assert alive == []


# --- many ------------------------------------------------------------------------------------------------------------
def test_many_texts_share_a_session_for_each_length(site, connect, classify):
    client = connect(site)
    texts = [TEXTS[0], LONG, TEXTS[1], LONG, TEXTS[2]]
    before = len(site.server.logged("session-opened"))
    results = client.query_many(texts)
    assert [result.item for result in results] == texts
    assert [result.length for result in results] == [8, 16, 8, 16, 8]
    for text, result in zip(texts, results, strict=True):
        nested(result.value, classify(text, top_k=None), TOLERANCE)
    assert len(site.server.logged("session-opened")) == before + 2
    assert [r.report.setup_bytes > 0 for r in results] == [True, False, True, False, True]  # the lengths share weights
    assert [number for number, _ in client.stream(texts)] == [0, 2, 4, 1, 3]
    assert len(site.server.logged("session-opened")) == before + 2


def test_a_fixed_length_hides_more(site, connect):
    client = connect(site, length=16)
    assert client.query("good").length == 16
    with pytest.raises(BlindformerError, match="for the lengths 8, 16, not for 9"):
        connect(site, length=9)


def test_a_text_that_does_not_fit_costs_nothing(site, connect):
    client = connect(site)
    asked = len(site.server.logged("answered"))
    for texts, words in (
        ([TEXTS[0], "good " * 20], "input 2 of 2: text has 22 tokens, the model is compiled for 16 at most"),
        ([TEXTS[0], TEXTS[1], " "], "input 3 of 3: a text is empty"),
        ([TEXTS[0], 7], "input 2 of 2: a text is a string, not int"),
    ):
        with pytest.raises(InputError, match=words):
            client.query_many(texts)
    assert len(site.server.logged("answered")) == asked


def test_a_text_is_cut_where_that_was_asked_for_and_the_server_sees_the_padded_length_alone(site, connect, classify):
    words, before = "how is my password , " + "not good " * 20, len(site.server.logged("answered"))
    client = connect(site, length=16, truncate="end")
    whole, cut = client.query(TEXTS[0]), client.query(words)
    assert (whole.length, whole.truncated, cut.length) == (16, 0, 16)
    assert cut.truncated == client.part.task.tokens(words) - 16
    nested(cut.value, classify(words, top_k=None, truncation=True, max_length=16), TOLERANCE)
    for name in ("sent_bytes", "online_bytes", "offline_bytes", "rounds"):
        assert getattr(whole.report, name) == getattr(cut.report, name)
    eventually(lambda: len(site.server.logged("answered")) == before + 2, "the server has written of both")
    lines = [{**line, "number": 0, "time": 0} for line in site.server.logged("answered")[before:]]
    one, other = ({name: value for name, value in line.items() if not name.endswith("_s")} for line in lines)
    assert one == other
    (start,) = client.query_many([words], truncate="start")
    assert (start.truncated, start.value == cut.value) == (cut.truncated, False)
    with pytest.raises(
        InputError,
        match=r'^text has 11 tokens, the length asked for is 8: give truncate="end" or "windows" or length=16, ',
    ):
        connect(site, length=8).query("good " * 9)


def test_threads_may_share_a_client(site, connect, aside, classify):
    client = connect(site)
    asked = [aside(client.query, text) for text in [*TEXTS[:2], LONG]]
    for text, pending in zip([*TEXTS[:2], LONG], asked, strict=True):
        nested(pending.result(PATIENCE).value, classify(text, top_k=None), TOLERANCE)


# --- busy ------------------------------------------------------------------------------------------------------------
def test_many_clients_at_once_are_answered_or_told_to_come_back(site, connect, classify):
    """Three times as many as may have a session: those that wait are answered, those that do not know when to ask."""
    expected = classify(TEXTS[0], top_k=None)
    for wait in (60, 0):
        clients = [connect(site, wait=wait, cache=site.folder / "one cache") for _ in range(12)]
        with ThreadPoolExecutor(len(clients)) as pool:
            results = list(pool.map(lambda client: _ask_and_leave(client, TEXTS[0]), clients))
        for result in results:
            if result.error is None:
                nested(result.value, expected, TOLERANCE)
            else:
                assert re.search(r"server: is busy \(.*\); ask again in [0-9.]+ seconds$", str(result.error))
        refused = sum(result.error is not None for result in results)
        assert refused == 0 if wait else 0 < refused < len(results)


def _ask_and_leave(client, text):
    with client:
        ((_, result),) = client.stream([text])
    return result


def test_a_client_that_needs_another_program_gives_up_the_session_it_has(compiled, tmp_path, connect):
    """Rather than wait for itself."""
    with Deployment(tmp_path, compiled, server={"sessions": 1, "share": 1}) as site:
        client = connect(site, wait=0)
        assert [client.query(text).length for text in (TEXTS[0], LONG)] == [8, 16]


# --- settings and errors ---------------------------------------------------------------------------------------------
def test_a_configuration_file_and_what_goes_over_it(site, tmp_path, compiled):
    file = site.write_config(tmp_path / "blindformer.toml", 'cache = "cache"\nwait = 1.0\n', dealer="127.0.0.1:1")
    with Client(config=file, **site.addresses("dealer")) as client:
        assert client.settings.client.wait == 1.0
        assert client.query(TEXTS[0]).value
    assert any((tmp_path / "cache").iterdir())
    with pytest.raises(ConfigError, match="nonsense"):
        Client("nonsense", folder=compiled)
    with pytest.raises(ConfigError, match="there is no such file"):
        Client(config=tmp_path / "none.toml")


def test_mistakes_are_explained(site, connect, compiled, tmp_path, monkeypatch):
    monkeypatch.setattr(handshake, "RETRY_SECONDS", 0.0)
    with pytest.raises(BlindformerError, match="holds no compiled model"):
        connect(site, folder=tmp_path)
    with pytest.raises(BlindformerError, match="is the server's part; give the client's"):
        connect(site, folder=compiled / "server")
    with pytest.raises(ClientError, match="leave addresses, certificates and audits out"):
        Client("local", dealer="localhost:7444", folder=compiled)
    where = {"server": "127.0.0.1:1", "folder": compiled, "certificates": tmp_path}
    with pytest.raises(ClientError, match=r"helper: a client of topology dealer dials none; give topology helper, or"):
        Client(helper="127.0.0.1:2", **where)
    with pytest.raises(ClientError, match=r"dealer: a client of topology helper dials none; give topology dealer, or"):
        Client(dealer="127.0.0.1:2", topology="helper", **where)
    with pytest.raises(ClientError, match="needs a folder of correlations"):
        connect(site, use_store="only")
    with pytest.raises(BlindformerError, match="is missing"):
        connect(site, certificates=tmp_path).query(TEXTS[0])
    with pytest.raises(PeerError, match="server"):
        connect(site, server="127.0.0.1:1").query(TEXTS[0])
    with pytest.raises(PeerError, match="dealer"):
        connect(site, dealer="127.0.0.1:1").query(TEXTS[0])


def test_parties_here_end_with_the_process_that_started_them(compiled, tmp_path):
    """And leave no file. Where many threads at once make clients, and are all the first to need the library of
    tokenizers."""
    code = (
        "import threading, time, blindformer as bf\n"
        "counts, start = [], threading.Barrier(50)\n"
        "def make():\n"
        "    start.wait()\n"
        f"    counts.append(bf.Client('local', folder={str(compiled)!r}).part.task.tokens('good'))\n"
        "threads = [threading.Thread(target=make) for _ in range(50)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        f"client = bf.Client('local', folder={str(compiled)!r})\n"
        f"client.query({TEXTS[0]!r})\n"
        "print('answered', counts == 50 * [3], flush=True); time.sleep(600)"
    )
    pipe = subprocess.PIPE
    (scratch := tmp_path / "scratch").mkdir()
    env = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True, env=env) as owner:
        assert owner.stdout is not None
        assert owner.stderr is not None
        assert owner.stdout.readline() == "answered True\n"
        services = psutil.Process(owner.pid).children(recursive=True)
        assert len(services) >= 3  # a dealer, a server, and its process for this session
        assert list(scratch.iterdir()) != []
        owner.kill()
        assert owner.stderr.read() == ""
    _, alive = psutil.wait_procs(services, timeout=PATIENCE)
    assert alive == []
    assert list(scratch.iterdir()) == []


def test_certificates_and_addresses_are_of_the_same_services(compiled):
    """Also where a party ends between the two: another one would have another CA."""
    parties = PartyAddresses(client_settings(None, folder=compiled), local=())
    try:
        certificates, address = parties.reached()
        server, services = address("server"), parties.services
        os.kill(services.processes["server"], signal.SIGKILL)
        eventually(lambda: not services.alive, "the server has ended")
        assert (services.certificates, services.addresses["server"]) == (certificates, server)
        assert address("server") == server
        renewed, address = parties.reached()
        assert renewed != certificates
        assert address("server") == parties.services.addresses["server"] != server
    finally:
        parties.close()
