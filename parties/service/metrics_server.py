"""/healthz, /readyz and /metrics over HTTP: `python -m blindformer.parties.service.metrics_server`, a process apart.

Whoever reads metrics speaks HTTP with a web framework, so that runs where no key, seed or weight is: a new process,
which the supervisor sends snapshots (exporter.py), as JSON lines on stdin. It ends when stdin does, and not before.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

STALE_SECONDS = 15.0  # the supervisor sends a snapshot every second; silent for so long, it hangs
CONNECTIONS = 32


class Latest:
    """The newest snapshot."""

    def __init__(self) -> None:
        self.text, self.stopping = "", False
        self._stale_at = 0.0

    def put(self, text: str, stopping: bool) -> None:
        self.text, self.stopping = text, stopping
        self._stale_at = time.monotonic() + STALE_SECONDS

    @property
    def fresh(self) -> bool:
        return time.monotonic() < self._stale_at


def make_app(latest: Latest) -> FastAPI:
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
        return Response(latest.text, media_type=CONTENT_TYPE_LATEST)

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
        latest.put(**json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
