"""The HTTPS service's entrance: whatever strangers and clients hold open, a good client is served."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import ssl
import time
from functools import partial
from types import SimpleNamespace

import pytest
from blindformer.parties.certificates.development import client_context, server_context
from blindformer.parties.config import parse_address
from blindformer.parties.service.https.entrance import Entrance, Guest
from blindformer.parties.service.limits import ServiceLimits
from blindformer.parties.service.logs import Log
from blindformer.parties.service.pending import Pending
from blindformer.parties.service.stats import Stats
from blindformer.tests.parties.service.harness import CROWD, SERVED_SECONDS, crowd
from blindformer.tests.parties.service.https.conftest import TEXTS


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x").do_handshake()
    return outgoing.read()


def test_crowds_that_say_too_little_shut_nobody_out(site, client):
    """More connections than the process may open files. Another host's say a whole TLS hello and no more, and another
    client's finish the handshake and send a part of a request's head."""
    address, hello = parse_address(site.address), tls_hello()
    context = client_context(site.made.certificates, "client", "other")
    with contextlib.ExitStack() as stack:
        stack.enter_context(crowd(address, CROWD))
        stack.enter_context(crowd(address, CROWD // 4, hello[: len(hello) // 2]))
        stack.enter_context(crowd(address, CROWD // 4, hello, "127.0.0.2"))
        for _ in range(5):
            plain = stack.enter_context(socket.create_connection(address, SERVED_SECONDS))
            tls = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            tls.sendall(b"GET /v1/models HTTP/1.1\r\nHost:")
        started = time.monotonic()
        assert client.query(TEXTS[0]).value
        assert time.monotonic() - started < SERVED_SECONDS


class Silent(asyncio.Protocol):
    """Of a connection that never sends a request."""

    def __init__(self, entrance: list[Entrance], guest: Guest) -> None:
        self.entrance, self.guest = entrance, guest

    def connection_made(self, transport) -> None:
        self.entrance[0].arrived(self.guest, transport)


@pytest.mark.parametrize("shaken", [False, True], ids=["a TLS hello", "a whole handshake"])
def test_who_sends_no_request_is_put_out(certificates, shaken):
    """In time, and sooner while others wait: of three there is room for two."""
    log, context = io.StringIO(), client_context(certificates, "client")

    async def run() -> None:
        limits = ServiceLimits(handshakes=2, handshake_seconds=1.0, pressed_seconds=0.1)
        identity, made = SimpleNamespace(accepting=server_context(certificates, "server")), []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            make = partial(Silent, made)
            made.append(Entrance(listener, identity, limits, 1, 1, Log("test", "json", log), Stats(), make))
            running = asyncio.create_task(made[0].run())
            held = []
            for _ in range(3):
                reader, writer = await asyncio.open_connection(
                    *listener.getsockname(), **({"ssl": context, "server_hostname": "127.0.0.1"} if shaken else {})
                )
                writer.write(b"" if shaken else tls_hello())
                held.append(writer)
            with contextlib.suppress(ConnectionError):
                while await reader.read(1 << 16):
                    pass
            running.cancel()

    asyncio.run(asyncio.wait_for(run(), SERVED_SECONDS))
    reasons = [json.loads(line)["what"] for line in log.getvalue().splitlines()]
    assert reasons[0] == "sent a TLS hello; did not finish in time while others waited"
    assert reasons[-1] == "sent a TLS hello; did not finish in time"


@pytest.mark.parametrize(("places", "each", "refused"), [(3, 2, [2, 4]), (9, 1, [1, 2, 4])])
def test_places_are_bounded_for_all_and_for_each_certificate(places, each, refused):
    """Five requests, of three certificates; those that find no place, by number."""

    async def run() -> list[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            entrance = Entrance(listener, None, ServiceLimits(), places, each, Log("test"), Stats(), lambda guest: None)
            full = []
            for number, owner in enumerate("aaabb"):
                guest = Guest(Pending(listener, "127.0.0.1", number, 0.0))
                entrance._guests[guest] = None
                if entrance.seat(guest, owner):
                    full.append(number)
                    entrance.left(guest)
            return full

    assert asyncio.run(run()) == refused
