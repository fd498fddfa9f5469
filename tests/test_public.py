"""The public face: sorted, complete, and free to import."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import blindformer as bf
import pytest


def test_all_is_sorted_complete_and_importable():
    assert bf.__all__ == sorted(bf.__all__)
    assert set(bf.__all__) == set(bf._HOMES)
    for name in bf.__all__:
        assert getattr(bf, name).__name__ == name
    assert set(bf.__all__) <= set(dir(bf))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nothing_here"):
        bf.nothing_here  # noqa: B018


@pytest.mark.parametrize("module", ["blindformer", "blindformer.parties.cli.app", "blindformer.parties.local.worker"])
def test_importing_is_light(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'crypten', 'flwr') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_one_except_catches_every_error():
    with pytest.raises(bf.BlindformerError, match="unknown preset 'nothing'"):
        bf.Plan.preset("nothing")
    with pytest.raises(bf.BlindformerError, match="unknown key 'sofmax'"):
        bf.Plan(sofmax="exp")


def test_the_version_is_said_once_and_everywhere():
    installed = importlib.metadata.version("blindformer")
    assert bf.__version__ == installed
    command = [sys.executable, "-m", "blindformer.parties.cli", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == f"blindformer {installed}\n"
