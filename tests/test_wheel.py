"""The wheel holds the whole package and nothing else, and is all that a machine needs beside the dependencies."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest
from blindformer.levels import LEVELS, PLAIN, TORCH, VARIABLE
from blindformer.tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("protocols", "approximations", "models", "parties", "federated")
BUILDS = {level.build for level in LEVELS.values()} if PLAIN == "x86-64" else {LEVELS[PLAIN].build}
KERNELS = {f"blindformer/protocols/kernels/{name}.abi3.so" for name in BUILDS}


def build(folder: Path, kernels: str = "") -> Path:
    """The wheel of a copy of this tree, with the setuptools that is installed here."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__", "shared")
    shutil.copytree(ROOT, folder / "source", ignore=left_out)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [*pip, "--wheel-dir", folder, folder / "source"]
    subprocess.run(command, env={**os.environ, VARIABLE: kernels}, check=True, timeout=PATIENCE)
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> set[str]:
    with ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if ".dist-info/" not in name}


def sources() -> set[str]:
    """What the wheel has to hold: all Python files and pages of the rooms and beside them, in packages or not."""
    kinds = [f"{room}/**/*.{kind}" for room in ROOMS for kind in ("py", "html")]
    files = [file for kind in ("*.py", "models/students/*/*", *kinds) for file in ROOT.glob(kind) if file.is_file()]
    names = {f"blindformer/{file.relative_to(ROOT).as_posix()}" for file in files if file.name != "setup.py"}
    return {*names, "blindformer/py.typed", "blindformer/docs/blindformer.toml"}


def test_without_kernels_one_wheel_serves_every_platform(tmp_path):
    wheel = build(tmp_path, TORCH)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert contents(wheel) == sources()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is here")
def test_commands_run_from_the_wheel_alone(tmp_path, tiny_classifier):
    """Installed in a folder of its own; only the dependencies are those of this environment."""
    wheel, site = build(tmp_path), tmp_path / "site"
    assert "-cp311-abi3-" in wheel.name
    assert contents(wheel) == sources() | KERNELS
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run(pip, check=True, timeout=PATIENCE)
    shutil.rmtree(tmp_path / "source")

    def run(*command: str | Path) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
        environment.pop(VARIABLE, None)  # the wheel's own kernels, whatever the other tests run with
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import blindformer as b; from blindformer.levels import *; print(b.__file__, kernels_of(level()))"
    assert all(Path(file).is_relative_to(site) for file in run(sys.executable, "-c", where).split())
    version = run(site / "bin" / "blindformer", "--version")
    assert version == run(sys.executable, "-m", "blindformer", "--version")
    assert version.startswith("blindformer ")
    (known := tmp_path / "known").write_text("how is my password ?\nnot good , bad !\nthe password is lost .\n")
    asked = ("run", tiny_classifier, "how good !", "--length", "8", "--calibrate", known, "--format", "json")
    assert json.loads(run(site / "bin" / "blindformer", *asked))["max_abs_error"] < 0.02


def test_every_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    files = [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(file for room in ROOMS for file in ROOT.glob(f"{room}/**/*.py")),
    ]
    named = {
        (file.name, extra)
        for file in files
        for some in re.findall(r"blindformer\[([\w,-]+)\]", file.read_text(encoding="utf-8"))
        for extra in some.split(",")
    }
    assert named
    assert {(file, extra) for file, extra in named if extra not in extras} == set()
