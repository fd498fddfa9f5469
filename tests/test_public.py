"""The public face: sorted, complete, and free to import."""

from __future__ import annotations

import ast
import builtins
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

import blindformer as bf
import pytest
from blindformer.tests.patience import PATIENCE
from blindformer.versions import PROTOCOL

ROOT = Path(__file__).resolve().parents[1]


def test_all_is_sorted_complete_and_importable():
    assert bf.__all__ == sorted(bf.__all__)
    assert set(bf.__all__) == set(bf._HOMES)
    for name in bf.__all__:
        assert getattr(bf, name).__name__ == name
    assert set(bf.__all__) <= set(dir(bf))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_here"):
        bf.nothing_here  # noqa: B018


LIBRARIES = ("transformers", "crypten", "flwr", "torch")
SERVICE = "blindformer.parties.service.delegated"  # which needs no model's own code


@pytest.mark.parametrize(
    ("module", "without"),
    [("blindformer", LIBRARIES), ("blindformer.parties.cli.app", LIBRARIES), (SERVICE, LIBRARIES[:3])],
)
def test_importing_is_light(module, without):
    code = f"import sys, {module}; print([name for name in {without} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.strip() == "[]"


def ancestors(name: str, bases: dict[str, list[str]]) -> set[str]:
    return {name}.union(*(ancestors(base, bases) for base in bases.get(name, ())))


BUILTIN = {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException) and not issubclass(value, Warning)
}
SIGNALS = {
    "BrokenControl",
    "MovedTo",
    "Stopped",
    "Stopping",
    "_Enough",
}  # between parts of one program, which catch them


def test_every_error_of_the_package_is_a_blindformer_error():
    """By the classes' names, of which no two errors share one; warnings aside."""
    rooms = ("protocols", "approximations", "models", "parties", "federated")
    files = [ROOT / "errors.py", *(path for room in rooms for path in (ROOT / room).rglob("*.py"))]
    bases: dict[str, list[str]] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, []).extend(ast.unparse(base).split(".")[-1] for base in node.bases)
    above = {name: ancestors(name, bases) for name in bases}
    own = {name for name, bases_of in above.items() if bases_of & BUILTIN}
    assert len(own) > 40
    assert {name for name in own if "BlindformerError" not in above[name]} <= SIGNALS


def test_the_version_is_said_once_and_everywhere():
    installed = importlib.metadata.version("blindformer")
    assert bf.__version__ == installed
    command = [sys.executable, "-m", "blindformer", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    line, torch, python = done.stdout, importlib.metadata.version("torch"), platform.python_version()
    assert line.startswith(f"blindformer {installed}, protocol {PROTOCOL} (python {python}, torch {torch}, ")
