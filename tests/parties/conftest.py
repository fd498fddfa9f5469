"""Pairs of connected channels, one fixture for every transport."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blindformer.parties.certificates.contexts import client_context, server_context
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.transport.memory import memory_pair
from blindformer.parties.transport.tls import dial, listen


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, keep_ca_key=True)
    return folder


@pytest.fixture
def aside():
    """Run a function in another thread: `aside(f, *args)` gives its Future."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def connect(kind: str, folder: Path, timeout: float):
    """(server's channel, client's channel)."""
    if kind == "memory":
        return memory_pair("server", "client", timeout)
    context = server_context(folder, "server")
    with listen("127.0.0.1", 0, context, timeout=timeout) as listener, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept, 10, {"client"})
        client = dial(*listener.address, client_context(folder, "client"), "server", timeout=timeout)
        return accepted.result(), client


@pytest.fixture(params=["memory", "tls"])
def make_pair(request, certificates):
    """`make_pair(timeout=...)` gives (server's channel, client's channel) over each transport."""
    opened = []

    def make(timeout: float = 20):
        pair = connect(request.param, certificates, timeout)
        opened.extend(pair)
        return pair

    yield make
    for channel in opened:
        channel.close()
