"""What the service and its workers say to each other on a pair of sockets: a JSON head, then bytes it announces."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct("<I")
MOST_HEAD = 1 << 22


def packed(head: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps({**head, "bytes": len(body)}).encode()
    return LENGTH.pack(len(text)) + text + body


def receive(sock: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None when the other side is gone."""
    start = _exactly(sock, LENGTH.size)
    if start is None:
        return None
    text = _exactly(sock, LENGTH.unpack(start)[0])
    if text is None:
        return None
    head = json.loads(text)
    body = _exactly(sock, head["bytes"])
    return None if body is None else (head, body)


def _exactly(sock: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        more = sock.recv(min(1 << 20, count - len(found)))
        if not more:
            return None
        found += more
    return bytes(found)


async def read(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """The same for the service. Errors: asyncio.IncompleteReadError."""
    (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
    if length > MOST_HEAD:
        raise asyncio.IncompleteReadError(b"", length)
    head = json.loads(await stream.readexactly(length))
    return head, await stream.readexactly(head["bytes"])
