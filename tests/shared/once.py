"""What tests compile, once for all processes of a run: the first that asks makes it, the others read it.

A run has a folder of its own (tests/conftest.py), and in it each copy of the package: nothing is read of other code.
"""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
COPY = Path(__file__).resolve().parents[2].as_posix().strip("/").replace("/", "-")
RUN = Path(os.environ["BLINDFORMER_TEST_RUN"]) / "once" / COPY if "BLINDFORMER_TEST_RUN" in os.environ else None


def once(name: str, make: Callable[[], T]) -> T:
    """What `make` gives, as a copy of this process' own. `name`: of this and nothing else."""
    if RUN is None:
        return make()

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "value").write_bytes(pickle.dumps(make()))

    return pickle.loads((folder_once(name, write) / "value").read_bytes())


def folder_once(name: str, write: Callable[[Path], object]) -> Path:
    """The folder that `write` makes; no test may change it."""
    assert RUN is not None, "a run has a folder"
    RUN.mkdir(parents=True, exist_ok=True)
    folder = RUN / name
    with (RUN / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (done := RUN / f"{name}.done").exists():
            write(folder)
            done.touch()
    return folder
