"""Who may call the gateway, and how much: programs of this machine that have a key, and no page of another site. The
owner has no limits, persons have keys and limits of their own.

Before a request's head is complete nothing is known of its sender: such connections are bounded in number and time.

A file holds, by name, the SHA-256 of each person's key; the key itself is shown once, when it is made. It has 256
random bits, so nobody guesses one, and its hash tells nothing: who reads the file learns names. Every hash is compared,
in constant time. A name holds letters, digits and . _ @ -, so that it can forge no line of the log.

Requests a minute are counted in memory, tokens a day on the disk (service/quota.py), over restarts. Tokens are known
when an answer ends: it counts then, also where its caller has left, so the last requests may go over the limit.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...files import locked, whole_file
from ..addresses import network_of
from ..config import GatewayLimits, GatewaySection
from ..service.logs import Log
from ..service.quota import Quota
from ..session.messages import LimitReached, span
from . import KEY_VARIABLE
from .problems import LIMITED, ApiError, GatewayError

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


OWNER = "owner"  # who has the key of [gateway] key, and no limits
DAY, MINUTE = 86400.0, 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


def read_keys(file: Path) -> dict[str, str]:
    """Hashes of keys by name; none if there is no file. Errors: GatewayError."""
    try:
        keys = json.loads(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not JSON"
        raise GatewayError(f"{file}: cannot be read ({reason}); mend it, or name another in [gateway] keys") from None
    if not isinstance(keys, dict) or not all(_NAME.fullmatch(n) and _HASH.fullmatch(str(h)) for n, h in keys.items()):
        raise GatewayError(f"{file}: is no file of keys; name another in [gateway] keys, or delete it")
    return keys


def add_key(file: Path, name: str) -> str:
    """A new key for this person. Errors: GatewayError."""
    if not _NAME.fullmatch(name) or name == OWNER:
        raise GatewayError(f"{name[:80]!r}: is no name; use letters, digits and . _ @ - (at most 64), and not {OWNER}")
    key = f"bf-{secrets.token_urlsafe(32)}"
    with _changed(file) as keys:
        if name in keys:
            raise GatewayError(f"{name}: has a key already; remove it first: blindformer keys remove {name}")
        keys[name] = _hash(key)
    return key


def remove_key(file: Path, name: str) -> None:
    """A running gateway refuses the key seconds later. Errors: GatewayError."""
    with _changed(file) as keys:
        if name not in keys:
            raise GatewayError(f"{name[:80]!r}: has no key in {file}; see: blindformer keys list")
        del keys[name]


@contextmanager
def _changed(file: Path) -> Iterator[dict[str, str]]:
    """The keys, which are written as the block leaves them. Others who change them wait. Errors: GatewayError."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(file.parent):
            keys = read_keys(file)
            yield keys
            with whole_file(file, 0o644, durable=True) as stream:  # the gateway may run as another user
                stream.write(json.dumps(keys, indent=1).encode() + b"\n")
    except OSError as error:
        raise GatewayError(f"{file}: cannot be written ({error.strerror}); name another in [gateway] keys") from None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class People:
    """Who a key belongs to, and what that person may still ask."""

    def __init__(self, mine: GatewaySection, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`key`: the owner's. Errors: GatewayError, QuotaError."""
        self._mine, self._owner, self._clock = mine, _hash(key), clock
        self._admitting = threading.Lock()
        self._asked: dict[str, list[float]] = {}  # by name, when within the last minute
        limits = [mine, *mine.people.values()]
        self._tokens: Quota | None = None
        if any(one.tokens_per_day for one in limits):
            mine.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tokens = Quota(mine.state, 1, DAY)
        self._changed: object = None
        self._hashes: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again if it has changed. Errors: GatewayError; who could call before still can."""
        try:
            about = self._mine.keys.stat()
            changed: object = (about.st_mtime_ns, about.st_ino, about.st_size)
        except OSError:
            changed = None
        if changed != self._changed:
            self._hashes = read_keys(self._mine.keys)
            self._changed = changed

    def find(self, key: str) -> str:
        """The name of whose key it is; empty: nobody's."""
        given, name = _hash(key), ""
        for person, hashed in [*self._hashes.items(), (OWNER, self._owner)]:
            if hmac.compare_digest(given, hashed):
                name = person
        return name

    def limits(self, name: str) -> GatewayLimits:
        """What a person may ask: as its own section says, else [gateway]."""
        if name == OWNER:
            return GatewayLimits()
        own = self._mine.people.get(name, self._mine)
        return GatewayLimits(
            requests_per_minute=own.requests_per_minute or self._mine.requests_per_minute,
            tokens_per_day=own.tokens_per_day or self._mine.tokens_per_day,
        )

    def admit(self, name: str) -> None:
        """Count a request. Errors: ApiError (429) beyond a limit, and nothing is counted."""
        with self._admitting:
            self._admit(name, self.limits(name), self._clock())

    def _admit(self, name: str, limits: GatewayLimits, now: float) -> None:
        if most := limits.tokens_per_day:
            assert self._tokens is not None
            try:
                self._tokens.check(name, 1, most)
            except LimitReached as error:
                raise _limited(f"{most:,} tokens in a day", error.retry_after) from None
        if most := limits.requests_per_minute:
            asked = self._asked[name] = [at for at in self._asked.get(name, []) if at > now - MINUTE]
            if len(asked) >= most:
                raise _limited(f"{most:,} requests in a minute", asked[0] + MINUTE - now)
            asked.append(now)

    def count(self, name: str, tokens: int) -> None:
        """An answer took so many. Errors: QuotaError."""
        if self._tokens is not None and self.limits(name).tokens_per_day:
            self._tokens.count(name, tokens)


def _limited(what: str, retry_after: float) -> ApiError:
    text = f"limit: your key may ask {what}; ask again in {span(max(retry_after, 1.0))}"
    return ApiError(429, text, kind=LIMITED, code="limit_reached", retry_after=retry_after)
