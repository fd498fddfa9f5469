"""The gateway from its settings to SIGINT or SIGTERM: it listens, opens its models, answers, and stops in order."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, cast
from urllib.parse import quote

import uvicorn

from ..config import Address, Settings
from ..service.logs import Log
from ..service.metrics import Exporter, Metrics
from ..service.start import BACKLOG, bind
from .access import LOOPBACK, Guard, HeadProtocol, PendingHeads, People, find_key
from .app import Gateway, make_app
from .model_pool import ModelPool, open_pools
from .problems import GatewayError

CONNECTIONS = 1024
LOOK_SECONDS = 3.0  # between two looks at whether parties answer, and at whether the file of keys has changed
EXPORT_SECONDS = 1.0  # between two snapshots of the metrics
STOP_SECONDS = 10.0  # for the steps that run when the gateway stops


@dataclass(frozen=True)
class Listening:
    """Where a gateway is called. `key_place`: the key's file, or the name of the environment's variable."""

    address: Address
    key_place: str
    key: str = field(repr=False)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def page(self) -> str:
        """The page, ready to use: browsers keep what follows # to themselves. It holds the key, so it is for no log."""
        return f"{self.url}/#key={quote(self.key)}"

    @property
    def exposed(self) -> bool:
        """Other machines can call the gateway, and the key travels in the clear."""
        return self.address.host not in LOOPBACK


OnListening = Callable[[Listening], None]
OnOpened = Callable[[ModelPool], None]


class GatewayServer(uvicorn.Server):
    """Stops when `stop` is called, from any thread, or by SIGINT and SIGTERM in the main one."""

    def __init__(self, gateway: Gateway, guard: Guard) -> None:
        self.heads = PendingHeads()
        config = uvicorn.Config(
            guard,
            http=cast(Any, partial(HeadProtocol, heads=self.heads)),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(STOP_SECONDS),
        )
        super().__init__(config)
        self._gateway = gateway

    def stop(self) -> None:
        self.should_exit = True
        self._gateway.stop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In a signal's handler, where the interrupted code may hold a lock: so the loop stops the server."""
        asyncio.get_running_loop().call_soon_threadsafe(self.stop)


def serve(
    settings: Settings,
    on_listening: OnListening = lambda listening: None,
    on_opened: OnOpened = lambda model: None,
    control: Callable[[GatewayServer], None] = lambda server: None,
) -> None:
    """Answer until the server stops.

    on_listening   called when the gateway listens
    on_opened      called for each model when its parties have met, or could not
    control        gets the server, so that another thread can stop it

    Errors: GatewayError, StartError, and those of clients.
    """
    mine = settings.gateway
    key, key_place = find_key(mine.key)
    with bind(mine.listen, BACKLOG) as listener:
        models, exporter = open_pools(settings), None
        try:
            metrics, log = Metrics(), Log("gateway", mine.log_format)
            metrics.set("started", time.time())
            people = People(mine, key)
            gateway = Gateway(models, mine.truncate, log, metrics, people)
            any_host = mine.listen.host in ("0.0.0.0", "::", "fd")
            hosts = [*mine.hosts, *([] if any_host else [mine.listen.host])]
            server = GatewayServer(gateway, Guard(make_app(gateway), people, log, hosts))
            exporter = None if mine.metrics is None else Exporter(bind(mine.metrics, BACKLOG), log)
            control(server)
            on_listening(Listening(Address(*listener.getsockname()[:2]), key_place, key))
            address = str(Address(*listener.getsockname()[:2]))
            log.info("ready", address=address, metrics=str(exporter.address) if exporter else "none")
            asyncio.run(_serve(server, gateway, exporter, listener, on_opened))
            log.info("stopped")
        finally:
            if exporter is not None:
                exporter.close()
            for model in models.values():
                model.close()


async def _serve(
    server: GatewayServer, gateway: Gateway, exporter: Exporter | None, listener: socket.socket, on_opened: OnOpened
) -> None:
    models = gateway.models.values()

    async def open_one(model: ModelPool) -> None:
        await model.open()
        on_opened(model)

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.gather(*(asyncio.to_thread(model.look) for model in models))
            try:
                gateway.people.reload()
            except GatewayError as error:
                gateway.log.error("keys-unreadable", what=str(error))

    async def export() -> None:
        while exporter is not None:
            exporter.feed(gateway.snapshot(), gateway.stopping, gateway.ready)
            await asyncio.sleep(EXPORT_SECONDS)

    tasks = [*(asyncio.create_task(open_one(model)) for model in models), asyncio.create_task(look())]
    tasks.append(asyncio.create_task(export()))
    await server.serve([listener])
    for task in tasks:
        task.cancel()
