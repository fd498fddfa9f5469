"""What an answer waits for, on stderr, where none of it has come for a while."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .progress import PATIENCE, PAUSE, PROGRESS

PHASES = {
    "connect": "waiting for the server",
    "set-up": "receiving masked weights",
    "queue": "waiting for a worker of the server",
    "busy": "the server has no room, it will be asked again",
    "offline": "waiting for the dealer",
    "online": "computing",
}
AGAIN = "the session was lost, what was said is read again in a new one: "
# On a terminal: behind the cursor, which stays, and on its line; and away again.
SHOW, HIDE = "\x1b7\x1b[?7l\x1b[2m  {}\x1b[0m\x1b[?7h\x1b8", "\x1b[K"


class Waiting:
    """After PATIENCE seconds without a word of the answer: on a terminal a note behind it, until more comes; elsewhere
    a line now and then, as for what else takes long."""

    def __init__(self) -> None:
        self._phase, self._why, self._since, self._shown = "", "", 0.0, False
        self._turn, self._over = threading.Lock(), threading.Event()

    def step(self, phase: str, done: int, total: int) -> None:
        """A client's report of progress."""
        if phase == "again":
            self._why = AGAIN
        else:
            self._phase = PHASES.get(phase, "") + (f", {total - 1} go first" if phase == "queue" else "")

    def write(self, text: str) -> None:
        """Words of the answer, on stdout."""
        with self._turn:
            self._hide()
            sys.stdout.write(text)
            sys.stdout.flush()
            self._why, self._since = "", time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While an answer comes."""
        self._over.clear()
        self._phase, self._why, self._since = "", "", time.monotonic()
        watch = threading.Thread(target=self._watch) if os.environ.get(PROGRESS) != "off" else None
        if watch is not None:
            watch.start()
        try:
            yield
        finally:
            self._over.set()
            if watch is not None:
                watch.join()
            with self._turn:
                self._hide()

    def _watch(self) -> None:
        terminal, said = sys.stderr.isatty(), 0.0
        while not self._over.wait(PATIENCE / 4):
            now = time.monotonic()
            if not self._phase or now - self._since < PATIENCE or (not terminal and now - said < PAUSE):
                continue
            said, text = now, f"{self._why}{self._phase} ({now - self._since:.0f} s)"
            with self._turn:
                if not self._over.is_set():
                    self._hide()
                    self._shown = terminal
                    self._put(SHOW.format(text) if terminal else f"{text}\n")

    def _hide(self) -> None:
        if self._shown:
            self._put(HIDE)
            self._shown = False

    def _put(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
