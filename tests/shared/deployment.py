"""Services as real processes for tests: started, waited for by what they log, stopped, and never left behind.

with Deployment(tmp_path, compiled) as site:            # dealer and server, ready
    site.server.wait_for("session-opened", peer="client")
    site.server.kill()
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import selectors
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import psutil
from blindformer.models.delegated import is_delegated
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.client.client import Client
from blindformer.parties.launch.processes import as_toml
from blindformer.tests.forked import Forked
from blindformer.tests.patience import PATIENCE

FEW_FILES = 256  # that a process may open
CROWD = 400
Address = tuple[str, int]


def served_beside(crowds: Iterable[contextlib.AbstractContextManager[Any]], ask: Callable[[], Any]) -> bool:
    """Whether a good client is served beside crowds without waiting for their end, which takes 20 seconds."""
    started = time.monotonic()
    ask()
    alone = time.monotonic() - started
    with contextlib.ExitStack() as stack:
        for one in crowds:
            stack.enter_context(one)
        started = time.monotonic()
        ask()
        return time.monotonic() - started < max(10.0, 10 * alone)


def eventually(condition: Callable[[], Any], what: str, patience: float = PATIENCE, pause: float = 0.01) -> Any:
    """Wait until `condition()` is true, and return it. `pause`: seconds between two looks."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"not in {patience:g} seconds: {what}"
        time.sleep(pause)
    return value


def runs(process: psutil.Process) -> bool:
    """Not ended, and not a zombie either."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Running:
    """A service as a process: `words` are of the command line, or a command of their own (`program`); its log (JSON
    lines) comes on stderr."""

    def __init__(
        self,
        words: list[str],
        cwd: Path | None = None,
        lifeline: bool = False,
        files: int | None = None,
        program: bool = False,
    ) -> None:
        """`lifeline`: it has one, `lifeline`, on its stdin. `files`: so many may each process open."""
        self.words = words
        self.log: list[dict[str, Any]] = []
        self.noise: list[str] = []  # lines of stderr that are no log: there should be none
        self._read = 0  # lines of the log that `wait_for` has passed
        self._news = threading.Condition()
        self._ended = False
        (stdin, ours), (theirs, stderr) = os.pipe(), os.pipe()
        self.lifeline, self._stderr = os.fdopen(ours, "w"), os.fdopen(theirs)
        if not lifeline:
            self.lifeline.close()
        if program:
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                words, stdin=stdin, stdout=subprocess.DEVNULL, stderr=stderr, cwd=cwd, env=env
            )
        else:
            self.process = Forked(words, {0: stdin, 2: stderr}, cwd)
        os.close(stdin)
        os.close(stderr)
        if files:  # before it serves
            psutil.Process(self.process.pid).rlimit(resource.RLIMIT_NOFILE, (files, files))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._descendants: dict[int, psutil.Process] = {}

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ready(self) -> dict[str, Any]:
        """The line it logged when it began to serve."""
        return next(line for line in self.log if line["event"] == "ready")

    @property
    def address(self) -> Address:
        host, port = self.ready["address"].rsplit(":", 1)
        return host, int(port)

    def get(self, path: str) -> tuple[int, str]:
        """What its metrics process answers; status 0 while it does not."""
        try:
            with urllib.request.urlopen(f"http://{self.ready['metrics']}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_for_metrics(self, *patterns: str) -> None:
        """Wait until each matches a line of /metrics."""

        def missing() -> list[str]:
            text = self.get("/metrics")[1]
            return [pattern for pattern in patterns if not re.search(f"^{pattern}$", text, re.MULTILINE)]

        eventually(lambda: not missing(), f"metrics: {patterns}")

    def wait_for(self, event: str, patience: float = PATIENCE, **fields: Any) -> dict[str, Any]:
        """The next line of the log with this event and these fields, after those already waited for."""
        end = time.monotonic() + patience
        with self._news:
            while True:
                for number in range(self._read, len(self.log)):
                    line = self.log[number]
                    if line["event"] == event and all(line.get(name) == value for name, value in fields.items()):
                        self._read = number + 1
                        return line
                left = end - time.monotonic()
                wanted = {"event": event, **fields}
                if left <= 0 or self._ended:
                    raise AssertionError(f"never logged {wanted}\n{self.tail()}")
                self._news.wait(left)

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in list(self.log)
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def tail(self) -> str:
        code = self.process.poll()
        state = "runs" if code is None else f"ended with {code}"
        return "\n".join([f"{' '.join(self.words)} {state}", *map(json.dumps, self.log[-15:]), *self.noise[-15:]])

    def children(self) -> list[psutil.Process]:
        """Its processes, the one for metrics among them."""
        try:
            processes = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            processes = []
        for process in processes:
            self._descendants.setdefault(process.pid, process)
        return [process for process in processes if runs(process)]

    def memory(self, kind: str = "pss") -> float:
        """What all its processes hold, MB: each its private pages, and its part of those it shares with others (`uss`:
        without those)."""
        total = 0
        for process in [psutil.Process(self.pid), *self.children()]:
            try:
                total += getattr(process.memory_full_info(), kind)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue  # it has just ended
        return total / 1e6

    def send(self, number: int) -> None:
        self.children()
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """Its exit code. No descendant may outlive it for long."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {patience:g} seconds\n{self.tail()}") from None
        eventually(lambda: not self.orphans(), f"{self.orphans()} outlive {self.words}")
        self._thread.join(PATIENCE)
        self._stderr.close()
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask it to stop. Its exit code."""
        self.send(number)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL to the supervisor alone."""
        self.send(signal.SIGKILL)
        self.wait()

    def orphans(self) -> list[psutil.Process]:
        return [process for process in self._descendants.values() if runs(process)]

    def end(self) -> None:
        """For the end of a test, whatever happened."""
        if self.process.poll() is None:
            self.children()
            self.process.kill()
        self.process.wait()
        for process in self.orphans():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._thread.join(PATIENCE)

    def _listen(self) -> None:
        for text in self._stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = None
            with self._news:
                if isinstance(line, dict):
                    self.log.append(line)
                else:
                    self.noise.append(text.rstrip())
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextlib.contextmanager
def crowd(address: Address, count: int, words: bytes = b"", host: str = "127.0.0.1") -> Iterator[list[socket.socket]]:
    """So many connections from `host` at once, each of which says `words` and no more, while the context lasts."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # this process needs a file for each of them
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind((host, 0))
            sock.setblocking(False)
            sock.connect_ex(address)  # nobody waits: the service may have no room for all
            if words:  # before the next connects: whoever is silent then may have to make room
                with contextlib.suppress(OSError):
                    sock.settimeout(1.0)
                    sock.sendall(words)
        yield sockets


@contextlib.contextmanager
def siege(address: Address, hosts: Sequence[str], words: bytes) -> Iterator[None]:
    """One connection of each host, which says `words` and no more; whoever is hung up on comes again at once."""
    ended = threading.Event()

    def keep_coming() -> None:
        with selectors.DefaultSelector() as selector:

            def come(host: str) -> None:
                sock = socket.socket()
                sock.bind((host, 0))
                sock.setblocking(False)
                sock.connect_ex(address)
                selector.register(sock, selectors.EVENT_WRITE, host)

            for host in hosts:
                come(host)
            while not ended.is_set():
                for key, events in selector.select(0.1):
                    sock = cast(socket.socket, key.fileobj)
                    try:
                        if events & selectors.EVENT_WRITE:
                            sock.send(words)
                            selector.modify(sock, selectors.EVENT_READ, key.data)
                        elif not sock.recv(1 << 16):
                            raise ConnectionResetError
                    except OSError:
                        selector.unregister(sock)
                        sock.close()
                        come(key.data)
            for key in list(selector.get_map().values()):
                cast(socket.socket, key.fileobj).close()

    thread = threading.Thread(target=keep_coming)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "blindformer", *words]


def start_service(*words: str, folder: Path, settings: dict[str, dict[str, Any]], apart: bool = False) -> Running:
    """A service that is ready. `settings`: of its file, by section; `apart`: it shares no memory with others."""
    (descriptor, file) = tempfile.mkstemp(suffix=".toml", dir=folder)
    with open(descriptor, "w", encoding="utf-8") as out:
        out.write(as_toml(settings))
    given = [*words, "--config", file]
    running = Running(command(*given) if apart else given, folder, files=FEW_FILES, program=apart)
    try:
        running.wait_for("ready")
    except BaseException:
        running.end()
        raise
    return running


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


class Deployment:
    """A dealer and a server of the compiled folder, each a process of its own, on free ports of this machine.

    `server`, `dealer`: more settings of theirs, {"sessions": 2}.
    """

    roles = ("dealer", "server")
    topology, dialled = "dealer", ("server", "dealer")  # by a client

    def __init__(
        self,
        folder: Path,
        compiled: Path,
        server: dict[str, Any] | None = None,
        dealer: dict[str, Any] | None = None,
        timeout: float = 20,
        apart: bool = False,
    ) -> None:
        self.folder, self.compiled, self.timeout, self.apart = folder, compiled, timeout, apart
        self.certificates = folder / "certificates"
        if not self.certificates.exists():
            make_certificates(self.certificates, keep_ca_key=True)
        self._settings = {"server": server or {}, "dealer": dealer or {}, "helper": {"cache": folder / "masked"}}
        self._services: dict[str, Running] = {}

    @property
    def server(self) -> Running:
        return self._services["server"]

    @property
    def dealer(self) -> Running:
        return self._services["dealer"]

    @property
    def helper(self) -> Running:
        return self._services["helper"]

    @property
    def client_folder(self) -> Path:
        return self.compiled / "client"

    def addresses(self, *roles: str) -> dict[str, str]:
        """Of these, or of all that a client dials."""
        return {role: self._services[role].ready["address"] for role in roles or self.dialled}

    def words(self) -> list[str]:
        """Options of a client's command."""
        options = {**self.addresses(), "certs": str(self.certificates)}
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def client(self, **options: Any) -> Client:
        where = {"topology": self.topology, **self.addresses(), "certificates": self.certificates}
        return Client(**{**where, "folder": self.client_folder, "timeout": self.timeout, **options})

    def write_config(self, file: Path, client: str = "", **addresses: str) -> Path:
        """A client's. `client`: more of its section; `addresses`: instead of theirs."""
        parties = {**self.addresses(), **addresses}.items()
        text = "".join(f'[parties.{role}]\naddress = "{address}"\n' for role, address in parties)
        text += f'[certificates]\nfolder = "{self.certificates}"\n[client]\nfolder = "{self.client_folder}"\n'
        file.write_text(text + client)
        return file

    def start(self, role: str, audits: float = 0.0, **more: Any) -> Running:
        """Start a service and wait until it is ready: again, at the port it had before.

        With `more` settings, as sessions=2, it is another one at a port of its own, which the caller ends.
        """
        before = None if more else self._services.get(role)
        words = {
            "server": ("serve", str(self.compiled / "server")),
            "helper": ("helper", str(self.compiled / "helper")),
            **({"dealer": ("dealer", str(self.compiled / "dealer"))} if is_delegated(self.compiled) else {}),
        }
        own = {
            "listen": f"127.0.0.1:{before.address[1] if before else 0}",
            "log_format": "json",
            **self._settings[role],
            **more,
        }
        settings = {
            "session": {"topology": self.topology, "timeout": float(self.timeout), "audits": audits},
            "certificates": {"folder": self.certificates},
            **{f"parties.{name}": {"address": one.ready["address"]} for name, one in self._services.items()},
            role: own,
        }
        running = start_service(*words.get(role, [role]), folder=self.folder, settings=settings, apart=self.apart)
        if not more:
            self._services[role] = running
        return running

    def restore(self) -> None:
        """Start again what a test has ended."""
        for role in self.roles:
            if role not in self._services or self._services[role].process.poll() is not None:
                self.start(role)

    def __enter__(self) -> Deployment:
        try:
            self.restore()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for running in self._services.values():
            running.end()


class WithoutDealer(Deployment):
    """A server alone, whose clients make correlations with it."""

    roles = ("server",)
    topology, dialled = "pair", ("server",)
