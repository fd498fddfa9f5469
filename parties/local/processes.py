"""Parties as processes of this machine: started, listened to, and gone when it is over, whatever happened."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ...protocols.errors import BlindformerError

Progress = Callable[[str, int, int], None]  # phase, done, total
START_SECONDS = 60.0  # for a worker to listen, on a machine that is busy
FAREWELL_SECONDS = 5.0
SETTLE_SECONDS = 1.0  # a failure spreads from party to party: wait for the others' words before naming the culprit


class LaunchError(BlindformerError):
    """A party of a local session died or stalled. `party` names it, `line` is its own last error line."""

    def __init__(self, party: str, line: str, remedy: str = "") -> None:
        self.party, self.line = party, line
        super().__init__(f"{party}: {line}" + (f"; {remedy}" if remedy else ""))


class PartyProcess:
    """One party's process, and the two threads that listen to it. Everything it says lands in `events`."""

    def __init__(
        self, module: str, role: str, config: Path, events: queue.Queue[tuple[str, dict[str, Any] | None]]
    ) -> None:
        self.role, self.last_line = role, ""
        # A session of its own: Ctrl-C reaches the launcher alone, which then ends the workers in order.
        # -P: a folder that happens to be the working directory must not shadow modules.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, role, str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._threads = [
            threading.Thread(target=self._read_reports, args=(self.process.stdout, events), daemon=True),
            threading.Thread(target=self._read_errors, args=(self.process.stderr,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, **command: Any) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its death is reported by the reader
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            self.process.stdin.flush()

    def dead(self) -> bool:
        return self.process.poll() is not None

    def last_words(self) -> str:
        """Why it died, in its own words where it had any."""
        code = self.process.poll()
        self._threads[1].join(1)
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return self.last_line or f"ended without a word (exit code {code})"

    def end(self) -> None:
        """Gone when this returns."""
        if not self.dead():
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is self.process.stdin and pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        for thread in self._threads:
            thread.join(1)

    def _read_reports(self, pipe: IO[bytes], events: queue.Queue[tuple[str, dict[str, Any] | None]]) -> None:
        with pipe:
            for line in pipe:
                try:
                    report = json.loads(line)
                except ValueError:
                    continue  # some library's chatter
                if isinstance(report, dict):
                    events.put((self.role, report))
        self.process.wait()
        events.put((self.role, None))

    def _read_errors(self, pipe: IO[bytes]) -> None:
        prefix = f"blindformer {self.role}: "
        with pipe:
            for raw in pipe:
                line = raw.decode(errors="replace").strip()
                if line:
                    self.last_line = line.removeprefix(prefix)


class Processes:
    """Workers by role, and what they report. `module` is what a worker runs: `python -m MODULE ROLE CONFIG.json`."""

    module = "blindformer.parties.local.worker"

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self._events: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
        self._workers: dict[str, PartyProcess] = {}
        self._scratch = Path(tempfile.mkdtemp(prefix="blindformer-"))  # mode 0700

    @property
    def processes(self) -> dict[str, int]:
        """Pids by role."""
        return {role: worker.process.pid for role, worker in self._workers.items()}

    @property
    def open(self) -> bool:
        """Whether the session goes on."""
        return bool(self._workers)

    def _heard(self, role: str, report: dict[str, Any]) -> None:
        """Hook: any report, as it is read."""

    def _part(self, first: str) -> None:
        """Tell `first` to say goodbye, wait a little for all to go, and end whoever is still there."""
        if self._workers:
            self._workers[first].tell(close=True)
            deadline = time.monotonic() + FAREWELL_SECONDS
            for worker in self._workers.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, deadline - time.monotonic()))
        self._end()
        while not self._events.empty():
            role, report = self._events.get()
            if report is not None:
                self._heard(role, report)

    def _start(self, role: str, config: dict[str, Any]) -> None:
        path = self._scratch / f"{role}.json"
        path.write_text(json.dumps(config))
        self._workers[role] = PartyProcess(self.module, role, path, self._events)

    def _wait(self, role: str, names: tuple[str, ...], seconds: float) -> dict[str, Any]:
        """The next report of `role` that has one of these names. Progress of the client counts as a sign of life.

        The parties time each other out; `seconds` of silence from all of them is for the one that nobody waits for.
        """
        while True:
            try:
                who, report = self._events.get(timeout=seconds)
            except queue.Empty:
                line = f"gave no sign of life for {seconds:g} seconds"
                raise LaunchError(role, line, "see what keeps this machine busy, or allow a longer timeout") from None
            if report is None:
                raise self._blame(who)
            self._heard(who, report)
            if "progress" in report and self.progress:
                self.progress(*report["progress"])
            if who == role and any(name in report for name in names):
                return report

    def _blame(self, first: str) -> LaunchError:
        """Which party is the cause: one that was killed; else the end of the chain "a: b is gone", "b: ..."."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline and not all(worker.dead() for worker in self._workers.values()):
            time.sleep(0.02)
        words = {role: worker.last_words() for role, worker in self._workers.items() if worker.dead()}
        killed = [role for role, worker in self._workers.items() if (worker.process.poll() or 0) < 0]
        if killed:
            return LaunchError(killed[0], words[killed[0]], "run again; if memory is short, use a shorter length")
        role, seen = first, {first}
        while True:
            named, _, what = (part.strip() for part in words[role].partition(":"))
            if named not in self._workers:
                return LaunchError(role, words[role])
            # Who still runs, but does nothing; or who was heard of first, where two only repeat each other.
            if named not in words or (named in seen and "stopped and said" not in what):
                return LaunchError(named, what)
            if named in seen and "stopped and said" in words[named]:
                return LaunchError(role, words[role])
            seen.add(named)
            role = named

    def _end(self) -> None:
        for worker in self._workers.values():
            worker.end()
        self._workers.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)
