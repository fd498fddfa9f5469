"""Who may call the gateway: programs of this machine that have a key, and no page of another site.

Before a request's head is complete nothing is known of its sender: such connections are bounded in number and time.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...files import whole_file
from ..addresses import network_of
from ..service.logs import Log
from . import KEY_VARIABLE
from .people import People
from .problems import ApiError, GatewayError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
WITHOUT_KEY = frozenset({"/", "/health", "/readyz"})
LEAST_KEY = 20  # characters
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
HEAD_SECONDS = 10.0  # for the first head; between a reply and the next one uvicorn counts (timeout_keep_alive)
HEADS = 128


class Guard:
    """Checks Host (another site's name may have been made to point here), Origin and the key, before anything is read.
    Requests go on with the name of the key's owner, `request.state.caller`.

    `hosts`: names that the gateway is called by, besides this machine's own.
    """

    def __init__(self, app: ASGIApp, people: People, log: Log, hosts: Collection[str] = ()) -> None:
        self.app, self._people, self._log = app, people, log
        self._hosts = LOOPBACK | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        caller = self._people.find(_key_in(headers))
        why = self._refusal(scope["path"], headers, caller)
        if why is not None:
            address = scope["client"][0] if scope.get("client") else ""
            self._log.warning("refused", address=address, kind=why.code or "")
        scope["state"] = {**scope.get("state", {}), "caller": caller}
        await (self.app if why is None else why.response())(scope, receive, send_with_headers)

    def _refusal(self, path: str, headers: Headers, caller: str) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if _host_name(f"//{host}") not in self._hosts:
            known = "call it by localhost, or name the host in [gateway] hosts"
            return ApiError(403, f"Host: the gateway is not called so; {known}", code="host_not_allowed")
        elsewhere = origin is not None and origin.lower().partition("://")[2] != host.lower()
        if elsewhere or (path != "/" and headers.get("sec-fetch-site") in ("cross-site", "same-site")):
            return ApiError(403, "Origin: pages of other sites may not call the gateway", code="origin_not_allowed")
        if path in WITHOUT_KEY or caller:
            return None
        what = "wrong" if headers.get("authorization", "").partition(" ")[2] else "missing"
        remedy = "send the header Authorization: Bearer KEY; `blindformer gateway` says where the key is"
        return ApiError(401, f"key: is {what}; {remedy}", code="invalid_api_key")


def _key_in(headers: Headers) -> str:
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else ""


def _host_name(address: str) -> str:
    """The host in it, without port and brackets; empty where there is none."""
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


def find_key(path: Path) -> tuple[str, str]:
    """The key that callers show, and where it is: from the environment, or from a file that only its owner can read,
    made at first use. Errors: GatewayError; the message never holds the key."""
    if (given := os.environ.get(KEY_VARIABLE)) is not None:
        return _checked(given, KEY_VARIABLE), KEY_VARIABLE
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                with whole_file(path, 0o600, new=True) as file:
                    file.write(f"bf-{secrets.token_urlsafe(32)}\n".encode())
            except FileExistsError:  # another gateway was quicker
                pass
        if path.stat().st_mode & 0o077:
            raise GatewayError(f"{path}: others on this machine can read the key; run: chmod 600 {path}")
        return _checked(path.read_text(encoding="ascii"), str(path)), str(path)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "is not ASCII"
        raise GatewayError(
            f"{path}: the key cannot be read or written ({reason}); set [gateway] key or {KEY_VARIABLE}"
        ) from None


def _checked(key: str, place: str) -> str:
    key = key.strip()
    if len(key) < LEAST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        raise GatewayError(
            f"{place}: a key has {LEAST_KEY} or more ASCII characters, no spaces; delete it to get a new one"
        )
    return key


class PendingHeads:
    """Connections that wait for the head of a request. Where there are too many, the oldest one of the network that
    has most is closed: an honest caller's head comes at once."""

    def __init__(self, most: int = HEADS, seconds: float = HEAD_SECONDS) -> None:
        self.most, self.seconds = most, seconds
        self._waiting: dict[HeadProtocol, asyncio.TimerHandle] = {}

    def begin(self, connection: HeadProtocol) -> None:
        self.end(connection)
        if len(self._waiting) >= self.most:
            by_network = Counter(waiting.network for waiting in self._waiting)
            self._drop(max(self._waiting, key=lambda waiting: by_network[waiting.network]))  # of these the oldest
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.call_later(self.seconds, self._drop, connection)

    def end(self, connection: HeadProtocol) -> None:
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _drop(self, connection: HeadProtocol) -> None:
        self.end(connection)
        connection.transport.close()


class HeadProtocol(H11Protocol):
    """uvicorn's, which would wait for a head for ever. `Config(http=partial(HeadProtocol, heads=PendingHeads()))`."""

    def __init__(self, *args: Any, heads: PendingHeads, **options: Any) -> None:
        super().__init__(*args, **options)
        self._heads = heads

    @property
    def network(self) -> str:
        return network_of(self.client[0]) if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heads.begin(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._heads.end(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._heads.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heads.end(self)
        super().connection_lost(exc)
