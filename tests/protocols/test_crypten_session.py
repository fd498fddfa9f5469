"""CrypTen's own operations among three processes: our channels, our dealer's tuples, our streams, and nothing left."""

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from blindformer.tests.patience import PATIENCE

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

SCRIPT = Path(__file__).with_name("crypten_party.py")


def free_ports(count):
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def test_two_sessions_of_plain_crypten_code_follow_one_another():
    """Products, comparisons and truncations (every kind of tuple), twice in one process."""
    ports = free_ports(2)
    parties = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), *ports], stderr=subprocess.PIPE, text=True)
        for rank in range(3)
    ]
    try:
        errors = [party.communicate(timeout=PATIENCE)[1] for party in parties]
    finally:
        for party in parties:
            party.kill()
    assert [party.returncode for party in parties] == [0, 0, 0], "\n".join(errors)
