"""The gateway as a service: bounded, measured, ended in order; and the one line that says what is wrong with it."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import blindformer as bf
import psutil
import pytest
from blindformer.models.building import compile_folder
from blindformer.models.loading.load import load
from blindformer.parties.gateway.model_pool import ModelPool, RequestCost, open_pools
from blindformer.parties.transport import handshake
from blindformer.tests.parties.gateway.conftest import TEXTS, running
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import eventually
from transformers import pipeline


def test_more_than_may_wait_are_told_when_to_come_back_and_none_is_lost(gateway, monkeypatch):
    model = gateway.server._gateway.models["sentences"]
    monkeypatch.setattr(model.queue, "most", 2)

    def ask(number: int) -> str:
        response = gateway.http.post("/v1/embeddings", json={"model": "sentences", "input": "good"})
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "rate_limit_exceeded"
        return str(response.status_code)

    with ThreadPoolExecutor(64) as pool:
        statuses = list(pool.map(ask, range(64)))
    assert set(statuses) == {"200", "429"}
    assert statuses.count("200") >= 3
    # What the next request needs may still be made.
    eventually(lambda: (model.queue.running, model.queue.waiting) == (0, 0), "all places are free")
    assert ask(0) == "200"


def test_images_are_classified_and_files_of_this_machine_are_not_read(gateway, pictures, tiny_vision):
    file = min(pictures.iterdir())
    black = io.BytesIO()
    pytest.importorskip("PIL.Image").new("1", (4_000, 3_000)).save(black, "PNG")
    whole = file.read_bytes()
    image, half, wide, *cut = (
        f"data:image/png;base64,{base64.b64encode(b).decode()}" for b in (whole, b"half", black.getvalue(), whole[:99])
    )
    reply = gateway.http.post("/classify", json={"model": "pictures", "input": image, "top_k": 1}).json()
    (expected,) = pipeline("image-classification", str(tiny_vision))(str(file), top_k=1)
    assert reply["results"][0][0]["label"] == expected["label"]
    assert len(base64.b64decode(gateway.http.get("/seen/pictures").json()["head"])) == 1024
    for given, what in {
        str(file): 'input: is no image; this model takes "data:image/png;base64,..." (or jpeg, webp)',
        image[:-2] + "!!": "input: its base64 is broken",
        half: "input: the image: is no image that can be read",
        (cut[0],): "input: the image: is no image that can be read (image file is truncated",
        (image, *cut): "input[1]: the image: is no image that can be read (image file is truncated",
        (wide, wide, wide): "input[2]: a request has at most 25 million pixels",
        (image,) * 65: "input: 65 images; give at most 64 at once",
    }.items():
        refused = gateway.http.post("/classify", json={"model": "pictures", "input": given})
        assert refused.status_code == 400
        assert refused.json()["error"]["message"].startswith(what)


def test_a_body_does_not_wait_until_its_head_is_acknowledged(gateway):
    """Which takes 40 ms on a connection that is kept, and none on a new one."""

    def seconds(connection: http.client.HTTPConnection) -> float:
        started = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        return time.perf_counter() - started

    address = gateway.url.removeprefix("http://")
    kept = http.client.HTTPConnection(address)
    seconds(kept)
    new = min(seconds(http.client.HTTPConnection(address)) for _ in range(10))
    assert min(seconds(kept) for _ in range(10)) < new + 0.03


def test_texts_that_share_a_query_cost_one(tiny_encoder, tmp_path):
    folder = compile_folder(tiny_encoder, tmp_path / "pairs", lengths=[16], texts=2, calibration=TEXTS)
    with bf.Client("local", folder=folder) as client:
        pool = ModelPool("pairs", client, 1)
        costs = [pool.ask(SimpleNamespace(stopped=False), TEXTS[:count]).cost for count in (1, 2, 3)]
    one, two, three = ((cost.passes, cost.rounds, cost.sent_bytes, cost.received_bytes) for cost in costs)
    assert one[0] == 1
    assert (two, three) == (one, tuple(2 * figure for figure in one))


def test_a_classifier_has_a_route_of_its_own_and_the_command_ends_in_order(tiny_classifier, tmp_path):
    """As a process: what it says, what it answers, and that nothing is left of it."""
    folder = compile_folder(tiny_classifier, tmp_path / "calm", lengths=[16], calibration=TEXTS)
    key, path = tmp_path / "key", tmp_path / "said"
    file = tmp_path / "blindformer.toml"
    file.write_text(f'[gateway]\nkey = "{key}"\n')
    command = [sys.executable, "-m", "blindformer", "up", str(folder), "--port", "0", "--config", str(file)]
    with path.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            ready = eventually(lambda: re.search(r"^ask it   (.*)$", path.read_text(), re.MULTILINE), path.read_text)
            children = psutil.Process(process.pid).children(recursive=True)
            shown = subprocess.run(ready[1], shell=True, capture_output=True, text=True, check=True)
            assert '"results":[[{"label":"' in shown.stdout
            assert key.read_text().strip() not in path.read_text() + shown.stdout
            assert len(children) >= 2
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []
    assert path.read_text().endswith("stopped\n")


def test_a_party_that_cannot_be_reached_is_said(sentence_folder, certificates, tmp_path, monkeypatch):
    monkeypatch.setattr(handshake, "RETRY_SECONDS", 0.0)
    section = {
        "folder": sentence_folder,
        "server": "localhost:1",
        "dealer": "localhost:1",
        "certificates": certificates,
    }
    with running(tmp_path / "key", {"far": section}, **{"client.wait": 0.0}) as gateway:
        asked = {"model": "far", "input": "good"}
        response = gateway.http.post("/v1/embeddings", json=asked)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "party_unavailable")
        assert "server: " in response.json()["error"]["message"]
        assert gateway.http.get("/health").json() == {"healthy": False, "models": {"far": "unavailable"}}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gateway"], "give the client's part of a compiled folder, or --config FILE that names models"),
        (["gateway", "{folder}", "--listen", "nowhere"], 'gateway.listen = "nowhere": should be "host:port"'),
        (["gateway", "{folder}", "--server", "local", "--listen", "192.0.2.1:1"], "cannot listen there"),
        (["up", "{folder}", "{folder}"], "; name each with --served-model-name"),
        (
            ["up", "{folder}", "--served-model-name", "a", "--served-model-name", "b"],
            "2 names for 1 model; give it once",
        ),
        (["gateway", "{folder}", "--served-model-name", "a\nb"], "--served-model-name: a name is empty, or no line"),
        (
            ["gateway", "--config", "none", "--served-model-name", "a"],
            "or name it in a configuration: [gateway.models.",
        ),
        (["up", "{folder}", "--lengths", "16"], "is compiled already; leave --lengths out"),
        (["up", "{encoder}", "--lengths", "16,9999"], "length 9999: the model takes {most} tokens"),
        (["up", "{talking}", "--lengths", "16"], "--lengths 16: a conversation has none"),
        (["up", "{folder}", "--tokens", "64"], "is compiled already; leave --tokens out"),
        (["up", "{encoder}", "--tokens", "64"], "--tokens 64: is of conversations, and"),
        (["up", "{encoder}", "--adapter", "law=nowhere"], "adapter law=nowhere: there is no such folder"),
        (["up", "a", "b", "--adapter", "law=x"], "put on? Say it, as a:law=FOLDER"),
        (["up", "a", "b", "--adapter", "a:law=x", "--adapter", "b:law=x"], "law is given twice"),
    ],
)
def test_what_cannot_start_is_one_line(call, sentence_folder, tiny_encoder, tiny_causal, tmp_path, words, message):
    places = {"folder": sentence_folder, "encoder": tiny_encoder, "talking": tiny_causal}
    words = [word.format(**places) for word in words]
    code, printed, errors = call(*words)
    *before, line = errors.splitlines()
    assert (code, printed, all("is prepared first" in note for note in before)) == (1, "", True)
    assert message.format(most=load(tiny_encoder).positions) in line


def served(monkeypatch, call, *words) -> list[str]:
    """The names under which a command would serve its models."""
    settings: list[Any] = []
    monkeypatch.setattr("blindformer.parties.gateway.serving.serve", lambda given, *_: settings.append(given))
    code, _, errors = call(*words)
    assert code == 0, errors
    models = open_pools(settings[0])
    for model in models.values():
        model.close()
    return list(models)


@pytest.mark.parametrize(
    ("how", "takes"),
    [
        (["--weights", "public"], "1 second of a free core and 110 MB"),
        (["--lengths", "16"], "2 minutes of a free core and 70 MB"),
    ],
)
def test_a_first_start_says_before_it_what_it_takes(call, tiny_encoder, tmp_path, monkeypatch, how, takes):
    file = tmp_path / "blindformer.toml"
    file.write_text(f'[client]\ncache = "{tmp_path / "cache"}"\n')
    monkeypatch.setattr("blindformer.parties.gateway.serving.serve", lambda *given: None)
    first, again = (call("up", tiny_encoder, "--port", 0, "--config", file, *how)[2] for _ in range(2))
    expected = f"{tiny_encoder.name} is prepared first, once: how long depends on its size; minilm takes {takes}"
    assert 0 < first.index(expected) < first.index("all parties run on this machine")
    assert expected not in again


def test_a_model_has_one_name_however_it_is_started(call, sentence_folder, certificates, tmp_path, monkeypatch):
    """The model's own, whatever its compiled folder is called; or what it is given."""
    folder, name = tmp_path / "mailc", json.loads((sentence_folder / "client/client.json").read_text())["name"]
    shutil.copytree(sentence_folder, folder)
    away = ["--server", "localhost:1", "--dealer", "localhost:1", "--certs", certificates]
    file = tmp_path / "blindformer.toml"
    file.write_text(f'[client]\nfolder = "mailc/client"\n[certificates]\nfolder = "{certificates}"\n')
    for words in (
        ["up", folder, "--port", 0],
        ["gateway", folder, "--server", "local"],
        ["gateway", folder / "client", *away],
        ["gateway", "--config", file],
    ):
        assert served(monkeypatch, call, *words) == [name]
    named = ["--served-model-name", "mail/embeddings"]
    for words in (["up", folder, "--port", 0, *named], ["gateway", folder / "client", *away, *named]):
        assert served(monkeypatch, call, *words) == ["mail/embeddings"]
    file.write_text(file.read_text() + '[gateway.models."of the file"]\nfolder = "mailc/client"\n')
    assert served(monkeypatch, call, "gateway", "--config", file) == ["of the file"]


def test_a_cost_says_that_its_session_was_lost():
    assert "retried" not in RequestCost().to_dict()
    assert RequestCost(retried="server: closed").to_dict()["retried"] == "server: closed"


def test_packaged_models_are_public_unless_a_private_session_is_asked_for(call):
    for words in ((), ("--weights", "public")):
        assert "compile minilm --weights public" in call("up", "minilm", "--print-config", *words)[1]
    for words in (("--weights", "private"), ("--lengths", "32"), ("--plan", "fast")):
        assert "--weights public" not in call("up", "minilm", "--print-config", *words)[1]
    assert "--weights public keeps it here" in call("up", "minilm", "--print-config", "--adapter", "a=b")[2]


def test_the_link_with_the_key_is_for_a_terminal_alone(monkeypatch, capsys):
    from blindformer.parties.cli.gateway import _Notes
    from blindformer.parties.config import Address
    from blindformer.parties.gateway.serving import Listening

    here = Listening(Address("127.0.0.1", 8080), "gateway.key", "bf-secret/key")
    assert "secret" not in repr(here)
    monkeypatch.setenv("FORCE_COLOR", "1")  # which says nothing about where the lines go
    for linked, terminal, shown in ((True, True, True), (True, False, False), (False, True, False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        _Notes(linked).listening(here)
        assert ("http://127.0.0.1:8080/#key=bf-secret/key" in capsys.readouterr().err) == shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    _Notes(True).listening(Listening(Address("0.0.0.0", 8080), "gateway.key", "bf-secret/key"))
    assert "secret" not in capsys.readouterr().err


def test_a_deployments_configuration_is_printed_and_read(call, tiny_encoder, tiny_causal, tmp_path):
    from blindformer.parties.config import load_settings

    adapters = ("--adapter", "b:law=x", "--tokens", 64)
    names = ("--served-model-name", "a", "--served-model-name", "b")
    _, out, _ = call("up", tiny_encoder, tiny_causal, *adapters, "--print-config", *names)
    (line,) = (line for line in out.splitlines() if "--chat" in line)
    assert "--chat --tokens 64 --adapter law=x --out" in line
    assert out.count("--adapter") == 1
    code, out, _ = call("up", tiny_encoder, tiny_causal, "--lengths", "64,16", "--print-config")
    file = tmp_path / "blindformer.toml"
    file.write_text(out)
    models = load_settings(file).gateway.models
    assert (code, set(models)) == (0, {tiny_encoder.name, tiny_causal.name})
    assert str(models[tiny_causal.name].server) == "server.example.org:7453"
    assert f"compile {tiny_causal} --chat --out compiled/{tiny_causal.name}" in out
    assert f"compile {tiny_encoder} --lengths 16,64 --out" in out
    names = ["--served-model-name", "my mail", "--served-model-name", "org/chat"]
    file.write_text(call("up", tiny_encoder, tiny_causal, "--print-config", *names)[1])
    models = load_settings(file).gateway.models
    assert [(name, model.folder.relative_to(tmp_path)) for name, model in models.items()] == [
        ("my mail", Path("compiled/my-mail/client")),
        ("org/chat", Path("compiled/chat/client")),
    ]
