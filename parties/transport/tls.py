"""Connecting parties: listen, accept, dial; TLS 1.3 with a certificate on both sides.

The role of a peer is read from its verified certificate (the URI `blindformer:role:<role>` in the subject
alternative names, see certificates/issuing.py), so a client's certificate cannot act as a dealer.

TLS runs over memory buffers (`ssl.SSLObject`) rather than an `ssl.SSLSocket`: a socket's TLS makes three system
calls for every 16 KiB record, this makes two for every 256 KiB. Measured on loopback, 8 MB both ways at once between
two processes: 0.9 GB/s against 1.2 GB/s each way.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

from ...protocols.errors import PeerGone, PeerRefused, PeerTimeout
from .frames import explain, send_error
from .stream import PlainWire, StreamChannel

ROLE_URI = "blindformer:role:"
RECORDS_PER_KEY = int(2**24.5)  # RFC 8446, section 5.5; Python's ssl cannot ask for a new key in mid-connection
HANDSHAKE_SECONDS = 10.0
HANDSHAKES_AT_ONCE = 64  # the most half-open connections of strangers; one more drops the oldest
READ_AHEAD = 256 * 1024
RECORD_BYTES = 16384  # the most one TLS record carries
NOT_TLS_ALERT = bytes((0x15, 3, 3, 0, 2, 2, 70))  # fatal, protocol_version
_OWN_CERTIFICATE = "give it the certificate of its own role, and check the address and port"


class TlsWire(PlainWire):
    """TLS 1.3 over TCP. First call `handshake` until it returns True. Errors: also ssl.SSLError."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str | None = None) -> None:
        """`host` is the name the peer's certificate must carry, on the side that dials; None on the other."""
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._pending = memoryview(b"")  # ciphertext the socket has not taken yet
        self.records = 0  # sent, all under one key
        self._said_anything = False
        self._ahead = memoryview(bytearray(READ_AHEAD))

    def handshake(self) -> bool:
        """One step. True when the peer is known; False when the socket has to become ready first.

        Errors: OSError (ssl.SSLError with it); the alert for the peer is already on its way.
        """
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.flush()
                if not self._fill():
                    return False
            except ssl.SSLError:
                if not self.has_output and not self._said_anything:
                    # OpenSSL hangs up without an alert on bytes that are not TLS. Tell a plain peer the reason.
                    self._pending = memoryview(NOT_TLS_ALERT)
                with contextlib.suppress(OSError):
                    self.flush()
                raise
            else:
                return self.flush()

    @property
    def has_output(self) -> bool:
        return len(self._pending) > 0 or self._outgoing.pending > 0

    def write(self, data: memoryview) -> int:
        if not self.flush():
            return 0
        count = self.tls.write(data)
        self.records += -(-count // RECORD_BYTES)
        self.flush()
        return count

    def flush(self) -> bool:
        while len(self._pending) or self._outgoing.pending:
            if not len(self._pending):
                self._pending = memoryview(self._outgoing.read())
            count = super().write(self._pending)
            if not count:
                return False
            self._said_anything = True
            self._pending = self._pending[count:]
        return True

    def read_into(self, view: memoryview) -> int:
        while True:
            if not (self._incoming.pending or self.tls.pending() or self._fill()):
                return -1
            try:
                return cast(int, self.tls.read(len(view), cast(bytearray, view)))  # typeshed knows no memoryview here
            except ssl.SSLWantReadError:
                if not self._fill():
                    return -1
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return 0

    def consumed(self) -> int:
        return self.moved - self._incoming.pending

    def close(self, linger: float) -> None:
        with contextlib.suppress(OSError):  # want-read is one: we do not wait for the peer's goodbye
            self.tls.unwrap()
        with contextlib.suppress(OSError):
            self.flush()
        super().close(linger)

    def _fill(self) -> bool:
        """Hand TLS what the socket has. False when it has nothing."""
        count = super().read_into(self._ahead)
        if count > 0:
            self._incoming.write(self._ahead[:count])
        elif count == 0:
            self._incoming.write_eof()
        return count >= 0


class TlsChannel(StreamChannel):
    """A channel whose peer has proved its role with a certificate. Made by `dial` and `Listener.accept`."""

    def __init__(self, wire: TlsWire, peer: str, timeout: float = 60) -> None:
        super().__init__(wire, peer, timeout)
        self._tls_wire = wire
        self.certificate = PeerCertificate(wire.tls)

    def _check_usable(self, sending: bool, receiving: bool) -> None:
        super()._check_usable(sending, receiving)
        if sending and self._tls_wire.records > RECORDS_PER_KEY:
            what = "this connection has sent all that one TLS key may encrypt (about 380 GB)"
            raise PeerGone(self.peer, what, "open a new one between two queries")


def role_of(certificate: Mapping[str, Any]) -> str | None:
    """The role in a certificate as `getpeercert` returns it; None unless it has exactly one."""
    roles = [
        value.removeprefix(ROLE_URI)
        for kind, value in certificate.get("subjectAltName", ())
        if kind == "URI" and value.startswith(ROLE_URI)
    ]
    return roles[0] if len(roles) == 1 else None


class PeerCertificate:
    """The verified certificate of a peer. Each field is text.

    fingerprint   its SHA-256 (DER), hex: the identity of the peer
    serial        its number at its CA, hex: a list of revoked certificates names it
    name          its subject, whatever its key and number: commonName=blindformer alice
    """

    def __init__(self, tls: ssl.SSLObject) -> None:
        certificate: Mapping[str, Any] = tls.getpeercert() or {}
        subject = [f"{kind}={value}" for part in certificate.get("subject", ()) for kind, value in part]
        self.fingerprint = hashlib.sha256(tls.getpeercert(True) or b"").hexdigest()
        self.serial = str(certificate.get("serialNumber", "0")).lower()
        self.role, self.name = role_of(certificate), ", ".join(subject) or self.fingerprint


class Listener:
    """Accepts one verified channel at a time; handshakes of several strangers go on side by side.

    So a connection that never finishes its handshake blocks no other, and is dropped after `handshake_seconds`.
    """

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        timeout: float = 60,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        """`sock` is bound and listens. `timeout` (seconds) is the one of the channels to come."""
        sock.setblocking(False)
        self._sock = sock
        self._context = context
        self._timeout = timeout
        self._handshake_seconds = handshake_seconds
        self._strangers: dict[int, tuple[TlsWire, str, float]] = {}  # by file number: wire, address, deadline

    @property
    def address(self) -> tuple[str, int]:
        """Host and port actually bound."""
        return self._sock.getsockname()[:2]

    def accept(
        self,
        timeout: float | None = None,
        expect_roles: Collection[str] | None = None,
        refused: Callable[[PeerRefused], None] | None = None,
    ) -> TlsChannel:
        """The next peer that shows a good certificate and has one of `expect_roles` (any role when None).

        A peer turned down raises `PeerRefused`, or is handed to `refused` while accepting goes on. Either way the
        listener stays usable. `timeout` is in seconds, None waits for ever.

        Errors: `PeerRefused`; `PeerTimeout` when nobody came in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            try:
                channel = self._step(deadline, expect_roles)
            except PeerRefused as error:
                if refused is None:
                    raise
                refused(error)
                continue
            if channel is not None:
                return channel
            if deadline is not None and time.monotonic() >= deadline:
                who = "|".join(sorted(expect_roles)) if expect_roles else "peer"
                host, port = self.address
                raise PeerTimeout(
                    who, f"did not connect to {host}:{port} in {timeout:g} seconds", "start it, or wait longer"
                )

    def close(self) -> None:
        """Stop listening and drop unfinished handshakes. Safe to call twice."""
        for wire, _, _ in list(self._strangers.values()):  # another thread may be accepting
            wire.sock.close()
        self._strangers.clear()
        self._sock.close()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _step(self, deadline: float | None, expect_roles: Collection[str] | None) -> TlsChannel | None:
        """Wait for one event and serve it."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        ends = [] if deadline is None else [deadline]
        for number, (wire, _, end) in self._strangers.items():
            poll.register(number, select.POLLIN | (select.POLLOUT if wire.has_output else 0))
            ends.append(end)
        wait = max(0.0, min(ends) - time.monotonic()) * 1000 + 1 if ends else None
        ready = [number for number, _ in poll.poll(wait)]
        for number in ready:
            if number in self._strangers:
                channel = self._advance(number, expect_roles)
                if channel is not None:
                    return channel
        self._drop_slow()
        if self._sock.fileno() in ready:
            self._meet()
        return None

    def _meet(self) -> None:
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, ConnectionError):
            return
        if len(self._strangers) >= HANDSHAKES_AT_ONCE:
            oldest = min(self._strangers, key=lambda number: self._strangers[number][2])
            self._strangers.pop(oldest)[0].sock.close()
        end = time.monotonic() + self._handshake_seconds
        self._strangers[sock.fileno()] = (TlsWire(sock, self._context), f"peer at {address[0]}", end)

    def _advance(self, number: int, expect_roles: Collection[str] | None) -> TlsChannel | None:
        wire, name, _ = self._strangers[number]
        try:
            if not wire.handshake():
                return None
        except OSError as error:
            del self._strangers[number]
            wire.close(0.0)
            raise explain(name, error, handshaking=True) from error
        del self._strangers[number]
        return _introduce(wire, name, expect_roles, self._timeout)

    def _drop_slow(self) -> None:
        now = time.monotonic()
        for number, (wire, name, end) in list(self._strangers.items()):
            if now >= end:
                del self._strangers[number]
                wire.sock.close()
                what = f"did not finish the TLS handshake in {self._handshake_seconds:g} seconds"
                raise PeerRefused(name, what, "check what connects to this port")


def listen(
    host: str,
    port: int,
    context: ssl.SSLContext,
    *,
    timeout: float = 60,
    handshake_seconds: float = HANDSHAKE_SECONDS,
) -> Listener:
    """Listen on `host:port` (port 0 picks a free one). Errors: OSError when the address cannot be bound."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.create_server(address[:2], family=family, backlog=64)
    return Listener(sock, context, timeout, handshake_seconds)


def welcome(
    sock: socket.socket,
    context: ssl.SSLContext,
    expect_roles: Collection[str],
    *,
    timeout: float = 60,
    handshake_seconds: float = HANDSHAKE_SECONDS,
) -> TlsChannel:
    """The channel over a connection that is accepted already, once its peer has proved one of `expect_roles`.

    Errors: `PeerRefused`, `PeerTimeout`; `sock` is closed then.
    """
    try:
        name = f"peer at {sock.getpeername()[0]}"
        wire = TlsWire(sock, context)
        _shake_hands(wire, name, handshake_seconds)
    except OSError as error:
        sock.close()
        raise explain("peer", error, handshaking=True) from error
    except BaseException:
        sock.close()
        raise
    return _introduce(wire, name, expect_roles, timeout)


def dial(
    host: str,
    port: int,
    context: ssl.SSLContext,
    expect_role: str,
    *,
    timeout: float = 60,
    retry_seconds: float = 0,
    handshake_seconds: float = HANDSHAKE_SECONDS,
) -> TlsChannel:
    """Connect to the party with `expect_role` at `host:port`; retry for `retry_seconds` while no party listens there.

    With TLS 1.3 a peer that refuses our certificate says so only after our side of the handshake is done: that
    `PeerRefused` comes from the channel's first read.

    Errors: `PeerGone` if no party listens, `PeerTimeout`, `PeerRefused`.
    """
    sock = tcp_connect(host, port, expect_role, min(timeout, handshake_seconds), retry_seconds)
    try:
        wire = TlsWire(sock, context, host)
        _shake_hands(wire, expect_role, handshake_seconds)
    except BaseException:
        sock.close()
        raise
    return _introduce(wire, expect_role, (expect_role,), timeout)


def tcp_connect(host: str, port: int, role: str, timeout: float, retry_seconds: float) -> socket.socket:
    """A TCP connection. Errors: `PeerGone`, `PeerTimeout`."""
    end, pause = time.monotonic() + retry_seconds, 0.05
    while True:
        try:
            return socket.create_connection((host, port), timeout)
        except socket.gaierror as error:
            raise PeerGone(role, f"the host name {host!r} is not known", "check the address") from error
        except OSError as error:
            if time.monotonic() + pause >= end:
                remedy = f"start the {role}, or check the address"
                if isinstance(error, TimeoutError):
                    raise PeerTimeout(role, f"{host}:{port} did not answer in {timeout:g} seconds", remedy) from error
                raise PeerGone(role, f"nobody listens at {host}:{port}", remedy) from error
        time.sleep(pause)
        pause = min(2 * pause, 0.5)


def _shake_hands(wire: TlsWire, role: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    poll = select.poll()
    poll.register(wire.fileno(), select.POLLIN)
    try:
        while not wire.handshake():
            poll.modify(wire.fileno(), select.POLLIN | (select.POLLOUT if wire.has_output else 0))
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                what = f"did not finish the TLS handshake in {seconds:g} seconds"
                raise PeerTimeout(role, what, "check that this is its address and port, and that it still runs")
    except OSError as error:
        raise explain(role, error, handshaking=True) from error


def _introduce(wire: TlsWire, name: str, expect_roles: Collection[str] | None, timeout: float) -> TlsChannel:
    """The channel of a peer whose certificate is verified, once its role is the expected one."""
    role = PeerCertificate(wire.tls).role
    if role is not None and (expect_roles is None or role in expect_roles):
        return TlsChannel(wire, role, timeout)
    shown = f"the certificate of a {role}" if role else "a certificate without a role"
    wanted = " or ".join(sorted(expect_roles)) if expect_roles else "party"
    error = PeerRefused(name, f"showed {shown} where a {wanted} was expected", _OWN_CERTIFICATE)
    channel = TlsChannel(wire, name, min(timeout, 1.0))
    send_error(channel, error)
    channel.close()
    raise error
