"""The service: workers, keys and the HTTP interface together, from settings until a signal says stop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import uvicorn

from ....protocols.ckks.facts import facts_from
from ....versions import my_version
from ...certificates.identity import Identity, Renewal
from ...config import Address, Settings
from ..limits import ServiceLimits
from ..logs import Log
from ..quota import quota_in_words, quota_of
from ..running import (
    BACKLOG,
    Announcement,
    StartError,
    bind,
    exporter_at,
    log_ready,
    make_limits,
    scratch_folder,
)
from ..stats import Stats
from .app import AppState, make_app
from .bodies import Bodies
from .entrance import Entrance
from .front import Front
from .key_store import KeyStore
from .pool import Pool

ROLE = "server"
HELPERS = "nobody: the client encrypts, and this server computes on ciphertexts"
ADVERSARY = "a server that follows the protocol; it learns sizes and times alone"
UPLOADS = 4  # clients that send keys at the same time
# Of a handshake in this process, unlike one in a process of its own, there may be many: 0.3 MB each. While others wait,
# an honest peer needs no longer than two round trips and its request's head.
ENTERING = {"handshakes": 64, "handshake_seconds": 10.0, "pressed_seconds": 2.0}
TICK = 1.0
GB = 1e9


def serve(
    settings: Settings,
    announce: Callable[[Announcement], None] | None = None,
    lifeline: int | None = None,
    more: Sequence[str] = (),
) -> None:
    """Serve encrypted queries until SIGINT or SIGTERM, or the end of the pipe `lifeline`; SIGHUP reads certificates.

    announce   is told when it serves; without it the log is
    more       options of the workers

    Errors: StartError, CertificateError, and those of a folder that cannot be served.
    """
    if lifeline is not None and not stat.S_ISFIFO(os.fstat(lifeline).st_mode):
        raise StartError("the lifeline is no pipe; start the service from a program that holds the pipe's other end")
    mine = settings.server
    identity = Identity(settings.certificates.folder, ROLE)
    # It warns of a worker that its own close has reaped before its watcher; how workers end is in our log.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    with bind(mine.listen, backlog=BACKLOG) as listener, scratch_folder(f"bf-{ROLE}-") as scratch:
        asyncio.run(HttpsService(settings, identity, scratch, more).run(listener, announce, lifeline))


class HttpsService:
    def __init__(self, settings: Settings, identity: Identity, scratch: Path, more: Sequence[str]) -> None:
        self.mine, self.identity = settings.server, identity
        self.limits: ServiceLimits = replace(make_limits(self.mine), **ENTERING)
        self.log, self.stats = Log(ROLE, self.mine.log_format), Stats()
        self.exporter = exporter_at(self.mine.metrics, self.log)
        self.pool = Pool(
            self.limits.workers,
            [
                str(self.mine.folder),
                str(int(self.mine.keys_memory_gb * GB)),
                str(int(self.mine.weights_memory_gb * GB)),
                str(self.mine.query_processes),
                *more,
            ],
            queue=self.limits.queue,
            each=self.limits.queue_each,
            seconds=self.limits.query_seconds,
            died=self._died,
        )
        self._forgotten: list[str] = []
        self.store = KeyStore(
            scratch,
            most_bytes=int(self.mine.keys_gb * GB),
            most_sets=self.limits.sessions,
            each=self.limits.sessions_each,
            seconds=self.mine.keys_seconds,
            forgotten=self._forget,
        )
        self.renewal = Renewal(identity, self.log, self._show_out)
        self.bodies = Bodies(settings.session.timeout, self.limits.query_seconds)

    async def run(
        self, listener: socket.socket, announce: Callable[[Announcement], None] | None, lifeline: int | None
    ) -> None:
        try:
            ready = await self.pool.start()
            facts = [facts_from(found, secure=False) for found in ready["ready"]]
            about = {"name": ready["name"], "plan": ready["plan"], "version": my_version()}
            quota = quota_of(self.mine, max(item.texts for item in facts))
            self.desk = AppState(about, facts, self.pool, self.store, self.bodies, self.stats, self.log, UPLOADS,
                             self.identity.revoked, quota)  # fmt: skip
            front = self._front(listener)
            serving = asyncio.create_task(front.serve())
            while not front.started and not serving.done():
                await asyncio.sleep(0.01)
            self._hear_signals(front, lifeline)
            said = Announcement(
                role=ROLE,
                address=Address(*listener.getsockname()[:2]),
                metrics=Address(*self.exporter.address) if self.exporter else None,
                helpers=HELPERS,
                programs=list(self.desk.facts),
                about=f"{about['name']}, plan {about['plan']}, " + ", ".join(
                    f"N = {item.parameters.degree} for {item.texts} texts" for item in facts
                ),
                limits=self.limits,
                expires=self.identity.expires,
                adversary=ADVERSARY,
                limit=quota_in_words(quota),
            )  # fmt: skip
            self.stats.set("started", time.time())
            (announce or (lambda said: log_ready(said, self.log)))(said)
            keeping = asyncio.create_task(self._keep_order(front.entrance))
            await serving
            keeping.cancel()
        finally:
            await self.pool.close()
            if self.exporter:
                self.exporter.close()
        self.log.info("stopped")

    def _front(self, listener: socket.socket) -> Front:
        config = uvicorn.Config(
            make_app(self.desk),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # what strangers send wrongly is in our log, and not on stderr besides
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, int(self.limits.grace)),
        )
        places = self.limits.sessions + self.pool.room + UPLOADS
        each = math.ceil(self.limits.share * places)
        return Front(
            config, partial(Entrance, listener, self.identity, self.limits, places, each, self.log, self.stats)
        )

    def _hear_signals(self, front: Front, lifeline: int | None) -> None:
        loop = asyncio.get_running_loop()

        def stop() -> None:
            front.force_exit = self.desk.stopping  # the second time nobody is waited for
            self.log.info("stopping", what="running queries may finish", seconds=self.limits.grace)
            self.desk.stopping = front.should_exit = True

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, self.renewal.reload)
        if lifeline is not None:

            def listen() -> None:
                if not os.read(lifeline, 4096):
                    loop.remove_reader(lifeline)
                    stop()

            loop.add_reader(lifeline, listen)

    def _show_out(self) -> None:
        """New certificates are for connections to come, and clients' keys stay; of who was revoked they go."""
        for item in [item for item in self.store.sets.values() if self.identity.revoked(item.serial)]:
            self.store.drop(item)

    async def _keep_order(self, entrance: Entrance) -> None:
        """Once a second: keys that nobody uses go, and the numbers are handed on."""
        while True:
            await asyncio.sleep(TICK)
            self.renewal.look()
            self.store.expire()
            while self._forgotten:
                await self.pool.forget(self._forgotten.pop())
            gauges = {
                **entrance.gauges,
                "sessions": len(self.store.sets),
                "running": self.pool.running,
                "queued": self.pool.waiting,
                "key_bytes": self.store.bytes,
                "certificate_expires": self.identity.expires,
                "stopping": self.desk.stopping,
            }
            for name, value in gauges.items():
                self.stats.set(name, float(value))
            if self.exporter:
                with suppress(OSError):
                    self.exporter.feed(self.stats.snapshot())

    def _forget(self, keys: str) -> None:
        """Of a client: they have left the disk, and workers drop them next."""
        self._forgotten.append(keys)
        self.log.info("keys-gone", session=keys)

    def _died(self, why: str) -> None:
        self.stats.add("children_killed", label="worker")
        self.log.error("worker-replaced", what=why)
