"""The three parties as three processes of this machine, over mutual TLS 1.3 on loopback.

`run_local(folder, inputs)` runs some queries and returns; `LocalParties` keeps the session open between queries. Either
way the processes are gone when it is over, whatever happened: a worker also ends by itself when its stdin closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..models.compile import AnswerOutOfRange
from ..models.pricing import Network
from ..models.program import ProgramError
from ..protocols.channel import Meter
from ..protocols.errors import BlindformerError
from ..protocols.ring import RangeError
from .certificates import make_certificates
from .session import Timings

Progress = Callable[[str, int, int], None]  # phase, done, total
ROLES = ("dealer", "server", "client")
START_SECONDS = 60.0  # for a worker to listen, on a machine that is busy
FAREWELL_SECONDS = 5.0
# What can be wrong with one query alone. The client's process names them; anything else is a BlindformerError.
QUERY_ERRORS = {error.__name__: error for error in (AnswerOutOfRange, ProgramError, RangeError)}
SETTLE_SECONDS = 1.0  # a failure spreads from party to party: wait for the others' words before naming the culprit


class LaunchError(BlindformerError):
    """A party of a local session died or stalled. `party` names it, `line` is its own last error line."""

    def __init__(self, party: str, line: str, remedy: str = "") -> None:
        self.party, self.line = party, line
        super().__init__(f"{party}: {line}" + (f"; {remedy}" if remedy else ""))


@dataclass
class LocalAnswer:
    """One query: decoded outputs by name, the client's timings, and what the others reported (ClientParty.query)."""

    outputs: dict[str, Tensor]
    timings: Timings
    others: dict[str, float]


@dataclass
class LocalRun:
    """What `run_local` returns: one item per query in each list. `setup_bytes`: the masked weights, once per session.

    `wire_overhead_bytes`: framing and TLS around the payload, on the client's connections, over the whole session.
    """

    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    timings: list[Timings] = field(default_factory=list)
    others: list[dict[str, float]] = field(default_factory=list)
    setup_s: float = 0.0
    setup_bytes: int = 0
    wire_overhead_bytes: int = 0


def run_local(
    folder: Path | str,
    inputs: list[dict[str, Tensor]],
    *,
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
    pin: bool = False,
    pipeline: bool = False,
    network: Network | None = None,
    length: int | None = None,
) -> LocalRun:
    """Run one query per item of `inputs` (tensors by name, as compiled) on the compiled `folder`.

    threads    torch threads of each party
    timeout    seconds that any party may be silent towards another that waits for it
    progress   called with (phase, done, total) as the client reports
    pin        server on core 0 and client on core 1, where there are two: for measurements
    pipeline   make the next query's correlations while one runs
    network    the network to imitate between the parties
    length     which of the folder's programs, if there are several

    Errors: as LocalParties; all processes are gone by then.
    """
    options: dict[str, Any] = {"threads": threads, "timeout": timeout, "progress": progress, "pin": pin}
    with LocalParties(folder, **options, network=network, length=length) as parties:
        run = LocalRun(setup_s=parties.setup_s, setup_bytes=parties.setup_bytes)
        for number, item in enumerate(inputs):
            if progress:
                progress("query", number, len(inputs))
            answer = parties.query(item, more=pipeline and number + 1 < len(inputs))
            run.outputs.append(answer.outputs)
            run.timings.append(answer.timings)
            run.others.append(answer.others)
        if progress:
            progress("query", len(inputs), len(inputs))
        run.wire_overhead_bytes = parties.wire_overhead_bytes
    return run


class _Worker:
    """One party's process, and the two threads that listen to it. Everything it says lands in `events`."""

    def __init__(self, role: str, config: Path, events: queue.Queue[tuple[str, dict[str, Any] | None]]) -> None:
        self.role, self.last_line = role, ""
        # A session of its own: Ctrl-C reaches the launcher alone, which then ends the workers in order.
        # -P: a folder that happens to be the working directory must not shadow modules.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "blindformer.parties.worker", role, str(config)],
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


class LocalParties:
    """A session of three local processes, open until `close`. Use it as a context manager.

    `processes`: pids by role. `counts`: with `audit`, how often each byte value reached the server from the client
    (complete after `close`). Errors of all methods: LaunchError, which ends the session; and of `query` those of
    `QUERY_ERRORS`, which end that query alone.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        pin: bool = False,
        audit: bool = False,
        network: Network | None = None,
        length: int | None = None,
        certificates: Path | str | None = None,
        parts: Mapping[str, Path | str] | None = None,
    ) -> None:
        """Start the processes and set the session up. `audit` fills `counts`, at some cost of memory at the server.

        `network`: what to imitate between the parties. `length`: which of the folder's programs, if there are several.
        `certificates` (default: made for this session alone) and `parts` (a folder by role, in place of `folder`) are
        there for tests of parties that do not fit together.
        """
        self.timeout, self.progress = timeout, progress
        self.setup_s, self.setup_bytes, self.wire_overhead_bytes = 0.0, 0, 0
        self._events: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
        self._workers: dict[str, _Worker] = {}
        self.counts: list[int] = []
        self._queries = 0
        self._scratch = Path(tempfile.mkdtemp(prefix="blindformer-"))  # mode 0700
        try:
            if certificates is None:
                certificates = self._scratch / "certificates"
                make_certificates(certificates, days=1)
            cores = {"server": 0, "client": 1} if pin and _cores() >= 2 else {}
            config: dict[str, Any] = {
                "certificates": str(certificates),
                "scratch": str(self._scratch),
                "timeout": timeout,
                "threads": threads,
                "audit": audit,
                "length": length,
                "network": None if network is None else (network.name, network.rtt, network.bandwidth),
            }
            for role in ROLES:
                config["folder"] = str(Path((parts or {}).get(role, folder)).absolute())
                self._start(role, {**config, "core": cores.get(role)})
                if role != "client":
                    port = self._wait(role, ("port",), max(timeout, START_SECONDS))["port"]
                    config[role] = ("127.0.0.1", port)
            ready = self._wait("client", ("ready",), max(2 * timeout, START_SECONDS))["ready"]
            self.setup_s, self.setup_bytes = ready["setup_s"], ready["setup_bytes"]
        except BaseException:
            self._end()
            raise

    @property
    def processes(self) -> dict[str, int]:
        return {role: worker.process.pid for role, worker in self._workers.items()}

    @property
    def open(self) -> bool:
        """Whether the session goes on."""
        return bool(self._workers)

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer:
        """Run one query. `more`: another one follows, so its correlations are made meanwhile."""
        if not self.open:
            raise LaunchError("client", "the session is closed", "open a new one")
        into = self._scratch / f"inputs-{self._queries}.safetensors"
        out = self._scratch / f"outputs-{self._queries}.safetensors"
        self._queries += 1
        try:
            if self.progress:
                self.progress("offline", 0, 1)
            save_file({name: value.contiguous().clone() for name, value in inputs.items()}, into)
            self._workers["client"].tell(inputs=str(into), outputs=str(out), more=more)
            report = self._wait("client", ("answer", "failed"), 2 * self.timeout)
            if "answer" in report:
                outputs = load_file(out)
                out.unlink()
        except BaseException:
            self._end()
            raise
        if "failed" in report:
            failed = report["failed"]
            raise QUERY_ERRORS.get(failed["kind"], BlindformerError)(failed["what"])
        answer = report["answer"]
        timings = answer["timings"]
        self.wire_overhead_bytes = answer["wire_overhead_bytes"]
        return LocalAnswer(outputs, Timings(**{**timings, "online": Meter(**timings["online"])}), answer["others"])

    def close(self) -> None:
        """Say goodbye, wait a little, and end whoever is still there. Safe to call twice."""
        if self._workers:
            self._workers["client"].tell(close=True)
            deadline = time.monotonic() + FAREWELL_SECONDS
            for worker in self._workers.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, deadline - time.monotonic()))
        self._end()
        while not self._events.empty():
            report = self._events.get()[1]
            self.counts = (report or {}).get("counts", self.counts)

    def __enter__(self) -> LocalParties:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.close()
        else:
            self._end()

    def _start(self, role: str, config: dict[str, Any]) -> None:
        path = self._scratch / f"{role}.json"
        path.write_text(json.dumps(config))
        self._workers[role] = _Worker(role, path, self._events)

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
            self.counts = report.get("counts", self.counts)
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
