"""Ciphertexts that do not depend on one another, by processes that are forked for them: SEAL's classes hold Python's
lock, so threads would not help.

A child has its parent's keys and encoded weights by copy-on-write, and hands ciphertexts back in files, which tell
nobody anything. It must be forked from a process of one thread: a lock that another one holds stays locked in a child.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..forks import fork, has_other_threads
from .parameters import CkksError

Part = TypeVar("Part")


def each(parts: Sequence[Part], work: Callable[[Part], Any], load: Callable[[str], Any], workers: int) -> list[Any]:
    """`work` of every part, in order, by at most so many processes. `load`: a ciphertext from a file.

    Errors: CkksError if a process ends early, or if this one has several threads.
    """
    count = min(workers, len(parts))
    if count < 2:
        return [work(part) for part in parts]
    if has_other_threads():
        raise CkksError("worker processes need a parent of one thread: run the evaluator in a process of its own")
    with tempfile.TemporaryDirectory(prefix="blindformer-ckks-") as folder:
        children = [_forked(parts, work, Path(folder), range(k, len(parts), count)) for k in range(count)]
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            raise CkksError(
                "a worker process ended before its ciphertexts were done; is there enough memory? Ask again"
            )
        return [load(str(Path(folder) / str(number))) for number in range(len(parts))]


def _forked(parts: Sequence[Part], work: Callable[[Part], Any], folder: Path, mine: range) -> int:
    parent = os.getpid()
    child = fork()
    if child:
        return child
    status = 1
    try:
        for number in mine:
            if os.getppid() != parent:
                break
            work(parts[number]).save(str(folder / str(number)))
        status = 0
    finally:
        if os.getppid() != parent:  # it was killed: nobody waits for this, and nobody else clears it away
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)
