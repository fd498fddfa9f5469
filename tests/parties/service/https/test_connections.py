"""Connections of the HTTPS service: whatever strangers and clients hold open, a good client is served."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.config import parse_address
from blindformer.parties.service.admission import ServiceLimits
from blindformer.parties.service.https.queries import RequestAdmission
from blindformer.parties.service.https.serving import HttpsService
from blindformer.parties.service.identity import Identity
from blindformer.parties.service.logs import Log
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


class NoRequests(HttpsService):
    """With nobody to answer a request."""

    def __init__(self, certificates: Path, limits: ServiceLimits) -> None:
        self.limits, self.identity = limits, Identity(certificates, "server")

    @contextlib.asynccontextmanager
    async def opened(self):
        self.labels, self.admission = {"version": "1"}, RequestAdmission(self.limits)
        self.store = SimpleNamespace(expire=lambda: None, sets={}, bytes=0)
        self.serve_requests()
        yield


@pytest.mark.parametrize("shaken", [False, True], ids=["a TLS hello", "a whole handshake"])
def test_who_sends_no_request_is_put_out(certificates, shaken):
    """In time, and sooner while others wait: of three there is room for two."""
    log, context = io.StringIO(), client_context(certificates, "client")
    limits = ServiceLimits(handshakes=2, handshake_seconds=1.0, pressed_seconds=0.1)

    async def connect(address) -> None:
        """Returns when the last of three has been put out."""
        writers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(
                *address, **({"ssl": context, "server_hostname": "127.0.0.1"} if shaken else {})
            )
            writer.write(b"" if shaken else tls_hello())
            writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass

    def visit() -> None:
        try:
            asyncio.run(asyncio.wait_for(connect(service.address), PATIENCE))
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # the service, in the main thread

    service = NoRequests(certificates, limits)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        service.run(listener, Log("test", "json", log), lambda: pool.submit(visit))
    reasons = [line["what"] for line in map(json.loads, log.getvalue().splitlines()) if line["event"] == "dropped"]
    assert reasons[0] == "sent a TLS hello; did not finish in time while others waited"
    assert reasons[-1] == "sent a TLS hello; did not finish in time"
