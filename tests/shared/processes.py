"""Processes that are forked from one that has torch loaded already, and has one thread.

A worker of the tests never forks itself: a library, such as Ray, may have started threads in it.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import ParamSpec, TypeVar

from blindformer.tests.patience import PATIENCE

P = ParamSpec("P")
T = TypeVar("T")

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["blindformer.tests.shared.clients"])


def alone(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work`, a function of a module, returns in a process of its own, which may fork."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_tell, args=(theirs, work, args, kwargs), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(PATIENCE), f"{work.__name__} stands still"
        error, result = ours.recv()
        assert not error, error
        return result
    finally:
        process.kill()
        process.join()


def _tell(pipe: Connection, work: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    try:
        pipe.send(("", work(*args, **kwargs)))
    except BaseException:
        pipe.send((traceback.format_exc(), None))
