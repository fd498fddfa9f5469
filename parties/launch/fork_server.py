"""Commands as processes forked from one that has imported what they need: torch takes seconds of a core to import.

A fork server is a process of this machine with one thread. It ends when whoever started it closes the socket between
them, or ends; what it forked goes on until its own lifeline ends. `shared` gives one to all who hold it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ...protocols.forks import fork
from ..gateway import KEY_VARIABLE

_READ_AT_IMPORT = ("ATEN_", "BLINDFORMER_", "LD_", "MKL_", "OMP_", "ONEDNN_", "PYTHON")  # variables, as they begin
_READ_LATER = "PYTHONBREAKPOINT"  # Ray sets it in the process that uses it
_FIRST = 3  # descriptor after stderr
_IDLE = 1.0  # seconds without a command, after which it imports what only some of them need
_NUMBER = 8  # bytes of a pid or an exit code
_COMMAND = "cli", "process"  # by name: commands start fork servers, so an import of theirs would close a circle
_SHARED: weakref.WeakValueDictionary[tuple[Any, ...], ForkServer] = weakref.WeakValueDictionary()
_STARTING = threading.Lock()


class ForkServer:
    """The calling process's end. Errors of `fork`: OSError, if the fork server is gone."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment(),
                start_new_session=True,
            )
        self._asking = threading.Lock()
        weakref.finalize(self, _end, self._socket, self._process)

    @property
    def gone(self) -> bool:
        return self._process.poll() is not None

    def fork(
        self, words: Sequence[str], files: Mapping[int, int], env: Mapping[str, str], cwd: str | Path | None = None
    ) -> ForkedProcess:
        """A process that runs a command of the command line, in a session of its own. `files`: a descriptor of this
        process by the number that it has there; without them stdin and stdout are /dev/null, and stderr is the fork
        server's."""
        asked = {"words": list(words), "files": list(files), "env": dict(env), "cwd": str(cwd or Path.cwd())}
        status = self._ask(asked, files.values())
        try:
            return ForkedProcess(self, status)
        except OSError:
            status.close()
            raise

    def load(self, module: str) -> None:
        """Import a module of this package for all that is forked from now on, once for all of them."""
        self._ask({"load": module}).close()

    def _ask(self, asked: Mapping[str, Any], files: Iterable[int] = ()) -> socket.socket:
        """Where the fork server answers."""
        data = json.dumps(asked).encode() + b"\n"
        status, theirs = socket.socketpair()
        try:
            with theirs, self._asking:
                sent = socket.send_fds(self._socket, [data], [theirs.fileno(), *files])
                self._socket.sendall(data[sent:])
        except OSError:
            status.close()
            raise
        return status


class ForkedProcess:
    """A command's process, which keeps its fork server until it has ended. `status`: there the fork server says its
    pid, and then how it ended. Errors: ConnectionError, if the fork server is gone."""

    def __init__(self, server: ForkServer, status: socket.socket) -> None:
        self._server: ForkServer | None = server
        self._status, self.pid = status, _number(status.recv(_NUMBER))
        if not self.pid:
            raise ConnectionError("the fork server has ended")
        weakref.finalize(self, status.close).atexit = False  # threads may listen to it to the end

    def code(self, seconds: float | None = None) -> int | None:
        """How it ended, as subprocess.Popen says it; None if it has not, after so many seconds. If the fork server has
        ended before, nobody knows, and it is 0."""
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        if not poll.poll(None if seconds is None else 1000 * seconds):
            return None
        self._server = None  # one that nobody holds ends
        return _number(self._status.recv(_NUMBER, socket.MSG_PEEK))


def environment() -> dict[str, str]:
    """This process's, for parties that it starts: they need no key of a gateway that it may be."""
    return {name: value for name, value in os.environ.items() if name != KEY_VARIABLE}


def shared() -> ForkServer:
    """The one that others hold already, where it read the same environment; else a new one."""
    inherited = {name: value for name, value in environment().items() if name.startswith(_READ_AT_IMPORT)}
    inherited.pop(_READ_LATER, None)
    with _STARTING:
        server = _SHARED.get(key := (os.getpid(), *sorted(inherited.items())))
        if server is None or server.gone:
            server = _SHARED[key] = ForkServer()
        return server


def _end(ours: socket.socket, process: subprocess.Popen[bytes]) -> None:
    ours.close()
    process.terminate()  # it may be importing still
    process.wait()


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


# --- the fork server's own process -----------------------------------------------------------------------------------


def serve(ours: socket.socket) -> None:
    """Fork what is asked for and say how it ends, until the other end is closed."""
    for name in ("cli.app", "service.two_party", "service.dealer"):
        import_module(f"..{name}", __package__)
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}  # descriptors by pid
    gc.freeze()  # pages that nobody writes stay shared
    idle: float | None = _IDLE
    while True:
        ready, _, _ = select.select([ours, woken], [], [], idle)
        if not ready:
            import_module("..service.dealer", __package__).load_ahead()
            gc.freeze()
            idle = None
        if woken in ready:
            woken.recv(4096)
            _reap(statuses)
        if ours in ready:
            if (received := _receive(ours)) is None:
                return
            asked, (status, *descriptors) = received
            if "load" in asked:
                _load(asked["load"])
                os.close(status)
                continue
            if (pid := fork()) == 0:
                _become(asked, descriptors)
            statuses[pid] = status
            _say(status, pid)
            for descriptor in descriptors:
                os.close(descriptor)


def _load(module: str) -> None:
    with contextlib.suppress(Exception):  # whoever needs it will say so
        import_module(module)
    gc.freeze()


def _reap(statuses: dict[int, int]) -> None:
    for pid, status in list(statuses.items()):
        ended, how = os.waitpid(pid, os.WNOHANG)
        if ended:
            del statuses[pid]
            _say(status, os.waitstatus_to_exitcode(how))
            os.close(status)


def _say(status: int, number: int) -> None:
    """Whoever asked may be gone meanwhile, and then nothing is left to do."""
    with contextlib.suppress(ConnectionError):
        os.write(status, number.to_bytes(_NUMBER, "little", signed=True))


def _receive(ours: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    data, descriptors = b"", list[int]()
    while not data.endswith(b"\n"):
        piece, files, _, _ = socket.recv_fds(ours, 1 << 16, 64)
        if not piece:
            return None
        data += piece
        descriptors += files
    return json.loads(data), descriptors


def _become(asked: Mapping[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """The command, as if a shell of its own had started it."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    free = 1 + max(*map(int, os.listdir("/dev/fd")), *asked["files"])
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, free) for descriptor in descriptors]
    os.closerange(_FIRST, free)
    for descriptor, number in zip(high, asked["files"], strict=True):
        os.dup2(descriptor, number, inheritable=number < _FIRST)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None  # TMPDIR may be another one
    os.chdir(asked["cwd"])
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:  # for ps and top
        name.write(asked["words"][0])
    sys.argv = ["blindformer", *asked["words"]]
    module, function = _COMMAND
    getattr(import_module(f"..{module}", __package__), function)()
    raise AssertionError("a command's process has gone on")


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # at once: what it imported has much to tidy up
