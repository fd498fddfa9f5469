"""Ends of TLS connections on this machine."""

from __future__ import annotations

import ssl

import pytest
from blindformer.parties.certificates.tls_folder import server_context
from blindformer.parties.transport.tls import listen
from blindformer.tests.parties.conftest import connect
from blindformer.tests.patience import PATIENCE


def listening(folder, role: str = "server", name: str | None = None, seconds: float = 20):
    return listen("127.0.0.1", 0, server_context(folder, role, name), timeout=PATIENCE, handshake_seconds=seconds)


@pytest.fixture
def listener(certificates):
    with listening(certificates) as listener:
        yield listener


@pytest.fixture
def pair(certificates):
    """(server's channel, client's channel)."""
    server, client = connect("tls", certificates, 20)
    yield server, client
    server.close()
    client.close()


def stranger_context(folder, name: str) -> ssl.SSLContext:
    """A dialling context without this side's own checks, as an attacker or an older version would have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca.pem")
    if name:
        file = folder / name / "client" if (folder / name).is_dir() else folder / name  # of `add_certificate`
        context.load_cert_chain(f"{file}.pem", f"{file}.key")
    return context
