"""Inside TLS: garbage, altered bytes, a key that wears out, and a wire that shows no payload."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from blindformer.parties.certificates.contexts import client_context
from blindformer.parties.transport.tls import dial
from blindformer.protocols.errors import PeerError, PeerGone
from blindformer.tests.parties.transport.conftest import stranger_context
from blindformer.tests.patience import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=40)
@given(
    data=st.binary(max_size=300), header=st.sampled_from([b"", b"T\0\0", b"J\0\0\0\0\0\xff\xff", b"T" + b"\xff" * 7])
)
def test_garbage_inside_tls_gives_a_typed_error(listener, certificates, data, header):
    """A party with a good certificate and a bad program."""
    with socket.create_connection(listener.address) as sock, ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(listener.accept, 30)
        with stranger_context(certificates, "client").wrap_socket(sock, server_hostname="localhost") as raw:
            server = accepting.result(PATIENCE)
            raw.sendall(header + data)
    with pytest.raises(PeerError) as caught:
        server.recv(1000)
    assert caught.value.party == "client"
    server.close()


def test_altered_ciphertext_is_noticed(pair):
    server, client = pair
    client._wire.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(PeerError, match="client: sent bytes that TLS does not accept"):
        server.recv(4)


def test_a_key_wears_out(pair):
    server, client = pair
    client.send(bytes(100_000))
    server.recv(100_000)
    assert client._wire.records == 7
    client._wire.records = 2**24
    client.send(b"still")
    client._wire.records = 2**25
    with pytest.raises(PeerGone, match="all that one TLS key may encrypt"):
        client.send(b"no more")


def test_the_wire_shows_no_payload(listener, certificates, aside):
    """A relay between the parties sees neither tensors nor messages."""
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as relay:

        def forward():
            near, _ = relay.accept()
            with near, socket.create_connection(listener.address) as far:
                near.settimeout(0.05)
                far.settimeout(0.05)
                while True:
                    for source, sink in ((near, far), (far, near)):
                        try:
                            data = source.recv(65536)
                        except TimeoutError:
                            continue
                        if not data:
                            return
                        seen.extend(data)
                        sink.sendall(data)

        relaying = aside(forward)
        accepting = aside(listener.accept, 30)
        client = dial(*relay.getsockname(), client_context(certificates, "client"), "server")
        server = accepting.result(PATIENCE)
        client.send(b"the private text" * 10)
        client.send_message({"program": "0123456789abcdef"})
        server.recv(160)
        server.recv_message()
        client.close()
        relaying.result(PATIENCE)
        server.close()
    assert len(seen) > 200
    assert b"private text" not in seen
    assert json.dumps("0123456789abcdef").encode() not in seen
