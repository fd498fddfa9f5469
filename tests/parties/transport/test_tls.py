"""Who may connect: roles, certificate authorities, expiry, strangers, plain TCP. Inside TLS: garbage, altered bytes, a
key that wears out, and a wire that shows no payload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from blindformer.parties.certificates.issuing import add_certificate, make_certificates, revoke
from blindformer.parties.certificates.tls_folder import client_context, server_context
from blindformer.parties.transport.frames import MESSAGE, pack_header
from blindformer.parties.transport.tls import NOT_TLS_ALERT, TlsChannel, dial, listen, role_of, welcome
from blindformer.protocols.errors import PeerError, PeerGone, PeerRefused, PeerTimeout
from blindformer.tests.pages import free_port
from blindformer.tests.parties.transport.conftest import listening, stranger_context
from blindformer.tests.patience import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st


def still_accepts(listener, certificates, aside) -> None:
    accepting = aside(listener.accept, 30)
    with dial(*listener.address, client_context(certificates, "client"), "server", timeout=PATIENCE) as client:
        server = accepting.result(PATIENCE)
        client.send(b"ok")
        assert server.recv(2) == b"ok"
        server.close()


# --- certificates ----------------------------------------------------------------------------------------------------
def test_roles_come_from_the_certificates(pair):
    server, client = pair
    assert isinstance(server, TlsChannel)
    assert (server.peer, client.peer) == ("client", "server")


def test_role_of_wants_exactly_one():
    names = lambda *uris: {"subjectAltName": tuple(("URI", uri) for uri in uris)}  # noqa: E731
    assert role_of(names("blindformer:role:dealer", "https://x")) == "dealer"
    assert role_of(names("blindformer:role:dealer", "blindformer:role:client")) is None
    assert role_of(names()) is None
    assert role_of({}) is None


def another_ca(certificates, tmp_path):
    """An attacker who trusts our CA but has a certificate of another one."""
    make_certificates(tmp_path)
    context = stranger_context(certificates, "")
    context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    return context


def expired(certificates, tmp_path):
    add_certificate(certificates, "client", days=-1, name="old-client", force=True)
    return stranger_context(certificates, "old-client")


def revoked(certificates, tmp_path):
    add_certificate(certificates, "client", name="lost-client", force=True)
    revoke(certificates, "lost-client")
    return stranger_context(certificates, "lost-client")


def older_tls(certificates, tmp_path):
    context = stranger_context(certificates, "client")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.parametrize(
    ("stranger", "here", "there"),
    [
        (lambda folder, _: client_context(folder, "server"),
         "showed the certificate of a server where a client was expected; give it the certificate of its own role",
         "server: stopped and said: .*certificate of a server where a client was expected"),
        (another_ca, "certificate comes from another CA", "server: refused this side's certificate"),
        (expired, "its certificate has expired; make new certificates",
         "server: refused this side's certificate: it has expired"),
        (revoked, "its certificate was revoked; ask whoever runs the CA for a new one",
         "server: refused this side's certificate: it was revoked; ask whoever runs the CA for a new one"),
        (lambda folder, _: stranger_context(folder, ""), "showed no certificate",
         "server: refused this side: it showed"),
        (older_tls, "does not speak TLS 1.3", "server: does not speak TLS 1.3"),
    ],
    ids=["another role", "another CA", "expired", "revoked", "no certificate", "older TLS"],
)  # fmt: skip
def test_who_may_not_dial_is_refused_on_both_sides(certificates, tmp_path, aside, stranger, here, there):
    """The listener says `here`; the dialler, at the latest at its first read, hears `there`; and nobody else does."""
    context = stranger(certificates, tmp_path)
    with listening(certificates) as listener:
        accepting = aside(listener.accept, 30, {"client"})

        def dial_and_read():
            with dial(*listener.address, context, "server", timeout=PATIENCE) as channel:
                channel.send_message({"hello": 1})
                channel.recv_message()

        with pytest.raises(PeerRefused, match=there):
            dial_and_read()
        with pytest.raises(PeerRefused, match=here):
            accepting.result(PATIENCE)
        still_accepts(listener, certificates, aside)


def test_a_listener_of_another_role_is_refused_by_the_dialler(listener, certificates, aside):
    accepting = aside(listener.accept, 30)
    with pytest.raises(PeerRefused, match="dealer: showed the certificate of a server where a dealer was expected"):
        dial(*listener.address, client_context(certificates, "client"), "dealer")
    server = accepting.result(PATIENCE)
    with pytest.raises(PeerRefused, match="client: stopped and said"):
        server.recv(4)
    server.close()


@pytest.mark.parametrize(
    ("role", "name", "options", "there", "here"),
    [
        ("client", None, {}, "its certificate is not made for this role", "not made for this role"),
        ("server", "lost-server", {}, "its certificate was revoked", "refused this side's certificate: it was revoked"),
        ("server", "elsewhere", {"hosts": ["model.example"]}, "its certificate names another address", "peer at"),
    ],
)
def test_who_may_not_listen_is_refused_by_the_dialler(certificates, aside, role, name, options, there, here):
    if name:
        add_certificate(certificates, role, name=name, force=True, **options)
    if name == "lost-server":
        revoke(certificates, name)
    with listening(certificates, role, name) as listener:
        accepting = aside(listener.accept, 30)
        with pytest.raises(PeerRefused, match=f"server: {there}"):
            dial(*listener.address, client_context(certificates, "client"), "server")
        with pytest.raises(PeerRefused, match=here):
            accepting.result(PATIENCE)


def test_a_listener_of_another_ca(listener, certificates, aside, tmp_path):
    make_certificates(tmp_path)
    accepting = aside(listener.accept, 30)
    with pytest.raises(PeerRefused, match="server: its certificate comes from another CA; all parties need"):
        dial(*listener.address, client_context(tmp_path, "client"), "server")
    with pytest.raises(PeerRefused, match=r"refused this side's certificate"):
        accepting.result(PATIENCE)
    still_accepts(listener, certificates, aside)


# --- plain TCP -------------------------------------------------------------------------------------------------------
def test_plain_tcp_at_the_tls_port(listener, certificates, aside):
    accepting = aside(listener.accept, 30)
    with socket.create_connection(listener.address) as sock:
        sock.sendall(pack_header(MESSAGE, 13) + b'{"hello":true}')
        assert sock.recv(100) == NOT_TLS_ALERT
        with pytest.raises(PeerRefused, match=r"peer at 127\.0\.0\.1: does not speak TLS"):
            accepting.result(PATIENCE)
    still_accepts(listener, certificates, aside)


# --- strangers, and who does not come --------------------------------------------------------------------------------
def test_a_stranger_who_says_nothing_holds_up_nobody(certificates, aside):
    with listening(certificates, seconds=2) as listener:
        silent = [socket.create_connection(listener.address) for _ in range(5)]
        still_accepts(listener, certificates, aside)
        with pytest.raises(PeerRefused, match=r"did not finish the TLS handshake in 2 seconds"):
            listener.accept(PATIENCE)
        for sock in silent:
            sock.close()


def test_strangers_are_counted(certificates, aside):
    with listening(certificates, seconds=5) as listener:
        accepting = aside(listener.accept, 20)
        silent = [socket.create_connection(listener.address) for _ in range(80)]
        with dial(*listener.address, client_context(certificates, "client"), "server"):
            accepting.result(PATIENCE).close()
        assert len(listener._strangers) <= 64
        for sock in silent:
            sock.close()


def test_refusals_can_be_reported_while_accepting_goes_on(listener, certificates, aside):
    refusals = []
    accepting = aside(listener.accept, 30, {"client"}, refusals.append)
    for junk in (b"GET / HTTP/1.0\r\n\r\n", b"\x00" * 50):
        with socket.create_connection(listener.address) as sock:
            sock.sendall(junk)
            assert sock.recv(100) is not None
    with dial(*listener.address, client_context(certificates, "client"), "server"):
        accepting.result(PATIENCE).close()
    assert len(refusals) == 2
    assert "HTTP" in str(refusals[0])


def test_nobody_comes(listener):
    with pytest.raises(PeerTimeout, match=r"client: did not connect to 127.0.0.1:\d+ in 0.1 seconds"):
        listener.accept(0.1, {"client"})


def test_nobody_listens(certificates):
    start = time.monotonic()
    with pytest.raises(PeerGone, match=r"server: nobody listens at .*; start the server"):
        dial("127.0.0.1", free_port(), client_context(certificates, "client"), "server", retry_seconds=0.3)
    assert time.monotonic() - start > 0.1


def test_dialling_waits_for_a_late_listener(certificates, aside):
    context, port = client_context(certificates, "client"), free_port()
    dialling = aside(lambda: dial("127.0.0.1", port, context, "server", retry_seconds=10))
    time.sleep(0.3)
    with listen("127.0.0.1", port, server_context(certificates, "server")) as listener:
        listener.accept(PATIENCE).close()
        dialling.result(PATIENCE).close()


def test_a_listener_that_never_shakes_hands(certificates):
    with socket.create_server(("127.0.0.1", 0)) as sock, pytest.raises(PeerTimeout, match=r"handshake in 0\.3"):
        dial(*sock.getsockname(), client_context(certificates, "client"), "server", handshake_seconds=0.3)


def test_ipv6(certificates, aside):
    try:
        listener = listen("::1", 0, server_context(certificates, "server"))
    except OSError:
        pytest.skip("no IPv6 here")
    with listener:
        still_accepts(listener, certificates, aside)


# --- connections that somebody else accepted -------------------------------------------------------------------------
@pytest.fixture
def accepted(certificates):
    """`accepted(connect)` runs `connect(address)`: (the socket that is accepted from it, the future of its result)."""
    with socket.create_server(("127.0.0.1", 0)) as door, ThreadPoolExecutor(1) as pool:

        def make(connect):
            result = pool.submit(connect, door.getsockname())
            return door.accept()[0], result

        yield make


def test_a_connection_that_somebody_else_accepted_is_welcomed(accepted, certificates):
    context = client_context(certificates, "client")
    sock, dialling = accepted(lambda address: dial(*address, context, "server", timeout=PATIENCE))
    server = welcome(sock, server_context(certificates, "server"), {"client"}, timeout=PATIENCE)
    client = dialling.result(PATIENCE)
    assert (server.peer, client.peer) == ("client", "server")
    own = {
        name: hashlib.sha256(ssl.PEM_cert_to_DER_cert((certificates / f"{name}.pem").read_text())).hexdigest()
        for name in ("server", "client")
    }
    assert (server.certificate.fingerprint, client.certificate.fingerprint) == (own["client"], own["server"])
    server.send(b"ok")
    assert client.recv(2) == b"ok"
    server.close()
    client.close()


@pytest.mark.parametrize(
    ("name", "reason"), [("server", "showed the certificate of a server where a client"), ("", "showed no certificate")]
)
def test_who_is_not_welcome_is_told_and_its_socket_closed(accepted, certificates, name, reason):
    def knock(address):
        with dial(*address, stranger_context(certificates, name), "server", timeout=PATIENCE) as channel:
            channel.recv_message()

    sock, dialling = accepted(knock)
    with pytest.raises(PeerRefused, match=reason):
        welcome(sock, server_context(certificates, "server"), {"client"}, timeout=PATIENCE)
    assert sock.fileno() == -1
    with pytest.raises(PeerRefused):
        dialling.result(PATIENCE)


def test_a_handshake_has_an_end_however_slowly_it_goes_on(accepted, certificates):
    """A byte now and then is no sign of life that counts."""
    stop = threading.Event()

    def trickle(address):
        with socket.create_connection(address) as sock, contextlib.suppress(OSError):
            for byte in b"\x16\x03\x01\x02\x00" + bytes(1000):
                sock.sendall(bytes([byte]))
                if stop.wait(0.05):
                    return

    sock, dialling = accepted(trickle)
    with pytest.raises(PeerTimeout, match=r"did not finish the TLS handshake in 0\.3 seconds"):
        welcome(sock, server_context(certificates, "server"), {"client"}, handshake_seconds=0.3)
    stop.set()
    dialling.result(PATIENCE)


# --- inside TLS -------------------------------------------------------------------------------------------------------
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
