"""Forks of processes with one thread alone: what another thread has locked, a child would wait for without end."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading

_TASKS = "/proc/self/task"  # of Linux


def has_other_threads() -> bool:
    """Also such as a library has started in C, like Ray, where the system lists them."""
    if threading.active_count() > 1:
        return True
    if _listed() > 1:  # OpenBLAS, which numpy brings, ends its own before any fork: they do not count
        if (probe := os.fork()) == 0:
            os._exit(0)
        os.waitpid(probe, 0)
    return _listed() > 1


def _listed() -> int:
    return len(os.listdir(_TASKS)) if os.path.isdir(_TASKS) else 1


def fork() -> int:
    """As os.fork; SIGTERM ends the child, whatever a library made of it, and the child draws its own numbers.

    Errors: OSError, also if this process has several threads.
    """
    if has_other_threads():
        raise OSError(errno.EDEADLK, "a library has started threads in this process, so it cannot fork")
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the child has no handler for it
    try:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _reseed()
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _reseed() -> None:
    """Parent and children have the state of torch's and of numpy's generators, if they have imported them, and would
    draw the same. Python's own does this by itself. No mask comes from any of them."""
    if (torch := sys.modules.get("torch")) is not None:
        # The CPU's: torch.manual_seed looks for other devices, too, which takes 2 MB of each process.
        torch.default_generator.manual_seed(int.from_bytes(os.urandom(8)))
    if (random := sys.modules.get("numpy.random")) is not None:
        random.seed(list(os.urandom(32)))
