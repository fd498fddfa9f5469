"""Connections of the HTTPS service: whatever strangers and clients hold open, a good client is served."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from types import SimpleNamespace

import pytest
from blindformer.parties.certificates.contexts import client_context
from blindformer.parties.config import parse_address
from blindformer.parties.service.host import Host
from blindformer.parties.service.https.connections import IncomingConnection, IncomingConnections
from blindformer.parties.service.https.places import Places
from blindformer.parties.service.identity import Identity
from blindformer.parties.service.limits import ServiceLimits
from blindformer.parties.service.logs import Log
from blindformer.parties.service.metrics import Metrics
from blindformer.tests.parties.service.https.conftest import TEXTS
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import CROWD, crowd, served_beside, tls_hello


def test_crowds_that_say_too_little_shut_nobody_out(site, client):
    """More connections than the process may open files. Another host's say a whole TLS hello and no more, and another
    client's finish the handshake and send a part of a request's head."""
    address, hello = parse_address(site.address), tls_hello()
    context = client_context(site.made.certificates, "client", "other")

    @contextlib.contextmanager
    def half_a_request():
        plain = socket.create_connection(address, PATIENCE)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost:")
            yield

    crowds = (
        crowd(address, CROWD),
        crowd(address, CROWD // 4, hello[: len(hello) // 2]),
        crowd(address, CROWD // 4, hello, "127.0.0.2"),
        *(half_a_request() for _ in range(5)),
    )
    assert served_beside(crowds, lambda: client.query(TEXTS[0]).value)


class Silent(asyncio.Protocol):
    """Of a connection that never sends a request."""

    def __init__(self, connections: IncomingConnections, connection: IncomingConnection) -> None:
        self.connections, self.connection = connections, connection

    def connection_made(self, transport) -> None:
        self.connections.arrived(self.connection, transport)


@pytest.mark.parametrize("shaken", [False, True], ids=["a TLS hello", "a whole handshake"])
def test_who_sends_no_request_is_put_out(certificates, shaken):
    """In time, and sooner while others wait: of three there is room for two."""
    log, context = io.StringIO(), client_context(certificates, "client")

    async def turn(host: Host) -> None:
        while True:
            host.turn()
            await asyncio.sleep(host.tick)

    async def run() -> None:
        limits = ServiceLimits(handshakes=2, handshake_seconds=1.0, pressed_seconds=0.1)
        state = SimpleNamespace(places=Places(limits), store=SimpleNamespace(expire=lambda: None))
        loop, identity = asyncio.get_running_loop(), Identity(certificates, "server")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            host = Host(listener, limits, Log("test", "json", log), Metrics())
            connections = IncomingConnections(host, identity, state, SimpleNamespace(), Silent)
            with host.serving(connections, identity, 9, loop.add_reader, loop.remove_reader):
                turning, held = asyncio.create_task(turn(host)), []
                for _ in range(3):
                    reader, writer = await asyncio.open_connection(
                        *listener.getsockname(), **({"ssl": context, "server_hostname": "127.0.0.1"} if shaken else {})
                    )
                    writer.write(b"" if shaken else tls_hello())
                    held.append(writer)
                with contextlib.suppress(ConnectionError):
                    while await reader.read(1 << 16):
                        pass
                turning.cancel()

    asyncio.run(asyncio.wait_for(run(), PATIENCE))
    reasons = [line["what"] for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "dropped"]
    assert reasons[0] == "sent a TLS hello; did not finish in time while others waited"
    assert reasons[-1] == "sent a TLS hello; did not finish in time"
