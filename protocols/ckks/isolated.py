"""A process for bytes of strangers: SEAL is written in C++, and a damaged key has ended whoever computed with it.

Such a process is forked for one client, so that its end is the end of one request. What it says is passed on whole or
not at all. It must be forked from a process of one thread (forks.py).
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from ..forks import fork
from .parameters import CkksError

Say = Callable[[bytes], None]
_MORE, _LAST = b"\0", b"\1"  # before a message
LOOK_SECONDS = 1.0  # between looks whether the parent is there


class IsolatedEnded(CkksError):
    """The process that computed on a client's keys or ciphertexts has ended."""


class Isolated:
    """Calls `work` in a process of its own with whatever is asked. It may say messages, and returns the last one."""

    def __init__(self, work: Callable[[bytes, Say], bytes]) -> None:
        self._line, theirs = Pipe()
        parent = os.getpid()
        self._pid = fork()
        if self._pid == 0:
            _be_child(theirs, work, parent)
        theirs.close()

    def ask(self, data: bytes, until: Any, every: float = 60.0, deadline: float = math.inf) -> Iterator[bytes]:
        """What it says, and b"" whenever it is silent for `every` seconds, or at the deadline (of the monotonic clock).
        Ends early, and ends the process, when something can be read from `until` before it is done.

        Errors: IsolatedEnded.
        """
        try:
            self._line.send_bytes(data)
            while until not in (ready := wait([self._line, until], min(every, max(0.0, deadline - time.monotonic())))):
                message = self._line.recv_bytes() if ready else _MORE
                yield message[1:]
                if message[:1] == _LAST:
                    return
        except (EOFError, OSError):
            self.close()
            raise IsolatedEnded("the request ended the process that computed on it; make new keys, ask again") from None
        self.close()

    def close(self) -> None:
        """End it. Safe to call twice."""
        self._line.close()
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    @property
    def closed(self) -> bool:
        return not self._pid


def pack(head: dict[str, Any], parts: Iterable[bytes] = ()) -> bytes:
    """A message: a line of JSON, with the sizes of the bytes that follow it."""
    parts = list(parts)
    return b"".join((json.dumps({**head, "sizes": [len(part) for part in parts]}).encode(), b"\n", *parts))


def unpack(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    line, _, rest = message.partition(b"\n")
    head, parts, at = json.loads(line), list[bytes](), 0
    for size in head.pop("sizes"):
        parts.append(rest[at : at + size])
        at += size
    return head, parts


def _be_child(line: Connection, work: Callable[[bytes, Say], bytes], parent: int) -> NoReturn:
    try:
        mine, (most, _) = line.fileno(), resource.getrlimit(resource.RLIMIT_NOFILE)
        os.closerange(3, mine)  # lines of others, which tell by their end that a process is gone
        os.closerange(mine + 1, most)
        while os.getppid() == parent:
            if line.poll(LOOK_SECONDS):
                last = work(line.recv_bytes(), lambda message: line.send_bytes(_MORE + message))
                line.send_bytes(_LAST + last)
    finally:
        os._exit(1)  # whatever happened, this is no place to return to
