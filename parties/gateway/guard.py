"""Who may call: this machine's own programs, with the key. A page of another site may not, whatever name it uses."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .problems import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
WITHOUT_KEY = frozenset({"/", "/health"})
SAID_ALWAYS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Checks Host (a name that was made to point here is another site's), Origin and the key, before anything is read.

    `hosts`: names that the gateway is called by, besides this machine's own.
    """

    def __init__(self, app: ASGIApp, key: str, hosts: Collection[str] = ()) -> None:
        self.app, self._key = app, key.encode()
        self._hosts = LOOPBACK | {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAID_ALWAYS.items():
                    headers.setdefault(name, value)
            await send(message)

        why = self._refusal(scope["path"], Headers(scope=scope))
        await (self.app if why is None else why.response())(scope, receive, send_more)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if _name(f"//{host}") not in self._hosts:
            known = "call it by localhost, or name the host in [gateway] hosts"
            return ApiError(403, f"Host: the gateway is not called so; {known}", code="host_not_allowed")
        elsewhere = origin is not None and origin.lower().partition("://")[2] != host.lower()
        if elsewhere or (path != "/" and headers.get("sec-fetch-site") in ("cross-site", "same-site")):
            return ApiError(403, "Origin: pages of other sites may not call the gateway", code="origin_not_allowed")
        if path in WITHOUT_KEY:
            return None
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key):
            return None
        what = "wrong" if given else "missing"
        remedy = "send the header Authorization: Bearer KEY; `blindformer gateway` says where the key is"
        return ApiError(401, f"key: is {what}; {remedy}", code="invalid_api_key")


def _name(address: str) -> str:
    """The host in it, without port and brackets; empty where there is none."""
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""
