"""Pairs of connected channels, one fixture for every transport."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
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
    with listen("127.0.0.1", 0, server_context(folder, "server"), timeout=timeout) as listener:
        accepted: Future = Future()

        def accept() -> None:
            try:
                accepted.set_result(listener.accept(10, {"client"}))
            except BaseException as error:
                accepted.set_exception(error)

        thread = threading.Thread(target=accept)
        thread.start()
        client = dial(*listener.address, client_context(folder, "client"), "server", timeout=timeout)
        thread.join()
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
