"""The client's side of the HTTP interface: a connection for each request, and errors as the project has them."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ...protocols.errors import PeerGone, PeerProtocolError, PeerRefused, PeerTimeout
from ..config import Address
from ..session.compute_slots import LimitReached, SlotsBusy
from ..transport.frames import explain, printable
from ..transport.tls import HANDSHAKE_SECONDS, role_of, tcp_connect

SERVER = "server"
MOST_LINE = 1 << 26  # of a reply: an answer of a few ciphertexts
MOST_JSON = 1 << 24


class KeysGone(PeerRefused):
    """The server has no keys of this client, or no more."""


class Api:
    """Asks the server at an address. `sent`, `received`: bytes of bodies; `date`: the last reply's, by the server's
    clock. Errors of all methods: PeerError, SlotsBusy, LimitReached."""

    def __init__(self, address: Address, context: ssl.SSLContext, timeout: float) -> None:
        self.address, self._context, self._timeout = address, context, timeout
        self.sent = self.received = 0
        self.date: str | None = None

    def use(self, context: ssl.SSLContext) -> None:
        """For connections to come."""
        self._context = context

    def ask(self, method: str, path: str, body: Iterable[bytes] | None = None) -> dict[str, Any]:
        """One request, and its reply as JSON ({} if there is none)."""
        with self._exchange(method, path, body) as reply:
            text = reply.read(MOST_JSON)
            return self._parsed(text) if text else {}

    def lines(self, path: str, body: Iterable[bytes]) -> Iterator[dict[str, Any]]:
        """One request, and the lines of its reply as they come."""
        with self._exchange("POST", path, body) as reply:
            while text := reply.readline(MOST_LINE):
                yield self._parsed(text)

    @contextmanager
    def _exchange(self, method: str, path: str, body: Iterable[bytes] | None) -> Iterator[http.client.HTTPResponse]:
        connection = ServerConnection(self.address, self._context, self._timeout)
        try:
            with _explained():
                connection.connect()
                reply = self._sent(connection, method, path, body)
                self.date = reply.headers.get("date")
                if reply.status >= 400:
                    raise self._refusal(reply)
                yield reply
        finally:
            connection.close()

    def _sent(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Iterable[bytes] | None
    ) -> http.client.HTTPResponse:
        chunked = {"Transfer-Encoding": "chunked", "Content-Type": "application/octet-stream"} if body else {}
        try:
            connection.request(method, path, body and map(self._count, body), chunked, encode_chunked=bool(body))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            with suppress(OSError, http.client.HTTPException):  # it may have said why
                return connection.getresponse()
            raise
        return connection.getresponse()

    def _count(self, piece: bytes) -> bytes:
        self.sent += len(piece)
        return piece

    def _refusal(self, reply: http.client.HTTPResponse) -> Exception:
        text = reply.read(65536)
        why = f"answered {reply.status} {reply.reason}"
        with suppress(ValueError, AttributeError, TypeError, KeyError):
            body = json.loads(text)
            why = str(body.get("error", why))
            if reply.status == 429:
                limit, later = body["limit"], float(reply.headers["retry-after"])
                return LimitReached(SERVER, int(limit["each"]), float(limit["period_s"]), later)
        return refusal(reply.status, why, reply.headers.get("retry-after", ""))

    def _parsed(self, text: bytes) -> dict[str, Any]:
        self.received += len(text)
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise PeerProtocolError(SERVER, "sent something that is no JSON object", "check that it is a Blindformer")
        return row


def refusal(status: int, why: str, retry_after: str = "") -> Exception:
    """The error for what the server says no to."""
    what, _, remedy = printable(why).rpartition("; ")
    if status == 503:
        return SlotsBusy(SERVER, float(retry_after) if retry_after.isdigit() else 5.0)
    kind = KeysGone if status == 410 else PeerRefused
    return kind(SERVER, what or remedy, remedy if what else "see its log")


class ServerConnection(http.client.HTTPConnection):
    """TLS with a certificate on both sides, to a host whose certificate names it and has the role of a server."""

    def __init__(self, address: Address, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(address.host, address.port, timeout=timeout)
        self._tls = context

    def connect(self) -> None:
        plain = tcp_connect(self.host, self.port, SERVER, min(self.timeout or 60.0, HANDSHAKE_SECONDS), 0)
        try:
            plain.settimeout(self.timeout)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except OSError as error:
            plain.close()
            if isinstance(error, TimeoutError):
                raise
            raise explain(SERVER, error, handshaking=True) from error
        role = role_of(self.sock.getpeercert() or {})
        if role != SERVER:
            raise PeerRefused(
                SERVER, f"showed the certificate of {role or 'no role'}", "check the address, and its certificate"
            )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise PeerTimeout(SERVER, "did not answer in time", "see its log, or wait longer") from None
    except http.client.HTTPException as error:
        what = f"does not speak HTTP as it should ({type(error).__name__})"
        raise PeerGone(SERVER, what, "see its log; is it serving protocol ckks?") from None
    except OSError as error:
        raise explain(SERVER, error) from error
