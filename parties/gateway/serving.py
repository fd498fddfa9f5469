"""The gateway from settings until a signal says stop: it listens, opens its models, answers, and ends what it began."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import uvicorn

from ..config import Address, Settings
from ..service.https.bodies import Bodies
from ..service.logs import Log
from ..service.metrics import Metrics
from ..service.running import BACKLOG, bind
from .app import BODY_SECONDS, BODY_SILENCE, Gateway, make_app
from .guard import LOOPBACK
from .heads import HeadProtocol, PendingHeads
from .keys import find_key
from .models import Offered, OfferedModel

CONNECTIONS = 1024
STOP_SECONDS = 10.0  # for the steps that are being done when it is told to stop


@dataclass(frozen=True)
class Listening:
    """Where a gateway is called. `key_place`: the key's file, or the name of the environment's variable."""

    address: Address
    key_place: str

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def exposed(self) -> bool:
        """Whether other machines can call it, and the key travels as it is."""
        return self.address.host not in LOOPBACK


Told = Callable[[Listening], None]
Opened = Callable[[OfferedModel], None]


class GatewayServer(uvicorn.Server):
    """Stops when `stop` is called, from any thread, or by SIGINT and SIGTERM in the main one."""

    def __init__(self, gateway: Gateway) -> None:
        self.heads = PendingHeads()
        config = uvicorn.Config(
            make_app(gateway),
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
        self._gateway.stopping = self.should_exit = True
        self._gateway.offered.stop()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop, main = asyncio.get_running_loop(), threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
        before = {number: signal.getsignal(number) for number in numbers}
        for number in numbers:
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)


def serve(
    settings: Settings,
    told: Told | None = None,
    opened: Opened | None = None,
    control: Callable[[GatewayServer], None] | None = None,
) -> None:
    """Answer until told to stop. `told`: when it listens; `opened`: of each model, when its parties were met or not;
    `control`: gets the server, for who stops it from another thread.

    Errors: GatewayError, StartError, and those of clients.
    """
    mine = settings.gateway
    key, place = find_key(mine.key)
    with bind(mine.listen, BACKLOG) as listener:
        offered = Offered(settings)
        try:
            address = Address(*listener.getsockname()[:2])
            hosts = (*mine.hosts, *([mine.listen.host] if not _any(mine.listen.host) else []))
            log, metrics = Log("gateway"), Metrics()
            metrics.set("started", time.time())
            gateway = Gateway(offered, key, hosts, log, metrics, Bodies(BODY_SILENCE, BODY_SECONDS))
            server = GatewayServer(gateway)
            if control:
                control(server)
            if told:
                told(Listening(address, place))
            asyncio.run(_serve(server, listener, offered, opened))
        finally:
            offered.close()


async def _serve(server: GatewayServer, listener: socket.socket, offered: Offered, opened: Opened | None) -> None:
    async def open_one(model: OfferedModel) -> None:
        await offered.open(model)
        if opened:
            opened(model)

    opening = [asyncio.create_task(open_one(model)) for model in offered.models.values()]
    await server.serve([listener])
    for task in opening:
        task.cancel()


def _any(host: str) -> bool:
    """An address that stands for all of this machine's."""
    return host in ("0.0.0.0", "::", "fd")
