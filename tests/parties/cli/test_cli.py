"""The command line: one JSON object on stdout, one line for an error, and the same figures as Python gives."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from blindformer.approximations import Plan
from blindformer.levels import PLAIN, VARIABLE, level
from blindformer.models import building
from blindformer.parties.addresses import Address
from blindformer.parties.cli.output import print_json, print_result
from blindformer.parties.cli.services import show
from blindformer.parties.client import compare
from blindformer.parties.client.client import Client
from blindformer.tests.pages import alike, as_shown, blocks
from blindformer.tests.patience import PATIENCE

SHARED = {
    *("model", "length", "plan", "protocol", "plaintext_s", "offline_s", "online_s", "offline_bytes", "online_bytes"),
    *("rounds", "max_abs_error", "cosine_min", "peak_rss_mb", "versions"),
}


@pytest.mark.parametrize("protocol", ["clear", "beaver"])
def test_run_a_classifier(report_of, known, tiny_classifier, protocol):
    report = report_of("run", tiny_classifier, "how good !", "--protocol", protocol, *known)
    assert set(report) >= SHARED
    assert (report["length"], report["protocol"], report["plan"]) == (16, protocol, "faithful")
    assert report["max_abs_error"] < 0.02
    labels = report["results"][0]["labels"]
    assert {row["label"] for row in labels} == {"calm", "glad", "cross"}
    assert sum(row["score"] for row in labels) == pytest.approx(1)


def test_a_model_is_compiled_once(report_of, known, tiny_classifier, tmp_path, monkeypatch):
    """Another plan, length or calibration is another model; a cache that cannot be written is no error."""

    def results(*more):
        results = report_of("run", tiny_classifier, "how good !", "--protocol", "clear", *more)["results"]
        return [row["labels"] for row in results]

    compiled = []
    compile_alike = building.compile_alike
    monkeypatch.setattr(building, "compile_alike", lambda *a, **o: compiled.append(a) or compile_alike(*a, **o))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert results(*known) == results(*known)
    assert len(compiled) == 1
    for other in ((), (*known, "--length", 8), (*known, "--plan", "fast")):
        results(*other)
    assert len(compiled) == 4
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    results(*known)
    assert len(compiled) == 5


def test_run_and_estimate_agree(call, report_of, known, tiny_encoder):
    run = report_of("run", tiny_encoder, "good", "bad", "--length", 16, *known)
    estimate = report_of("estimate", tiny_encoder, "--length", 16, *known)
    for name in ("rounds", "online_bytes", "offline_bytes", "length", "plan"):
        assert run[name] == estimate[name]
    for rows in ("layers", "operations"):
        assert sum(row["online_bytes"] for row in estimate[rows]) == estimate["online_bytes"]
        assert sum(row["offline_bytes"] for row in estimate[rows]) == estimate["offline_bytes"]
    _, out, _ = call("estimate", tiny_encoder, "--length", 16, "--by", "operation", *known)
    assert all(word in out for word in ("rescale", "operations share rounds"))
    assert -1 <= run["similarities"][0]["cosine"] <= 1.0001
    assert len(run["results"][0]["embedding"]) == 32


def test_what_is_compiled_for_a_slow_network_is_what_was_estimated(
    call, report_of, refused, known, tiny_encoder, tmp_path
):
    estimate = report_of("estimate", tiny_encoder, "--length", 16, "--network", "wan", *known)
    folder = tmp_path / "compiled"
    report = report_of("compile", tiny_encoder, "--lengths", 16, "--network", "wan", "--out", folder, *known)
    assert report["lengths"][0]["rounds"] == estimate["rounds"]
    for part in (folder, folder / "client"):  # as it is compiled, and nothing is compiled again
        again = report_of("estimate", part, "--network", "wan")
        for name in ("rounds", "online_bytes", "offline_bytes", "length", "plan"):
            assert again[name] == estimate[name]
    assert "is compiled for the lengths 16, not for 8" in refused("estimate", folder, "--length", 8)
    assert f"--plan: {folder} is compiled already" in refused("estimate", folder, "--plan", "fast")
    plan = Plan.load(folder / "server")
    assert plan.a_round == 8 * Plan().a_round
    assert "plan faithful" in (shown := call("models", "show", folder)[1])
    assert "a round is worth 96,000 numbers" in shown


def test_one_bad_text_of_a_run_leaves_the_others(call, known, tiny_encoder, tmp_path):
    file = tmp_path / "texts"
    file.write_text(f"good\n\n{'good ' * 80}\nbad blue\n")
    code, out, errors = call("run", tiny_encoder, "--file", file, "--protocol", "clear", *known, "--format", "json")
    assert code == 1
    first, bad, last = json.loads(out)["results"]
    assert [(row["number"], row["line"]) for row in (first, bad, last)] == [(1, 1), (2, 3), (3, 4)]
    assert (len(first["embedding"]), len(last["embedding"])) == (32, 32)
    assert errors == f"blindformer: {file}, line 3: {bad['error']}\n"
    assert len(json.loads(out)["similarities"]) == 1
    code, out, errors = call("run", tiny_encoder, "", "good " * 80, "--protocol", "clear", *known)
    first, last = errors.splitlines()
    assert (code, out, first) == (1, "", "blindformer: input 1: a text is empty: write something, or leave it out")
    limit = "text has 82 tokens, the model takes 64 at most: give --truncate end, shorten it, or split it into several"
    assert last == f"blindformer: input 2: {limit}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "/no/such/folder", "hi"], "there is no such folder"),
        (["compile", "{classifier}", "--out", "out", "--outputs", "nonsense"], "output nonsense: the model returns"),
        (["estimate", "{classifier}", "--protocol", "crypten", "--parties", "1"], "parties: 1 are named"),
        (["estimate", "{classifier}", "--length", "100"], "the model takes 64 tokens"),
        (["compile", "{vision}", "--out", "out"], "typical ones to calibrate on (--calibrate FOLDER)"),
        (["compile", "{vision}", "--out", "out", "--lengths", "8"], "have no lengths; leave --lengths out"),
        (["serve", "/no/such/folder"], "there is no such folder; give the one that compile wrote"),
    ],
)
def test_errors_are_one_line(refused, tiny_classifier, tiny_vision, arguments, words):
    line = refused(*(argument.format(classifier=tiny_classifier, vision=tiny_vision) for argument in arguments))
    assert line.startswith("blindformer: ")
    assert words in line


def test_env(call, report_of):
    shown = report_of("doctor", "--env")
    assert shown["packages"]["torch"]
    assert (shown["kernels"], shown["torch_level"]) == (level(), torch.backends.cpu.get_cpu_capability())
    assert {type(shown[name]) for name in ("vnni", "aes")} == {bool}
    flags = Path("/proc/cpuinfo")
    if flags.exists() and re.search(r"^flags\b", flags.read_text(), re.M):  # as Linux says them, whatever is virtual
        listed = set(re.search(r"^flags\s*:(.*)$", flags.read_text(), re.M)[1].split())
        assert (shown["vnni"], shown["aes"]) == (bool(listed & {"avx512_vnni", "avx_vnni"}), "aes" in listed)
    assert shown["places"]["gateway_key"] == "~/.config/blindformer/gateway.key"
    assert "python" in call("doctor", "--env")[1]


def test_a_level_holds_torch_too_and_one_that_cannot_be_had_is_one_line():
    def env(level):
        command = [sys.executable, "-m", "blindformer", "doctor", "--env", "--format", "json"]
        environment = {**os.environ, VARIABLE: level}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)

    shown = json.loads(env(PLAIN).stdout)
    assert shown["kernels"] == PLAIN
    assert shown["torch_level"] == ("DEFAULT" if PLAIN == "x86-64" else torch.backends.cpu.get_cpu_capability())
    refused = env("x86-64-v9")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"blindformer: {VARIABLE}=x86-64-v9: no such level; choose one of torch, ")
    assert len(refused.stderr.splitlines()) == 1


def test_usage_errors_are_not_bugs():
    command = [sys.executable, "-m", "blindformer", "estmate"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Did you mean") == 1


MISSPELT = """
import sys
from blindformer.parties.cli import main

for words in sys.stdin.read().splitlines():
    sys.argv = ["blindformer", *words.split()]
    try:
        main()
    except SystemExit as ended:
        print(ended.code)
print("torch" in sys.modules)
"""


def test_a_misspelt_model_is_refused_before_libraries_are_loaded(tmp_path):
    commands = [
        "run minlm how", "chat smolm2", "query minlm how --server local", "query minlm how", "estimate minlm",
        "compile minlm --out made", "up minilm smolm2", "search minlm --file made how", "train minlm --data a.csv",
        "distill --teacher minlm --data a.csv --out made", "tune minlm --data a.csv", "evaluate minlm --data a.csv",
        "run ./minlm how", "estimate ./gone", "tune ./gone --data a.csv", "evaluate ~/a/b --data a.csv", "up ./gone",
    ]  # fmt: skip
    (tmp_path / "made").write_text("a")
    program = [sys.executable, "-c", MISSPELT]
    asked = {"input": "\n".join(commands), "cwd": tmp_path, "capture_output": True, "text": True, "timeout": PATIENCE}
    done = subprocess.run(program, check=False, **asked)
    assert done.stdout.split() == ["1"] * len(commands) + ["False"], done.stderr
    meant = [("smolm2", "smollm2") if "smolm2" in words else ("minlm", "minilm") for words in commands[:12]]
    lines = [f"blindformer: {name}: there is no such model or folder; did you mean {near}?" for name, near in meant]
    gone = [f"blindformer: {name}: there is no such folder; " for name in ("./gone", "./gone", "~/a/b", "./gone")]
    errors = done.stderr.splitlines()
    assert errors[:12] == lines
    assert "./minlm" in errors[12]
    assert [line.partition("; ")[0] + "; " for line in errors[13:]] == gone


ENDS = """
import atexit, sys, threading, time
from blindformer.parties import cli

def main():
    atexit.register(print, "handler")
    threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
    print("result")
    {end}

cli.main = main
cli.process()
"""


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("pass", 0, ""),
        ("sys.exit('words')", 1, "words\n"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug\n"),
    ],
)
def test_a_process_ends_after_its_threads_and_exit_handlers(end, code, words):
    program = [sys.executable, "-c", ENDS.format(end=end)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (code, "result\nthread\nhandler\n")
    assert done.stderr.endswith(words)
    assert words or not done.stderr


FINALISER = """
import os, signal, sys, time
from blindformer.parties import cli
from blindformer.parties.cli import app

class Dies:
    def __del__(self):
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(1)

def command(prog_name):
    Dies()
    time.sleep(60)

app.app = command
cli.process()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_in_a_finaliser_ends_the_process(name, code):
    program = [sys.executable, "-c", FINALISER, name]
    done = subprocess.run(program, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode if done.returncode >= 0 else 128 - done.returncode) == code


@pytest.mark.parametrize(
    ("redirection", "code", "words"),
    [
        (">/dev/full", 1, "blindformer: the output: cannot be written (No space left on device); give it more room\n"),
        (">&-", 0, ""),
        ("- <&-", 1, "blindformer: standard input: holds no texts; write one a line, or give some as arguments\n"),
    ],
)
def test_a_stream_that_is_full_or_closed_is_no_bug(redirection, code, words):
    asks = ["run", "nowhere"] if redirection.startswith("-") else ["list", "plans"]
    script = f'exec "$0" -m blindformer {" ".join(asks)} {redirection}'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (code, words)


@pytest.mark.parametrize(("encoding", "raw"), [("utf-8", True), ("UTF8", True), ("ascii", False), ("latin-1", False)])
def test_json_is_json_whatever_stdout_is_encoded_in(monkeypatch, encoding, raw):
    written, value = io.BytesIO(), {"text": "hü 😀 \udcff"}
    stream = io.TextIOWrapper(written, encoding=encoding, errors="backslashreplace", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    print_json(value)
    assert json.loads(written.getvalue()) == value
    assert ("hü 😀".encode() in written.getvalue()) == raw


def test_a_line_is_shown_as_it_is(capsys):
    """A path, or an extra in brackets, is no style."""
    print_result("text", {}, "pip install 'blindformer[speech]'", "mails [bold]/x.csv")
    assert capsys.readouterr().out == "pip install 'blindformer[speech]'\nmails [bold]/x.csv\n"


def once(function):
    """Asked again, it gives what it gave first."""
    results = []
    return lambda *given, **options: (results or results.append(function(*given, **options)) or results)[0]


@pytest.mark.slow
def test_demo(call, report_of, monkeypatch):
    """One run, in both forms; as text it prints what the README shows."""
    for owner, name in ((building, "compile_alike"), (Client, "query_many"), (compare, "compare")):
        monkeypatch.setattr(owner, name, once(getattr(owner, name)))
    report = report_of("demo")
    assert set(report) >= SHARED
    assert report["cosine_min"] > 0.9995
    assert report["max_abs_error"] < 0.005
    assert all(abs(pair["private"] - pair["clear"]) < 0.01 for pair in report["pairs"])
    (command,) = next(block for block in blocks("console") if block.commands[0].words == "blindformer demo").commands
    code, out, _ = call("demo")
    assert code == 0
    assert alike(as_shown(out, command.shown)) == alike(command.shown)
    assert "\x1b" not in out


@pytest.mark.parametrize(("host", "kept", "warned"), [("0.0.0.0", True, 1), ("127.0.0.1", True, 0), ("::", False, 0)])
def test_a_service_for_other_machines_warns_of_the_ca_s_key_beside_its_own(capsys, tmp_path, host, kept, warned):
    if kept:
        (tmp_path / "ca.key").write_text("")
    service = SimpleNamespace(
        role="dealer", about="", programs=[], commitments=(), limit="", adversary="", helpers="",
        together="all can read it", limits=SimpleNamespace(sessions=1, workers=1, queue=1),
        identity=SimpleNamespace(folder=tmp_path, expires=0.0), address=Address(host, 7444), exporter=None,
    )  # fmt: skip
    show(service)
    printed = "".join(capsys.readouterr().err.split("\n"))
    assert printed.count(f"{tmp_path}/ca.key lies here: who reads it can pass for any party; keep") == warned
    assert printed.count("collusion  all can read it") == 1
