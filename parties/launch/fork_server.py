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
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from ...protocols.seeds import reseed
from ..gateway import KEY_VARIABLE

_READ_AT_IMPORT = ("ATEN_", "BLINDFORMER_", "LD_", "MKL_", "OMP_", "ONEDNN_", "PYTHON")  # variables, as they begin
_READ_LATER = "PYTHONBREAKPOINT"  # Ray sets it in the process that uses it
_FIRST = 3  # descriptor after stderr
_COMMAND = "cli", "main"  # by name: commands start fork servers, so an import of theirs would close a circle
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
        self._asking, self._news = threading.Lock(), threading.Condition()
        self._pid, self.gone, self._codes = 0, False, dict[int, int]()
        thread = threading.Thread(target=_listen, args=(weakref.ref(self), self._socket), daemon=True)
        thread.start()
        weakref.finalize(self, _end, self._socket, self._process, thread)

    def fork(
        self, words: Sequence[str], files: Mapping[int, int], env: Mapping[str, str], cwd: str | Path | None = None
    ) -> int:
        """The pid of a process that runs a command of the command line, in a session of its own. `files`: a descriptor
        of this process by the number that it has there; without them stdin and stdout are /dev/null, and stderr is the
        fork server's."""
        asked = {"words": list(words), "files": list(files), "env": dict(env), "cwd": str(cwd or Path.cwd())}
        with self._asking, self._news:
            self._pid = 0
            _send(self._socket, asked, list(files.values()))
            self._news.wait_for(lambda: self._pid or self.gone)
            if self.gone:
                raise ConnectionError("the fork server has ended")
            return self._pid

    def code(self, pid: int, seconds: float | None = None) -> int | None:
        """How a process ended, as subprocess.Popen says it; None if it has not, after so many seconds."""
        with self._news:
            self._news.wait_for(lambda: pid in self._codes or self.gone, seconds)
            return self._codes.get(pid, 0 if self.gone else None)

    def heard(self, line: dict[str, int] | None) -> None:
        """What the other end says; None when it has ended: then nobody knows how the processes will."""
        with self._news:
            if line is None:
                self.gone = True
            elif "code" in line:
                self._codes[line["pid"]] = line["code"]
            else:
                self._pid = line["pid"]
                self._codes.pop(self._pid, None)  # of an earlier process
            self._news.notify_all()


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


def _listen(server: weakref.ref[ForkServer], ours: socket.socket) -> None:
    """Until the other end ends. Holds the server weakly: it ends when nobody else holds it."""
    with contextlib.suppress(OSError), ours.makefile("r") as lines:
        for text in lines:
            if (live := server()) is not None:
                live.heard(json.loads(text))
            del live
    if (live := server()) is not None:
        live.heard(None)


def _end(ours: socket.socket, process: subprocess.Popen[bytes], thread: threading.Thread) -> None:
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)
    process.terminate()  # it may be importing still
    process.wait()
    if thread is not threading.current_thread():
        thread.join()
    ours.close()


def _send(to: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    data = json.dumps(message).encode() + b"\n"
    sent = socket.send_fds(to, [data], list(descriptors))
    to.sendall(data[sent:])


# --- the fork server's own process -----------------------------------------------------------------------------------


def serve(ours: socket.socket) -> None:
    """Fork what is asked for and say how it ends, until the other end is closed."""
    for name in ("cli.app", "service.dealer", "service.server"):
        import_module(f"..{name}", __package__)
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    gc.freeze()  # pages that nobody writes stay shared
    while True:
        ready, _, _ = select.select([ours, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _reap(ours)
        if ours in ready:
            asked, descriptors = _receive(ours)
            if asked is None:
                return
            pid = os.fork()
            if pid == 0:
                _become(asked, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            _say(ours, {"pid": pid})


def _reap(ours: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            _say(ours, {"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(ours: socket.socket, message: Mapping[str, int]) -> None:
    """Whoever asked may be gone meanwhile, and then nothing is left to do."""
    with contextlib.suppress(ConnectionError):
        _send(ours, message, [])


def _receive(ours: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    data, descriptors = b"", list[int]()
    while not data.endswith(b"\n"):
        piece, files, _, _ = socket.recv_fds(ours, 1 << 16, 64)
        if not piece:
            return None, []
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
    reseed()
    os.environ.clear()
    os.environ.update(asked["env"])
    tempfile.tempdir = None  # TMPDIR may be another one
    os.chdir(asked["cwd"])
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as name:  # for ps and top
        name.write(asked["words"][0])
    sys.argv = ["blindformer", *asked["words"]]
    module, function = _COMMAND
    getattr(import_module(f"..{module}", __package__), function)()
    raise SystemExit


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    os._exit(0)  # at once: what it imported has much to tidy up
