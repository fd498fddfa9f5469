"""/healthz, /readyz and /metrics over HTTP: a process of its own, `python -m blindformer.parties.service.metrics`.

Whoever reads metrics speaks HTTP with a web framework, so that runs where no key, seed or weight is: a new process,
fed snapshots (stats.py) by the supervisor as JSON lines on stdin. It ends when stdin does, and not before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from .stats import BUCKETS, METRICS

STALE_SECONDS = 15.0  # the supervisor sends a snapshot every second; silent for so long, it hangs
CONNECTIONS = 32


class Latest(Collector):
    """The newest snapshot, as Prometheus wants it."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Any] = {}
        self.at = 0.0

    def put(self, snapshot: dict[str, Any]) -> None:
        self.snapshot, self.at = snapshot, time.monotonic()

    @property
    def fresh(self) -> bool:
        return bool(self.snapshot) and time.monotonic() - self.at < STALE_SECONDS

    @property
    def stopping(self) -> bool:
        return bool(self.snapshot.get("stopping", {}).get("", 0))

    def collect(self) -> Iterator[Family]:
        for name, metric in METRICS.items():
            values = self.snapshot.get(name, {})
            labels = [metric.label] if metric.label else []
            if metric.kind == "histogram":
                family = HistogramMetricFamily(f"blindformer_{name}", metric.help, labels=labels)
                for label, value in values.items():
                    family.add_metric([label], _cumulative(value["counts"]), value["total"])
            else:
                kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = kind(f"blindformer_{name}", metric.help, labels=labels)
                for label, value in values.items():
                    family.add_metric([label] if labels else [], value)
            yield family


def _cumulative(counts: list[int]) -> list[tuple[str, float]]:
    total, rows = 0, []
    for bound, count in zip([*(str(float(b)) for b in BUCKETS), "+Inf"], counts, strict=True):
        total += count
        rows.append((bound, float(total)))
    return rows


def make_app(latest: Latest) -> FastAPI:
    registry = CollectorRegistry()
    registry.register(latest)
    app = FastAPI(title="blindformer", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def health() -> JSONResponse:
        """200 while the supervisor reports."""
        return JSONResponse({"healthy": latest.fresh}, status_code=200 if latest.fresh else 503)

    @app.get("/readyz")
    def ready() -> JSONResponse:
        """200 while new sessions are taken."""
        good = latest.fresh and not latest.stopping
        return JSONResponse({"ready": good, "stopping": latest.stopping}, status_code=200 if good else 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def main(number: int) -> None:
    """Serve on the listening socket with this file number, until stdin ends."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # a terminal and systemd signal everybody; the supervisor drains first
        signal.signal(stop, signal.SIG_IGN)
    latest = Latest()
    config = uvicorn.Config(
        make_app(latest), log_config=None, access_log=False, limit_concurrency=CONNECTIONS, lifespan="off"
    )
    sock = socket.socket(fileno=number)
    # Outside the main thread uvicorn leaves the signals alone.
    threading.Thread(target=lambda: uvicorn.Server(config).run(sockets=[sock]), daemon=True, name="http").start()
    for line in sys.stdin:
        latest.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
