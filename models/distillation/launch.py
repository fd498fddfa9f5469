"""Several processes of this machine that train together: started together, ended together, and heard by this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

import torch

from ...errors import BlindformerError
from .processes import LOCAL_WORLD, RANK, WORLD, ProcessLost, check_accelerate
from .settings import DistillError

T = TypeVar("T")
_Said = tuple[str, Any]

_SETTLE = 5.0  # seconds that one which misses another leaves the cause to be found
_PAUSE = 0.1


def together(count: int, work: Callable[..., T], **hear: Callable[[Any], None] | None) -> T:
    """What `work` returns in the first of `count` new processes, in which it is called at the same time.

    work   can be pickled; the first process calls it with a function for each name in `hear`
    hear   what is told what that function is called with, here
    All processes end when one of them fails, or when this function is left, however it is.

    Errors: what `work` raises, if it is a BlindformerError; DistillError for a process that was killed.
    """
    check_accelerate()
    context = multiprocessing.get_context("spawn")
    said: SimpleQueue[_Said] = context.SimpleQueue()
    names = [name for name, told in hear.items() if told is not None]
    given = (count, _free_port(), torch.get_num_threads(), said, work, names)
    running: list[BaseProcess] = []
    try:
        # Ctrl-C reaches this process only, which then ends the others: they inherit that the signal is blocked.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for rank in range(count):
                running.append(context.Process(target=_work, args=(rank, *given), daemon=True))
                running[-1].start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _result(running, said, hear)
    finally:
        for process in running:
            if process.pid is not None:
                process.kill()
                process.join()


def _result(running: list[BaseProcess], said: SimpleQueue[_Said], hear: dict[str, Any]) -> Any:
    while True:
        ended = {rank: process.exitcode for rank, process in enumerate(running)}  # before the last words are read
        while not said.empty():
            kind, value = said.get()
            if kind == "made":
                return value
            if kind == "failed":
                raise value
            hear[kind](value)
        for rank, code in ended.items():
            if code:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
                raise DistillError(
                    f"process {rank} of {len(running)}: {how}; run the same command again: it goes on from the last "
                    "checkpoint"
                )
        wait([process.sentinel for process in running if process.is_alive()], _PAUSE)


def _work(
    rank: int,
    count: int,
    port: int,
    threads: int,
    said: SimpleQueue[_Said],
    work: Callable[..., object],
    names: list[str],
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there uninvited
        os.dup2(nothing, stream)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, RANK: rank}
    os.environ.update({name: str(value) for name, value in (place | {WORLD: count, LOCAL_WORLD: count}).items()})
    torch.set_num_threads(threads)
    try:
        made = work(**({name: _Speaker(said, name) for name in names} if rank == 0 else {}))
        if rank == 0:
            said.put(("made", made))
    except ProcessLost as error:
        time.sleep(_SETTLE)  # the one that is missed says why; by then this one has been ended
        said.put(("failed", error))
    except BlindformerError as error:
        said.put(("failed", error))
    except Exception:
        said.put(("failed", RuntimeError(f"process {rank} of {count} failed:\n{traceback.format_exc()}")))


class _Speaker:
    def __init__(self, said: SimpleQueue[_Said], name: str) -> None:
        self.said, self.name = said, name

    def __call__(self, value: object) -> None:
        self.said.put((self.name, value))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]
