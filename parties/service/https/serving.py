"""The service: workers, keys and the HTTP interface together, from settings until a signal says stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn

from ....protocols.ckks.facts import facts_from
from ....versions import my_version
from ..host import Host
from ..quota import quota_in_words, quota_of
from ..running import StartedService
from .app import AppState, make_app
from .bodies import Bodies
from .connections import IncomingConnections
from .http_server import HttpServer
from .key_store import KeyStore
from .places import Places
from .workers import Workers

GB = 1e9
UPLOADS = 4  # clients that send keys at the same time
# Of a handshake in this process, unlike one in a process of its own, there may be many: 0.3 MB each. While others wait,
# an honest peer needs no longer than two round trips and its request's head.
ENTERING = {"handshakes": 64, "handshake_seconds": 10.0, "pressed_seconds": 2.0}


class HttpsService(StartedService):
    """One server; clients' keys lie in its scratch folder."""

    role = "server"
    bounds = ENTERING
    helpers = "nobody: the client encrypts, and this server computes on ciphertexts"
    adversary = "a server that follows the protocol; it learns only sizes and times"

    def run(self, host: Host, ready: Callable[[], None]) -> None:
        asyncio.run(self._serve(host, ready))

    async def _serve(self, host: Host, ready: Callable[[], None]) -> None:
        mine = self.settings.server
        sizes = (int(mine.keys_memory_gb * GB), int(mine.weights_memory_gb * GB), mine.query_processes)

        def died(why: str) -> None:
            host.metrics.add("children_killed", label="worker")
            host.log.error("worker-replaced", what=why)

        words = [str(mine.folder), *map(str, sizes), *(["--any-ring"] if self.local.any_ring else [])]
        workers = Workers(self.limits.workers, words, self.limits.query_seconds, died)
        try:
            state = self._state(host, workers, await workers.start())
            server = HttpServer(
                uvicorn.Config(
                    make_app(state),
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    log_level="error",  # what strangers send wrongly is in our log, and not on stderr besides
                    access_log=False,
                    server_header=False,
                )
            )
            serving = asyncio.create_task(server.serve())
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            connections = IncomingConnections(host, self.identity, state, server, server.protocol)
            loop = asyncio.get_running_loop()

            def watch(source: Any, look: Callable[[], None]) -> None:
                def look_and_let_in() -> None:
                    look()
                    host.let_in()

                loop.add_reader(source, look_and_let_in)

            files = self._places + 2 * self.limits.handshakes  # one in the handshake takes two
            with host.serving(connections, self.identity, files, watch, loop.remove_reader):
                ready()
                while not serving.done():
                    host.turn()
                    await asyncio.sleep(host.tick)
                await serving
        finally:
            await workers.close()

    def _state(self, host: Host, workers: Workers, found: dict[str, Any]) -> AppState:
        """`found`: what the workers say of the model."""
        mine, limits = self.settings.server, self.limits
        facts = [facts_from(item, secure=False) for item in found["ready"]]
        lengths = ", ".join(f"N = {item.parameters.degree} for {item.texts} {found['word']}s" for item in facts)
        quota = quota_of(mine, max(item.texts for item in facts))
        self.programs = [item.program for item in facts]
        self.about, self.limit = f"{found['name']}, plan {found['plan']}, {lengths}", quota_in_words(quota)

        def forgotten(keys: str) -> None:
            workers.forget(keys)
            host.log.info("keys-gone", session=keys)

        return AppState(
            about={"name": found["name"], "plan": found["plan"], "version": my_version()},
            facts={item.program: item for item in facts},
            workers=workers,
            places=Places(limits.model_copy(update={"sessions": self._places})),
            store=KeyStore(
                self.scratch,
                most_bytes=int(mine.keys_gb * GB),
                most_sets=limits.sessions,
                each=limits.sessions_each,
                seconds=mine.keys_seconds,
                forgotten=forgotten,
            ),
            bodies=Bodies(self.timeout, limits.query_seconds),
            metrics=host.metrics,
            log=host.log,
            room=limits.queue + limits.workers,
            uploads=UPLOADS,
            revoked=self.identity.revoked,
            quota=quota,
        )

    @property
    def _places(self) -> int:
        """Requests at a time: for keys and for queries, and a few beside."""
        return self.limits.sessions + self.limits.queue + self.limits.workers + UPLOADS
