"""A protocol is one entry: nothing else knows it by name, and a new file is found by whoever asks."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
from blindformer.parties.registry import names, protocol_for, protocols, resolve
from blindformer.protocols.base import available
from blindformer.tests.contributing import run_copy

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("approximations", "models", "parties", "federated")
SECRET = names(lambda entry: not entry.reference)  # "clear" is a word of its own


def named(*nodes: ast.AST | None) -> list[str]:
    """The protocols that these name, or what they hold."""
    some = [value for node in nodes if node for value in [node, *getattr(node, "elts", [])]]
    return [value.value for value in some if isinstance(value, ast.Constant) and value.value in SECRET]


def comparisons(path: Path):
    """(line, name) where a protocol's name is compared or looked up, or several are listed."""
    for node in ast.walk(ast.parse(path.read_text())):
        protocol_names: list[str] = []
        if isinstance(node, ast.Compare):
            protocol_names = named(node.left, *node.comparators)
        elif isinstance(node, ast.Dict):
            protocol_names = named(*node.keys)
        elif isinstance(node, ast.MatchValue):
            protocol_names = named(node.value)
        elif isinstance(node, ast.Subscript):
            protocol_names = named(node.slice)
        elif isinstance(node, ast.Tuple | ast.List | ast.Set) and len(named(node)) > 1:
            protocol_names = named(node)
        for name in protocol_names:
            yield node.lineno, name


OTHER_THINGS = {("parties/config.py", "crypten")}  # a section of the file


def test_nothing_else_asks_for_a_protocol_by_name():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    compared = [(str(path.relative_to(ROOT)), line, name) for path in files for line, name in comparisons(path)]
    wrong = [f"{path}:{line} {name}" for path, line, name in compared if (path, name) not in OTHER_THINGS]
    assert [place for place in wrong if not place.startswith("parties/registry/")] == []


def test_entries_name_what_is_there():
    assert list(protocols()) == sorted(protocols())
    for entry in protocols().values():
        assert not entry.start or entry.name in available()
        named = [getattr(part, field.name) for part in (entry, entry.served) if part for field in fields(part)]
        for one in named:
            if isinstance(one, str) and one.startswith("."):
                assert resolve(one)
    assert {name for name in names() if protocols()[name].reference} == {"clear"}


# A new protocol, in a copy of the package (tests/contributing.py).


@pytest.fixture
def call(contributed, tmp_path):
    """`call(*words)` gives exit code, output and errors of the copy's command line."""

    def run(*words: object) -> tuple[int, str, str]:
        done = run_copy(contributed, "-m", "blindformer", *words, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return run


def test_a_new_protocol_is_known_everywhere(call, tmp_path):
    assert "replicated" in call("list", "protocols")[1]
    for command in ("run", "serve", "query", "doctor"):
        help_text = " ".join(call(command, "--help-all")[1].split())
        assert "replicated]" in help_text or "replicated|" in help_text, command
    assert "replicated:" in call("run", "--help")[1]
    file = tmp_path / "blindformer.toml"
    file.write_text('[session]\nprotocol = "replicated"\n')
    code, _, errors = call("dealer", "--config", file)
    assert (code, errors.count("\n")) == (1, 1)
    assert (
        "session.protocol = replicated: this is for protocol beaver or crypten or delegated; start its three servers"
        in errors
    )
    file.write_text('[session]\nprotocol = "morse"\n')
    assert "should be 'beaver', 'ckks', 'crypten', 'delegated' or 'replicated'" in call("dealer", "--config", file)[2]
    code, _, errors = call("run", "nowhere", "a text", "--protocol", "replicated")
    assert "2 parties: protocol replicated has 3" in errors
    assert "'replicated'" in call("run", "nowhere", "a text", "--protocol", "morse")[2]


def test_a_model_without_private_weights_is_delegated_however_that_is_said():
    for weights in ("public", {"public": ["*"]}, {"public": "*"}, {"public": ["a.*"], "rest": "public"}):
        assert protocol_for("beaver", weights) == "delegated"
        assert protocol_for("beaver", weights, "private") == "beaver"
    for weights in (None, "private", {"public": ["a.*"]}, {"public": ["*"], "private": ["a.*"]}):
        assert protocol_for("beaver", weights) == "beaver"
