"""Several processes of this machine that train together: started together, ended together, and heard by this one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...errors import BlindformerError
from .processes import ProcessLost, check_accelerate, meet
from .settings import DistillError

T = TypeVar("T")

_SETTLE = 5.0  # seconds: a process that misses another lets the cause be heard first


def together(count: int, work: Callable[..., T], **hear: Callable[[Any], None] | None) -> T:
    """Call `work` in `count` new processes at the same time. Returns what it returns in the first.

    work   can be pickled; the first process gives it a function for each name in `hear`
    hear   functions that are called here with what `work` calls them with
    All processes end when one of them fails, and when this function ends, however it ends.

    Errors: BlindformerError, as `work` raises it; DistillError for a process that was killed.
    """
    check_accelerate()
    context = multiprocessing.get_context("spawn")
    scratch = Path(tempfile.mkdtemp(prefix="blindformer-"))  # mode 0700
    given = (count, scratch / "addresses", torch.get_num_threads(), work, [name for name in hear if hear[name]])
    running: dict[Connection, BaseProcess] = {}
    try:
        # Ctrl-C is for this process only, which then ends the others: they inherit that the signal is blocked. The
        # tracker comes first, as its start unblocks the signal.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for rank in range(count):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(rank, writer, *given), daemon=True)
                process.start()
                running[reader] = process
                writer.close()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _result(running, hear)
    finally:
        for process in running.values():
            process.kill()
            process.join()
        shutil.rmtree(scratch, ignore_errors=True)


def _result(running: dict[Connection, BaseProcess], hear: dict[str, Any]) -> Any:
    readers = list(running)
    while True:
        for reader in wait(readers):
            try:
                kind, value = reader.recv()  # type: ignore[union-attr]
            except (EOFError, OSError):  # it has ended
                readers.remove(reader)  # type: ignore[arg-type]
                _check_end(reader, running)  # type: ignore[arg-type]
                continue
            if kind == "made":
                return value
            if kind == "failed":
                raise value
            hear[kind](value)


def _check_end(reader: Connection, running: dict[Connection, BaseProcess]) -> None:
    process = running[reader]
    process.join()
    if code := process.exitcode:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise DistillError(
            f"process {list(running).index(reader)} of {len(running)}: {how}; run the same command again: it goes on "
            "from the last checkpoint"
        )


def _work(
    rank: int,
    writer: Connection,
    count: int,
    addresses: Path,
    threads: int,
    work: Callable[..., object],
    names: Sequence[str],
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there uninvited
        os.dup2(nothing, stream)
    torch.set_num_threads(threads)
    try:
        meet(rank, count, addresses)
        made = work(**({name: partial(_say, writer, name) for name in names} if rank == 0 else {}))
        if rank == 0:
            _say(writer, "made", made)
    except ProcessLost as error:
        time.sleep(_SETTLE)
        _say(writer, "failed", error)
    except BlindformerError as error:
        _say(writer, "failed", error)
    except Exception:
        _say(writer, "failed", RuntimeError(f"process {rank} of {count} failed:\n{traceback.format_exc()}"))


def _say(writer: Connection, kind: str, value: object) -> None:
    writer.send((kind, value))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
