"""Flower's deployment engine on one machine: a SuperLink and one SuperNode a client, each a process of its own.

They talk over TLS; the SuperLink takes registered nodes only, each known by its own key (P-384). No process is started
again here: rounds go on without a node that has ended, and the end of the SuperLink ends the command, which resumes
from the last round. Across machines Compose or systemd restart them (deploy/federated.yaml, docs/federated.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ..approximations import Plan
from ..models.distillation.checkpoints import check_new
from ..parties.certificates.issuing import make_certificates
from .examples import PARTITION, dataset_of
from .federate import REPORT, WORK, Federated
from .rounds import Progress, Round
from .settings import OUT, FederateError, FederateSettings
from .subject import settle
from .terms import check_needed

Nodes = Mapping[int, Mapping[str, Any]]

LINK, NAME = "superlink", "here"
MARK = "BLINDFORMER_DEPLOYMENT"  # in the environment of a process, and of all that it starts: whose they are
START_SECONDS = 600.0
POLL = 0.5
QUIET = 30.0  # seconds without a round, before the SuperLink is asked whether the run is alive
MOST_NOTED = 4000  # characters of a log

APP = """[project]
name = "federation"
version = "0.1.0"
dependencies = []

[tool.flwr.app]
publisher = "blindformer"

[tool.flwr.app.components]
serverapp = "blindformer.federated.server:app"
clientapp = "blindformer.federated.client:app"

[tool.flwr.app.config]
"""


def deploy(
    out: str | Path, *, nodes: Nodes | None = None, progress: Progress | None = None, **settings: Any
) -> Federated:
    """Train as `federate` does, in processes of Flower's deployment engine. Errors: FederateError."""
    out, chosen = Path(out).absolute(), FederateSettings(**settings)
    check_needed(nodes or {}, chosen)
    check_new(out, out / WORK)
    chosen = settle(chosen, dataset_of(chosen))
    with (
        tempfile.TemporaryDirectory(prefix="blindformer-federate-") as folder,
        Deployment(chosen, Path(folder), nodes) as run,
    ):
        run.start()
        run.submit(out)
        run.wait(out, progress)
    report = json.loads((out / REPORT).read_text())
    return Federated(out, Plan.load(out), [Round(**row) for row in report["rounds"]], report)


class Deployment:
    """The processes, by name: `superlink`, `node 0` and so on. Leaving it ends them all.

    nodes  configurations by number from 1, as for `federate`
    """

    def __init__(self, settings: FederateSettings, folder: Path, nodes: Nodes | None = None) -> None:
        self.settings, self.folder, self.nodes = settings, folder, nodes or {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports = _free_ports(settings.clients + 1)

    def start(self) -> None:
        """SuperLink, keys, registrations, SuperNodes. Errors: FederateError."""
        self._start_link()
        for number in range(self.settings.clients):
            self.start_node(number, registered=True)

    def _start_link(self) -> None:
        certs = self.folder / "certs"
        make_certificates(certs, roles=[LINK])
        (self.folder / "home").mkdir()
        (self.folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "{NAME}"\n\n[superlink.{NAME}]\naddress = "127.0.0.1:{self.ports[0]}"\n'
            f'root-certificates = "{certs / "ca.pem"}"\n'
        )
        self._start(LINK, [
            "flower-superlink", "--ssl-certfile", f"{certs / LINK}.pem", "--ssl-keyfile", f"{certs / LINK}.key",
            "--ssl-ca-certfile", f"{certs / 'ca.pem'}", "--enable-supernode-auth",
            "--database", str(self.folder / "state.db"), "--host", "127.0.0.1", "--port", str(self.ports[0]),
            "--disable-runtime-dependency-installation",
        ])  # fmt: skip
        self._await_link()

    def start_node(self, number: int, registered: bool) -> None:
        """A SuperNode for a part of the data, with a new key that the SuperLink is told of, or is not."""
        config = self.nodes.get(number + 1, {PARTITION: number})
        own = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        key = self.folder / f"node-{number}.key"
        public = new_node_key(key)
        if registered:
            self._flwr("supernode", "register", str(public), NAME)
        self._start(f"node {number}", [
            "flower-supernode", "--root-certificates", str(self.folder / "certs" / "ca.pem"),
            "--superlink", f"127.0.0.1:{self.ports[0]}", "--auth-supernode-private-key", str(key),
            "--node-config", own, "--port", str(_free_ports(1)[0]),
        ])  # fmt: skip

    def submit(self, out: Path, *options: str) -> None:
        """The app is a file that names this package: nodes run what they have installed, and compare versions."""
        from .server import FAILURE

        with contextlib.suppress(OSError):  # of a run before; else its error would be taken for this one's
            (out / WORK / FAILURE).unlink(missing_ok=True)
        app = self.folder / "app"
        app.mkdir(exist_ok=True)
        config = {**self.settings.to_config(), OUT: str(out)}
        (app / "pyproject.toml").write_text(APP + "".join(f"{k} = {json.dumps(v)}\n" for k, v in config.items()))
        self._flwr("run", str(app), NAME, *options)

    def wait(self, out: Path, progress: Progress | None) -> None:
        """Until the result is there. Errors: FederateError with the run's own words, or what has ended it."""
        from .server import FAILURE, PROGRESS

        seen, heard = 0, time.monotonic()
        while not (out / REPORT).exists() or (out / WORK).exists():
            time.sleep(POLL)
            self._check_processes()
            if time.monotonic() - heard > QUIET:
                self._ask(out)
                heard = time.monotonic()
            with contextlib.suppress(OSError):
                rows = (out / WORK / PROGRESS).read_text().split("\n")[:-1]  # the last may be half written
                for row in rows[seen:]:
                    heard = time.monotonic()
                    if progress:
                        progress(Round(**json.loads(row)), self.settings.rounds)
                seen = len(rows)
            with contextlib.suppress(OSError, ValueError):
                error = FederateError(json.loads((out / WORK / FAILURE).read_text())["error"])
                error.add_note(self.log(LINK)[-MOST_NOTED:])  # a traceback shows it; a line for people does not
                raise error

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def __enter__(self) -> Deployment:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGTERM)
        until = time.monotonic() + 5
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
        self._kill_marked()

    # --- processes ---------------------------------------------------------------------------------------------------
    def _start(self, name: str, command: list[str]) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [_program(command[0]), *command[1:]],
                env={**self._environment(), MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for this process, which then ends them in order
            )

    def _kill_marked(self) -> None:
        """Kill these processes and what they have started, which Flower gives sessions of their own."""
        killed = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # of somebody else, or gone
                if process.environ().get(MARK) == str(self.folder):
                    process.kill()
                    killed.append(process)
        psutil.wait_procs(killed, timeout=10)

    def _check_processes(self) -> None:
        """Errors: FederateError without the SuperLink, or without any node. A round says which nodes it lost."""
        ended = [name for name, process in self.processes.items() if process.poll() is not None]
        if LINK in ended or (len(ended) == len(self.processes) - 1 > 0):
            what = "the SuperLink has ended" if LINK in ended else "all SuperNodes have ended"
            raise FederateError(
                f"{what} ({_last_line(self.log(ended[0]))}); run the same command again: it resumes from the last round"
            )

    def _await_link(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self.processes[LINK].poll() is not None:
                raise FederateError(f"the SuperLink does not start: {_last_line(self.log(LINK))}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.ports[0]), 1).close()
                return
            time.sleep(POLL)
        raise FederateError(f"the SuperLink does not listen after {START_SECONDS:g} s; is the machine too busy?")

    def _ask(self, out: Path) -> None:
        """Errors: FederateError if the run is over and left nothing: its app never came to say why."""
        try:
            (run,) = self._flwr("list", NAME, "--limit", "1")["runs"]
        except FederateError:  # the SuperLink does not answer just now; if it is dead, that shows
            return
        if str(run["status"]).startswith("finished") and not (out / REPORT).exists():
            raise FederateError(f"the run ended without a result: {run['status-details']}; is everything installed?")

    def _flwr(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            [_program("flwr"), *words, "--format", "json"], env=self._environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        try:
            answer = json.loads(done.stdout[done.stdout.index("{") :])
        except ValueError:
            answer = {}
        if not answer.get("success"):
            why = " ".join(answer.get("error-message", "").split())[:300] or _last_line(done.stderr + done.stdout)
            raise FederateError(f"flwr {words[0]} failed: {why}")
        return answer

    def _environment(self) -> dict[str, str]:
        programs = str(Path(_program("flwr")).parent)
        return {
            **os.environ,
            "FLWR_HOME": str(self.folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # they share the cores; and one repeats exactly
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
        }


def new_node_key(file: Path) -> Path:
    """A SuperNode's private key, in OpenSSH's form, and its public one beside it (`.pub`), which is returned."""
    key = ec.generate_private_key(ec.SECP384R1())
    form = serialization.PrivateFormat.OpenSSH
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    public = file.with_name(f"{file.name}.pub")
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return public


def _program(name: str) -> str:
    """One of Flower's, from this environment. Errors: FederateError."""
    beside = Path(sys.executable).parent / name
    path = str(beside) if beside.is_file() else shutil.which(name)
    if path is None:
        raise FederateError(f"{name} is not installed; run: pip install 'blindformer[federated]'")
    return path


def _free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
