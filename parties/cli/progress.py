"""Progress on stderr: bars or lines of a command's phases, and what a conversation's answer waits for."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PATIENCE, PAUSE = 2.0, 10.0  # seconds until the first line about what takes long, and between lines
MINUTE = 60.0  # from which on the time that is left is said
PROGRESS = "BLINDFORMER_PROGRESS"  # "off" in the environment: no progress


class Phases:
    """Progress on stderr: a bar for each phase on a terminal, elsewhere a line now and then about what takes long.
    Keeps each phase's seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        terminal = Console(stderr=True)
        wanted = os.environ.get(PROGRESS) != "off"
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(40),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=terminal,
            transient=True,
            disable=not (wanted and terminal.is_terminal),
        )
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._now = self._which = ""
        self._over = threading.Event()
        plain = wanted and not terminal.is_terminal
        self._lines = threading.Thread(target=self._say_lines) if plain else None

    def begin(self, phase: str, notes: int = 1) -> None:
        """`notes`: how many there will be about; each is as much of the phase."""
        self._started[phase] = time.perf_counter()
        self._set(phase, total=notes, completed=0, note="")
        self._bars.reset(self._tasks[phase], total=notes)

    def end(self, phase: str) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - self._started.pop(phase)
        self._set(phase, total=1, completed=1, note="")

    def note(self, phase: str, text: str) -> None:
        """The present step of a phase. In a phase that was begun, this completes the step before."""
        task, done = self._task(phase), None
        if phase in self._started and task is not None and task.total is not None:
            done = min(task.completed + bool(task.fields["note"]), task.total - 1)
        self._set(phase, note=text, completed=done)

    def step(self, phase: str, done: int, total: int) -> None:
        """A party's report of progress (the signature that sessions call). Of several inputs, a phase says which it is
        for. Of a model that writes, the number of passes says more than how far each is."""
        if phase == "answer":
            self._set(phase, note=f"{done} passes", total=None)
            return
        if phase == "query":
            self._which = f"{done + 1} of {total}" if done < total and total > 1 else ""
        self._set(phase, completed=done, total=total, note=self._which)
        if phase in ("offline", "online") and "answer" in self._tasks:
            self._now = "answer"
        if phase == "online" and "offline" in self._tasks:
            self._bars.update(self._tasks["offline"], completed=1, total=1)

    def of(self, phase: str) -> Callable[[str, int, int], None]:
        """For work that says what it does, and how much of it is done and how much there is."""
        return lambda what, done, total: self._set(phase, note=what, completed=done, total=total)

    def __enter__(self) -> Phases:
        self._bars.start()
        if self._lines is not None:
            self._lines.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._lines is not None:
            self._lines.join()
        self._bars.stop()

    def _set(self, phase: str, **what: Any) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=None, note="")
        self._bars.update(self._tasks[phase], **what)
        self._now = phase

    def _task(self, phase: str) -> Task | None:
        number = self._tasks.get(phase)
        return next((task for task in self._bars.tasks if task.id == number), None)

    def _say_lines(self) -> None:
        written, pause = "", PATIENCE
        while not self._over.wait(pause):
            task = self._task(self._now)
            if task is None or (task.total and task.completed >= task.total):
                continue
            part = f" {task.percentage:.0f}%" if task.total else ""
            if part and (left := task.time_remaining or 0) >= MINUTE:
                part += f", {left / MINUTE:.0f} min left"
            line = f"{task.description}{part}  {task.fields['note']}".strip()
            if line != written:
                print(line, file=sys.stderr, flush=True)
                written, pause = line, PAUSE


PHASES = {
    "connect": "waiting for the server",
    "set-up": "receiving masked weights",
    "queue": "waiting for a worker of the server",
    "busy": "the server has no room, it will be asked again",
    "offline": "waiting for correlations",
    "correlations": "making correlations with the server",
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
        self._lock, self._over = threading.Lock(), threading.Event()

    def step(self, phase: str, done: int, total: int) -> None:
        """A client's report of progress."""
        if phase == "again":
            self._why = AGAIN
        else:
            self._phase = PHASES.get(phase, "") + (f", {total - 1} go first" if phase == "queue" else "")

    def write(self, text: str) -> None:
        """Words of the answer, on stdout."""
        with self._lock:
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
            with self._lock:
                self._hide()

    def _watch(self) -> None:
        terminal, written = sys.stderr.isatty(), 0.0
        while not self._over.wait(PATIENCE / 4):
            now = time.monotonic()
            if not self._phase or now - self._since < PATIENCE or (not terminal and now - written < PAUSE):
                continue
            written, text = now, f"{self._why}{self._phase} ({now - self._since:.0f} s)"
            with self._lock:
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
