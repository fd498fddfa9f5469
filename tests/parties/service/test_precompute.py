"""Preprocessed correlations by the commands, with real services: used without a dealer, then live ones again."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import psutil
import pytest
from blindformer.models.artifacts import ArtifactError
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.loading.huggingface import InputError
from blindformer.parties.cli.app import app
from blindformer.parties.client import precompute
from blindformer.parties.client.delegated import DelegatedClient
from blindformer.parties.client.session import ClientError
from blindformer.parties.config import Settings, load_settings
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.parties.transport import handshake
from blindformer.protocols.errors import PeerGone
from blindformer.tests.shared.deployment import Deployment, Running, eventually, runs
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama, tiny_marian
from typer.testing import CliRunner

TEXT = "how is my password ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ahead")


@pytest.fixture(scope="module")
def site(folder, compiled):
    with Deployment(folder, compiled, server={"store": folder / "server-store"}) as site:
        yield site


def run(*words: str) -> dict:
    """A command in this process; its JSON. Errors: as the command raises them."""
    result = CliRunner().invoke(app, [*words, "--format", "json"], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout)


def blindformer(site: Deployment, *words: str, wait: float = 60.0) -> dict:
    """A command of the client."""
    own = f'cache = "{site.folder / "cache"}"\nwait = {wait}\n'
    config = site.write_config(site.folder / "client.toml", client=own)
    return run(*words, "--config", str(config), "--store", str(site.folder / "client-store"))


def query(site: Deployment, *texts: str) -> list[list[dict]]:
    report = blindformer(site, "query", str(site.client_folder), *texts, "--length", "8")
    return [result["labels"] for result in report["results"]]


def test_three_made_ahead_then_live(site):
    live = query(site, TEXT)
    report = blindformer(site, "precompute", str(site.client_folder), "3", "--length", "8")
    assert (report["kept"], report["left"], report["length"], report["stopped"]) == (3, 3, 8, None)
    stores = [PreprocessingStore(site.folder / name) for name in ("server-store", "client-store")]
    assert [store.left() for store in stores] == [3, 3]
    site.dealer.stop()
    without = query(site, TEXT, TEXT, TEXT)  # nobody deals
    with pytest.raises(PeerGone, match="dealer: nobody listens"):
        blindformer(site, "query", str(site.client_folder), TEXT, "--length", "8", wait=0.0)
    site.start("dealer")
    again = query(site, TEXT)
    for labels in (*without, *again):
        for got, expected in zip(labels, live[0], strict=True):
            assert got["label"] == expected["label"]
            assert got["score"] == pytest.approx(expected["score"], abs=0.003)
    audits = [store.ledger.audit() for store in stores]
    assert [len({tag for tag, _, _ in audit}) for audit in audits] == [5, 5]
    assert [len(audit) for audit in audits] == [5, 5]
    assert [store.left() for store in stores] == [0, 0]


def test_the_store_command_lists_what_there_is(site, folder):
    blindformer(site, "precompute", str(site.client_folder), "2", "--length", "16")
    for name in ("server-store", "client-store"):
        report = run("precompute", "--store", str(folder / name))
        assert report["ready"] == 2
        assert report["sessions"][-1]["ready"] == 2
        assert (report["sessions"][-1]["bytes"] > 0) is (name == "server-store")
        text = CliRunner().invoke(app, ["precompute", "--store", str(folder / name)]).stdout
        assert re.search(r"^2 ready; \d+ uses noted", text, re.MULTILINE)
        assert "key" not in text


def test_what_cannot_be_done_is_explained(site, tmp_path):
    words = ["precompute", str(site.client_folder), "1"]
    with pytest.raises(ArtifactError, match="compiled for the lengths 8, 16; say which one"):
        blindformer(site, *words)
    with pytest.raises(StoreError, match=r"give --store, or client\.store"):
        run(*words, "--length", "8")
    with pytest.raises(StoreError, match=r"holds no preprocessed correlations; `blindformer precompute` makes them"):
        run("precompute", "--store", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def public(tmp_path_factory, tiny_classifier):
    """A public model with server and dealer."""
    root = tmp_path_factory.mktemp("public")
    compiled = delegate_folder(tiny_classifier, root / "open")
    with Deployment(root, compiled, server={"store": root / "server-store"}) as site:
        yield site


def test_passes_of_public_models_are_made_ahead_by_the_dealer(public):
    words = [str(public.client_folder), *public.words(), "--store", str(public.folder / "store")]
    live = run("query", *words, TEXT, "--length", "16")
    assert run("precompute", *words, "2", "--length", "16")["left"] == 2
    assert PreprocessingStore(public.folder / "server-store").left() == 2
    public.dealer.stop()
    ahead = run("query", *words, TEXT, TEXT, "--length", "16")
    (file := public.folder / "only.toml").write_text('[client]\nuse_store = "only"\n')
    with pytest.raises(StoreError, match="holds no masks for 16 rows"):
        run("query", *words, TEXT, "--length", "16", "--config", str(file))
    public.start("dealer")
    after = run("query", *words, TEXT, "--length", "16")
    for result in (*ahead["results"], *after["results"]):
        assert result["labels"][0]["label"] == live["results"][0]["labels"][0]["label"]
    bytes_of = [result["offline_bytes"] for result in (*ahead["results"], *after["results"])]
    assert bytes_of == [0, 0, live["results"][0]["offline_bytes"]]


def test_a_server_without_its_dealer_is_ready_while_it_has_stored_passes(tiny_classifier, tmp_path, monkeypatch):
    """Then it says which party is away; who deals to itself is served all the time."""
    monkeypatch.setattr(handshake, "RETRY_SECONDS", 0.0)
    compiled = delegate_folder(tiny_classifier, tmp_path / "open")
    options = {"store": tmp_path / "theirs", "metrics": "127.0.0.1:0"}
    with Deployment(tmp_path, compiled, server=options) as site:
        words = [str(site.client_folder), *site.words(), "--store", str(tmp_path / "store"), "--length", "16"]

        def ready(code: int, when: str) -> None:
            eventually(lambda: site.server.get("/readyz")[0] == code, when)

        once = tmp_path / "once.toml"
        once.write_text("[client]\nwait = 0\n")
        run("precompute", *words, "1")
        site.dealer.stop()
        site.server.wait_for("dealer-gone")
        ready(200, "it has a stored pass")
        run("query", *words, TEXT)
        ready(503, "it has none, and no dealer")
        with pytest.raises(PeerGone, match="dealer: nobody listens"):
            run("query", *words, TEXT, "--config", str(once))
        own = [*words, "--dealer", "local", "--store", str(tmp_path / "own")]
        run("precompute", *own, "1")
        ready(200, "a client has brought a pass")
        run("query", *own, TEXT)
        site.start("dealer")
        ready(200, "the dealer is back")
        run("query", *words, TEXT)


def test_a_client_deals_to_itself_and_dials_no_dealer(public):
    """With two sessions at once; the dealer is not there from the beginning."""
    public.dealer.stop()
    words = [str(public.client_folder), "--certs", str(public.certificates), "--server", public.words()[1]]
    words += ["--dealer", "local", "--store", str(public.folder / "own")]
    report = run("precompute", *words, "3", "--length", "16", "--sessions", "2")
    assert (report["kept"], report["left"], report["length"]) == (3, 3, 16)
    answer = run("query", *words, TEXT, TEXT, "--length", "16")
    assert answer["learned"]["dealer"] == "was this client: nobody else has the masks"
    assert [result["offline_bytes"] for result in answer["results"]] == [0, 0]
    with pytest.raises(StoreError, match="holds no masks for 32 rows"):
        run("query", *words, TEXT, "--length", "32")
    public.start("dealer")


def test_passes_are_made_ahead_as_they_will_be_sent(public, tmp_path):
    """With rows that hide the length, and without the layers that the client keeps."""
    for own in ("pad = true", 'memory = "0.01MB"'):
        (file := tmp_path / "blindformer.toml").write_text(f'[client]\n{own}\nuse_store = "only"\n')
        words = [str(public.client_folder), *public.words(), "--store", str(public.folder / "store")]
        words += ["--config", str(file)]
        assert run("precompute", *words, "1", "--length", "17")["kept"] == 1
        answer = run("query", *words, TEXT, "--length", "17")
        assert answer["results"][0]["offline_bytes"] == 0


def test_tokens_of_a_conversation_are_made_ahead(tmp_path):
    compiled = delegate_folder(tiny_llama(tmp_path / "llama", TEMPLATE), tmp_path / "open")
    with Deployment(tmp_path, compiled, server={"store": tmp_path / "server-store"}) as site:
        words = [str(site.client_folder), *site.words(), "--store", str(tmp_path / "store")]
        report = run("precompute", *words, "9")
        assert (report["kept"], report["length"]) == (9, 1)
        client = DelegatedClient(
            site.words()[1],
            dealer=site.words()[3],
            folder=site.client_folder,
            certificates=site.certificates,
            store=tmp_path / "store",
        )
        with client:
            ahead: list[bool] = []
            talk = client.conversation(lambda name, answer: ahead.append(answer.timings.ahead))
            reply = talk.say("Hi", max_new_tokens=4, do_sample=False, min_new_tokens=4)
            assert reply.tokens
        assert ahead[:2] == [False, True]
        used = 9 - PreprocessingStore(tmp_path / "store").left()
        assert used - sum(ahead) in (0, 1)  # the next one may be marked


def test_answers_about_a_text_are_made_ahead(tmp_path):
    """Without a dealer: what reads the text and begins the answer, and the tokens after it."""
    compiled = delegate_folder(tiny_marian(tmp_path / "marian"), tmp_path / "open")
    with Deployment(tmp_path, compiled, server={"store": tmp_path / "server-store"}) as site:
        words = [str(site.client_folder), *site.words(), "--store", str(tmp_path / "store")]
        report = run("precompute", *words, "1", "--length", "16")
        assert (report["kept"], report["left"], report["length"]) == (1, 2, 16)
        assert run("precompute", *words, "2", "--length", "1")["left"] == 4
        site.dealer.stop()
        names = {"dealer": site.words()[3], "folder": site.client_folder, "certificates": site.certificates}
        with DelegatedClient(site.words()[1], **names, store=tmp_path / "store", use_store="only") as client:
            assert client("ab cd", max_new_tokens=3, min_new_tokens=3)
        assert PreprocessingStore(tmp_path / "store").left() == 0


def test_what_cannot_be_made_ahead_of_public_models_is_explained(public, site):
    with pytest.raises(InputError, match=r"give one that they are padded to \(--length\)"):
        run("precompute", str(public.client_folder), "1", *public.words(), "--store", str(public.folder / "store"))
    with pytest.raises(ClientError, match="deals by itself with protocol delegated alone"):
        run("precompute", str(site.client_folder), "1", "--length", "8", "--dealer", "local", "--store", "x")
    with pytest.raises(ClientError, match="need a folder of them; give store"):
        run("query", str(public.client_folder), TEXT, *public.words()[:2], "--dealer", "local")


def stored_by(site: Deployment, folder: Path) -> Settings:
    """A client's settings, with a store of its own."""
    config = site.write_config(folder / "client.toml", client=f'cache = "{site.folder / "cache"}"\n')
    return load_settings(config, **{"client.store": folder / "store", "client.use_store": "only"})


def sessions_apart() -> list[psutil.Process]:
    """Other sessions of a `precompute` of this process."""
    return [one for one in psutil.Process().children(recursive=True) if runs(one) and one.name() == "precompute"]


def use_up(site: Deployment, settings: Settings, count: int) -> None:
    """Ask so many queries, for which the store suffices and no more."""
    options = {"store": settings.client.store, "use_store": "only", "cache": site.folder / "cache"}
    with site.client(**options, length=8) as client:
        for _ in range(count):
            client.query(TEXT)
        with pytest.raises(StoreError):
            client.query(TEXT)
    audit = PreprocessingStore(settings.client.store or "").ledger.audit()
    assert len({tag for tag, _, _ in audit}) == len({(session, number) for _, session, number in audit}) == count


def test_two_processes_fill_a_store_and_each_of_its_queries_is_used_once(site, tmp_path):
    settings, beside, reports = stored_by(site, tmp_path), set[int](), []

    def watch(phase: str, done: int, total: int) -> None:
        beside.update(one.pid for one in sessions_apart())
        if phase == "precompute":
            reports.append((done, total))

    report = precompute.precompute(settings, 5, 8, watch, sessions=2)
    assert (report.kept, report.left, report.stopped) == (5, 5, None)
    assert len(beside) == 1
    assert not sessions_apart()
    assert reports == sorted(reports)
    assert reports[-1] == (5, 5)
    rows = PreprocessingStore(tmp_path / "store").ledger.rows()
    assert sorted(row.ready for row in rows) == [2, 3]
    use_up(site, settings, 5)


def test_a_session_that_is_killed_loses_one_query_and_the_others_go_on(site, tmp_path):
    settings, killed = stored_by(site, tmp_path), []

    def kill(phase: str, done: int, total: int) -> None:
        if phase == "precompute" and not killed and len(PreprocessingStore(tmp_path / "store").ledger.rows()) == 2:
            killed.extend(sessions_apart())
            killed[0].kill()

    report = precompute.precompute(settings, 16, 8, kill, sessions=2)
    assert len(killed) == 1
    assert str(report.stopped) == "session 2: was killed by SIGKILL; run again; if memory is short, use fewer sessions"
    assert 8 <= report.kept < 16
    assert report.left - report.kept in (0, 1)  # one may be in the store that nobody has heard of
    use_up(site, settings, report.left)


@pytest.mark.slow
def test_processes_that_cannot_reach_the_server_are_one_error(site, tmp_path):
    config = site.write_config(tmp_path / "away.toml", client="wait = 0\n", server="127.0.0.1:1")
    settings = load_settings(config, **{"client.store": tmp_path / "store"})
    with pytest.raises(PeerGone, match="server: nobody listens"):
        precompute.precompute(settings, 2, 8, sessions=2)


@pytest.mark.slow
def test_a_command_that_is_ended_leaves_no_session(site, tmp_path):
    store = tmp_path / "store"
    words = ["precompute", str(site.client_folder), "500", "--length", "8", "--sessions", "2", "--store", str(store)]
    command = Running([*words, *site.words()], tmp_path)
    try:
        eventually(lambda: len(PreprocessingStore(store).ledger.rows()) == 2, "both sessions store")
        assert "precompute" in [one.name() for one in command.children()]
        assert command.stop() == 128 + signal.SIGTERM  # and nothing outlives it
    finally:
        command.end()
