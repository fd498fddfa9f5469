"""What of this machine a process may use; and how a process that computes queries uses memory and threads. Programs
call `tune_process`, early; the library changes nothing.

Freed memory is kept for the next query. A query allocates and frees some hundred megabytes, part of them in a thread
that prepares correlations. By default glibc gives every thread a heap of its own and returns what is freed at the end
of one to the system, which then has to clear every page again: about a quarter of a query's time.

The thread that prepares correlations may hold the interpreter for 5 ms whenever a message of the present query comes,
and collections look at some hundred thousand objects of Programs, which stay: both are made rarer.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
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


# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_IN_HEAP = 32 << 20  # bytes; glibc allows no more
_NEVER = 2**31 - 1

_SWITCH = 2e-4  # seconds that one thread may keep another waiting
_ALLOCATIONS = 50_000  # between two collections


def tune_process() -> None:
    """All of it. For this process and its children by fork."""
    keep_freed_memory()
    sys.setswitchinterval(_SWITCH)
    gc.set_threshold(_ALLOCATIONS)


def keep_freed_memory() -> None:
    """One heap for all threads, from which nothing goes back. Other C libraries than glibc go on as they do."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_TRIM_THRESHOLD, _NEVER)):
        mallopt(name, value)
