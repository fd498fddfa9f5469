"""What of this machine a process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

T = TypeVar("T")

MOST_THREADS = 8  # of this process, that `side_by_side` begins


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(work: Callable[[T], object], items: Sequence[T]) -> None:
    """Call `work` with each item, one of them in this thread. For calls that leave Python, and last longer than a
    thread takes to wake up."""
    tasks = [_threads().submit(work, item) for item in items[1:]]
    work(items[0])
    for task in tasks:
        task.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, min(MOST_THREADS, cores()) - 1), "blindformer cores")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # the child has none of the threads
