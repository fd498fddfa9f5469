"""What the C library does with memory that is freed: in a process that computes queries it keeps it for the next one.

A query allocates and frees some hundred megabytes, part of them in a thread that prepares correlations. By default
glibc gives every thread a heap of its own and returns what is freed at the end of one to the system, which then has to
clear every page again: about a quarter of a query's time.
"""

from __future__ import annotations

import ctypes

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGEST_IN_HEAP = 32 << 20  # bytes; glibc allows no more
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """One heap for all threads, from which nothing goes back. For this process and its children by fork.

    To be called early, by programs and not by the library. Other C libraries than glibc go on as they do.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_TRIM_THRESHOLD, _NEVER)):
        mallopt(name, value)
