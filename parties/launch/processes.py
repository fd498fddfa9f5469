"""Parties as processes of this machine: started, listened to, and gone when it is over, whatever happened.

A process reports on stderr, in JSON lines with an `event`; other lines are its last words if it ends. Its stdin is its
lifeline: at its end the process ends, so none outlives this one. The processes run the commands of a deployment; only
their addresses tell them from one, and certificates that are made for the occasion.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...protocols.errors import BlindformerError
from ..certificates.issuing import make_certificates
from ..config import Address
from ..registry import find_served
from . import LocalOptions
from .fork_server import environment, shared

Line = dict[str, Any]

START_SECONDS = 600.0  # to import torch and load a model, on a machine that is busy
STOP_SECONDS = 5.0
FAILED_SECONDS = 1.0  # the same after a failure
SETTLE_SECONDS = 1.0  # a failure spreads from party to party: wait for the cause before naming one
BACKLOG = 128
BUSY = "see what keeps this machine busy, or allow a longer timeout"
SAID = "stopped and said: "  # of a peer that passes on what ended its session
A_DAY = 86400.0  # between queries nobody owes anybody a word, and the launcher watches over the processes
# The one client is whoever started them.
ONE_CLIENT = {"idle": A_DAY, "query_seconds": A_DAY, "memory_gb": 1e6, "grace": 0.0, "log_format": "json"}


class LaunchError(BlindformerError):
    """A party on this machine did not start, died or stalled. `party` names it, `line` is what happened to it."""

    def __init__(self, party: str, line: str, remedy: str = "") -> None:
        self.party, self.line = party, line
        super().__init__(f"{party}: {line}" + (f"; {remedy}" if remedy else ""))


class PartyProcess:
    """One party's process, and the thread that listens to it. `on_line` is called with each line, and with None at the
    end."""

    def __init__(
        self, words: Sequence[str], sockets: Sequence[int], scratch: Path, on_line: Callable[[Line | None], None]
    ) -> None:
        self.last_line, self.ended = "", False
        (stdin, ours), (theirs, stderr) = os.pipe(), os.pipe()
        self._stdin, self._stderr = os.fdopen(ours, "w"), os.fdopen(theirs, errors="replace")
        env = {**environment(), "TMPDIR": str(scratch), "BLINDFORMER_PROGRESS": "off"}
        try:
            # In a session of its own: Ctrl-C reaches the caller alone, which then ends the others in order.
            self.process = shared().fork(words, {0: stdin, 2: stderr, **{number: number for number in sockets}}, env)
        except OSError as error:
            raise LaunchError(words[0], f"could not be started ({error})", "run again") from None
        finally:
            os.close(stdin)
            os.close(stderr)
        self._reader = threading.Thread(target=self._read, args=(on_line,), daemon=True, name=f"log of {words[0]}")
        self._reader.start()

    def send(self, text: str) -> None:
        with contextlib.suppress(OSError):  # its death is reported by the reader
            self._stdin.write(text + "\n")
            self._stdin.flush()

    def let_go(self) -> None:
        """Tell it to end."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def end(self, seconds: float) -> None:
        """Gone when this returns; `seconds`: to end by itself."""
        try:
            self.process.code(seconds)
        finally:  # at once, for who does not want to wait so long
            if self.process.code(0.0) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid, signal.SIGKILL)
        self.process.code()
        self._reader.join(STOP_SECONDS)

    def _read(self, on_line: Callable[[Line | None], None]) -> None:
        with self._stderr as stream:
            for text in stream:
                try:
                    line = json.loads(text)
                except ValueError:
                    self.last_line = text.strip() or self.last_line
                else:
                    if isinstance(line, dict):
                        on_line(line)
        self.process.code()
        self.ended = True
        on_line(None)


class PartyProcesses:
    """Processes by role. `addresses`: where each listens. Errors of all methods: LaunchError."""

    less = "a shorter length"  # what takes less memory

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="blindformer-"))  # mode 0700
        self.addresses: dict[str, Address] = {}
        self._running: dict[str, PartyProcess] = {}
        self._said: dict[tuple[str, str], Line] = {}  # the last line by role and event
        self._news = threading.Condition()

    @property
    def processes(self) -> dict[str, int]:
        """Pids by role."""
        return {role: running.process.pid for role, running in self._running.items()}

    @property
    def alive(self) -> bool:
        """Whether none has ended."""
        return all(running.process.code(0.0) is None for running in self._running.values())

    def close(self, seconds: float = STOP_SECONDS) -> None:
        """End the processes and remove the scratch folder, in which there are keys. `seconds`: to end by themselves.
        Safe to call twice."""
        deadline = time.monotonic() + seconds
        with contextlib.ExitStack() as ends:  # all of them, where Ctrl-C comes in the midst, too
            ends.callback(shutil.rmtree, self.scratch, ignore_errors=True)
            for running in self._running.values():
                ends.callback(lambda one: one.end(max(0.0, deadline - time.monotonic())), running)
            for running in self._running.values():
                running.let_go()

    def cause(self, party: str, what: str) -> LaunchError:
        """What is behind an error that names `party`: one that was killed, or the end of the chain "a: b is gone"."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while not (killed := self._killed()) and time.monotonic() < deadline:
            time.sleep(0.02)
        for role, name in killed.items():
            return LaunchError(role, f"was killed by {name}", f"run again; if memory is short, use {self.less}")
        seen: set[str] = set()
        while party not in seen:
            seen.add(party)
            own = self._running.get(party)
            if own is not None and own.ended:
                what = own.last_line.removeprefix("blindformer: ") or "ended without a word"
            while what.startswith(SAID):
                what = what.removeprefix(SAID)
            named, _, rest = what.partition(": ")
            if named in self._running and named not in seen:
                party, what = named, rest
        return LaunchError(party, what)

    def _listen(self, role: str) -> socket.socket:
        """A socket for a party to inherit: it can be dialled from now on, so that all can start at the same time."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.addresses[role] = Address(*listener.getsockname())
        return listener

    def _start(self, role: str, words: Sequence[str], sockets: Sequence[int] = ()) -> None:
        """Run a command of the command line. `sockets`: descriptors that it inherits."""
        self._running[role] = PartyProcess(words, sockets, self.scratch, lambda line: self._hear(role, line))

    def _serve(self, role: str, words: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> None:
        """Start a service, with a file of these settings."""
        file = self.scratch / f"{role}.toml"
        with self._listen(role) as listener:
            file.write_text(as_toml(settings), encoding="utf-8")
            self._start(
                role, [*words, "--config", str(file), "--listen", f"fd:{listener.fileno()}"], [listener.fileno()]
            )

    def _hear(self, role: str, line: Line | None) -> None:
        with self._news:
            if line is not None:
                self._said[role, str(line.get("event"))] = line
            self._news.notify_all()

    def _take(self, role: str, events: Sequence[str], seconds: float) -> Line:
        """The next line of `role` with one of these events. The parties time each other out; `seconds` of silence is
        for the one that nobody waits for."""

        def found() -> str | None:
            return next((event for event in events if (role, event) in self._said), None)

        with self._news:
            known = self._news.wait_for(lambda: found() or any(p.ended for p in self._running.values()), seconds)
            event = found()
            if event is not None:
                return self._said.pop((role, event))
        if not known:
            raise LaunchError(role, f"gave no sign of life for {seconds:g} seconds", BUSY)
        raise self.cause(next(name for name, running in self._running.items() if running.ended), "")

    def _killed(self) -> dict[str, str]:
        """The signal that has ended it, by role. Of a service, it may have ended the session's process alone."""
        sessions = {role: line["kind"] for (role, event), line in self._said.items() if event == "child-killed"}
        codes = {role: running.process.code(0.0) or 0 for role, running in self._running.items()}
        return sessions | {role: signal.Signals(-code).name for role, code in codes.items() if code < 0}


def _part(folder: Path, role: str) -> str:
    """A role's part of a compiled folder, which lies in it or beside it."""
    near = [place / role for place in (folder, folder.parent) if (place / role).is_dir()]
    return str(next(iter(near), folder))


class LocalServices(PartyProcesses):
    """Running from construction until `close`.

    folder         the compiled one
    certificates   a folder with all roles' certificates and keys
    """

    def __init__(
        self,
        folder: Path | Callable[[Path], Path],
        timeout: float,
        protocol: str = "beaver",
        server: Mapping[str, Any] | None = None,
        *,
        options: LocalOptions | None = None,
        cores: Sequence[int] = (),
        audits: float = 0.0,
        device: str = "cpu",
        topology: str = "dealer",
    ) -> None:
        """`folder`: a compiled one, with the server's part in it or beside it; or what writes one into a given folder.

        `server`: more of its settings, [server]. `cores`: that the server may use, for measurements. `audits`,
        `topology`: as of [session]. `device`: where the parties compute.

        Errors: LaunchError; nothing is left running.
        """
        super().__init__()
        self.certificates = self.scratch / "certificates"
        try:
            make_certificates(self.certificates, days=30)
            folder = self.folder = folder if isinstance(folder, Path) else folder(self.scratch / "compiled")
            options = replace(options or LocalOptions(), scratch=str(self.scratch), lifeline=True)
            settings: dict[str, dict[str, Any]] = {
                "session": {"protocol": protocol, "timeout": float(timeout)},
                "certificates": {"folder": self.certificates},
            }
            spec, mine = find_served(protocol), {**ONE_CLIENT, "device": device}
            if topology != "dealer":
                settings["session"]["topology"] = topology
            for role in spec.helpers if topology == "dealer" else ():
                part = [_part(folder, role)] if role in spec.holds else []
                self._serve(role, [role, *part, *options.words()], settings | {role: mine})
                settings[f"parties.{role}"] = {"address": str(self.addresses[role])}
            if audits:
                settings["session"]["audits"], mine["state"] = audits, self.scratch / "state"
            words = ["serve", _part(folder, "server"), *options.words()]
            self._serve("server", words, settings | {"server": mine | dict(server or {})})
            if cores and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(self.processes["server"], cores)
            for role in self.processes:
                self._take(role, ("ready",), START_SECONDS)
        except BaseException:
            self.close()
            raise

    def cause(self, party: str, what: str) -> LaunchError:
        """Of a bug a peer is told that there is one; the log says where."""
        failed = self._said.get((party, "session-failed"), {}).get("what", "")
        return super().cause(party, failed if failed.startswith("internal error") else what)


def as_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """A file of settings. Strings, numbers and lists are the same in TOML and JSON."""
    lines = (
        [f"[{name}]", *(f"{key} = {json.dumps(value, default=str)}" for key, value in section.items())]
        for name, section in sections.items()
    )
    return "\n".join(line for section in lines for line in section) + "\n"
