"""What a service counts; and /metrics, /healthz, /readyz over HTTP, by a process that has no key, seed or weight.

The service starts that process, sends it a snapshot every second as a JSON line on stdin, and starts it again, at the
same port, when it dies. The process ends when its stdin does, and not before.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any, NamedTuple, TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics import MetricWrapperBase

from ..addresses import Address
from .logs import Log

M = TypeVar("M", bound=MetricWrapperBase)
PAUSES = (0.2, 1.0, 5.0, 30.0)  # seconds
STEADY_SECONDS = 120.0  # running so long, the process does well
STALE_SECONDS = 15.0  # silent for so long, the supervisor hangs
CONNECTIONS, REQUEST_SECONDS = 32, 10.0


class Metric(NamedTuple):
    """`label`: the name of its one label, empty for none."""

    kind: type[MetricWrapperBase]
    help: str
    label: str = ""


METRICS: dict[str, Metric] = {
    "connections": Metric(Counter, "Connections by what became of them in the lobby and the handshake", "outcome"),
    "sessions_opened": Metric(Counter, "Sessions opened, by the peer's role", "role"),
    "queries": Metric(Counter, "Queries answered"),
    "audits": Metric(Counter, "Runs that showed that a client follows the protocol, and gave no answer"),
    "busy": Metric(Counter, "Times a peer was asked to retry later, by what it wanted", "wanted"),
    "limited": Metric(Counter, "Queries refused because a certificate, or a person, has asked all that it may"),
    "errors": Metric(Counter, "Connections that ended with an error, by its type", "kind"),
    "children_killed": Metric(Counter, "Children ended by the supervisor or a signal, by reason", "reason"),
    "bytes": Metric(Counter, "Payload of queries and audits, by direction and phase", "direction"),
    "seconds": Metric(Histogram, "Seconds of a query, by phase", "phase"),
    "lobby": Metric(Gauge, "Connections that have not shown a TLS hello yet"),
    "handshakes": Metric(Gauge, "Connections in the handshake"),
    "sessions": Metric(Gauge, "Open sessions"),
    "running": Metric(Gauge, "Queries that hold a worker"),
    "queued": Metric(Gauge, "Queries that wait for a worker"),
    "correlations_left": Metric(Gauge, "Preprocessed correlations, not used yet"),
    "key_bytes": Metric(Gauge, "What clients' evaluation keys may take on disk, of encrypted queries"),
    "seeds": Metric(Gauge, "Clients' seeds that the dealer keeps for their servers"),
    "certificate_expires": Metric(
        Gauge, "When the first of its certificate, CA and list of revoked ones ends, seconds since 1970"
    ),
    "started": Metric(Gauge, "When the service started, seconds since 1970"),
    "stopping": Metric(Gauge, "1 while the service drains"),
}
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # seconds
LABELS_MOST = 50  # values of one label: a child may invent error kinds

disable_created_metrics()


class Metrics:
    """Numbers by metric and label value. A gauge is shown from its first value on: what a service lacks is not 0."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._labels: dict[str, set[str]] = {name: set() for name in METRICS}
        self._metrics = {name: self._make(name, metric) for name, metric in METRICS.items()}

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        self._find(name, Counter, label).inc(amount)

    def set(self, name: str, value: float) -> None:
        gauge = self._find(name, Gauge)
        if not self._labels[name]:
            self._labels[name].add("")
            self._registry.register(gauge)
        gauge.set(value)

    def observe(self, name: str, value: float, label: str) -> None:
        self._find(name, Histogram, label).observe(value)

    def text(self) -> str:
        """As Prometheus reads it."""
        return generate_latest(self._registry).decode()

    def _make(self, name: str, metric: Metric) -> MetricWrapperBase:
        name, labels = f"blindformer_{name}", [metric.label] if metric.label else []
        if metric.kind is Histogram:
            return Histogram(name, metric.help, labels, buckets=BUCKETS, registry=self._registry)
        return metric.kind(name, metric.help, labels, registry=None if metric.kind is Gauge else self._registry)

    def _find(self, name: str, kind: type[M], label: str = "") -> M:
        metric, labels = self._metrics[name], self._labels[name]
        if not isinstance(metric, kind):
            raise ValueError(f"{name} is a {METRICS[name].kind.__name__}, not a {kind.__name__}")
        if not METRICS[name].label:
            return metric
        if label not in labels and len(labels) >= LABELS_MOST:
            label = "other"
        labels.add(label)
        return metric.labels(label)


class Backoff:
    """How long to wait before a process that ended is started again. The pause grows with each end, until `reset`."""

    def __init__(self) -> None:
        self._ends = 0

    def ended(self) -> float:
        """Count one more end; seconds to wait now."""
        self._ends += 1
        return PAUSES[min(self._ends, len(PAUSES)) - 1]

    def reset(self) -> None:
        self._ends = 0


class Exporter:
    """The supervisor's end. Serves snapshots on `sock`, which listens. Nothing that happens to the process is fatal."""

    def __init__(self, sock: socket.socket, log: Log) -> None:
        self._sock, self._log = sock, log
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._backoff = Backoff()
        self._since = self._again = 0.0

    @property
    def address(self) -> Address:
        return Address(*self._sock.getsockname()[:2])

    def feed(self, text: str, stopping: bool, able: bool = True) -> None:
        """Hand over a snapshot; start the process if it is time to. Blocks on nothing."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            if now - self._since > STEADY_SECONDS:
                self._backoff.reset()
            _pipe(self._process).close()
            self._ended(now, f"it ended with code {self._process.returncode}")
        if self._process is None and now >= self._again:
            try:
                self._process, self._since, self._rest = self._started(), now, b""
            except OSError as error:
                self._ended(now, f"it cannot be started ({error.strerror})")
        if self._process is not None:
            # Each snapshot holds everything, so one is left out while an earlier one is still on its way.
            data = self._rest or (json.dumps({"text": text, "stopping": stopping, "able": able}) + "\n").encode()
            with contextlib.suppress(OSError):  # the pipe is full, or it is dead, which the next call notices
                self._rest = data[os.write(_pipe(self._process).fileno(), data) :]

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._sock.close()
        if self._process is not None:
            _pipe(self._process).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """In a child of the supervisor: let go of what is the supervisor's."""
        self._sock.close()
        if self._process is not None:
            _pipe(self._process).close()
            self._process.returncode = 0  # it is not ours to wait for

    def _started(self) -> subprocess.Popen[bytes]:
        """Errors: OSError."""
        number = self._sock.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(number)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[number],
            cwd="/",
        )
        os.set_blocking(_pipe(process).fileno(), False)
        return process

    def _ended(self, now: float, what: str) -> None:
        pause = self._backoff.ended()
        self._again, self._process = now + pause, None
        self._log.error("metrics-died", what=f"{what}; it is started again", seconds=pause)


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin


# --- the process that serves them: `python -m blindformer.parties.service.metrics SOCKET` ---


class MetricsServer(ThreadingHTTPServer):
    """Answers from the newest snapshot, which `put` replaces; a few requests at a time."""

    daemon_threads = True

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(("", 0), _Request, bind_and_activate=False)
        self.socket.close()
        self.socket = sock
        self._room = threading.Semaphore(CONNECTIONS)
        self._text, self._stopping, self._able, self._stale_at = "", False, True, 0.0

    def put(self, text: str, stopping: bool, able: bool = True) -> None:
        self._text, self._stopping, self._able = text, stopping, able
        self._stale_at = time.monotonic() + STALE_SECONDS

    def answer(self, path: str) -> tuple[int, str, str]:
        """Status, type and text. /healthz: 200 while the supervisor reports; /readyz: while it serves new sessions."""
        fresh = time.monotonic() < self._stale_at
        states = {"/healthz": {"healthy": fresh}, "/readyz": {"ready": fresh and self._able and not self._stopping}}
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, self._text
        if path not in states:
            return 404, "application/json", '{"detail":"Not Found"}'
        good = all(states[path].values())
        more = {"stopping": self._stopping} if path == "/readyz" else {}
        return (200 if good else 503), "application/json", json.dumps(states[path] | more, separators=(",", ":"))

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started, to give the place back
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return self._room.acquire(blocking=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A peer that hangs up is no news."""


class _Request(BaseHTTPRequestHandler):
    server: MetricsServer
    server_version, sys_version = "blindformer", ""  # strangers may read this; it names no version
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        status, kind, text = self.server.answer(self.path.partition("?")[0])
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main(number: int) -> None:
    """Serve on the listening socket with this file number, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals everybody; the supervisor drains first
    server = MetricsServer(socket.socket(fileno=number))
    threading.Thread(target=server.serve_forever, daemon=True, name="http").start()
    for line in sys.stdin:
        server.put(**json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
