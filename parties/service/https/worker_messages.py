"""What the service and its workers say to each other on a pair of sockets: a JSON head, then bytes it announces."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

LENGTH = struct.Struct("<I")
MOST_HEAD = 1 << 22


def pack_message(head: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps({**head, "bytes": len(body)}).encode()
    return LENGTH.pack(len(text)) + text + body


def receive_message(sock: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """In a worker: the next message; None when the service is gone."""

    def exactly(count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            more = sock.recv(min(1 << 20, count - len(found)))
            if not more:
                raise EOFError
            found += more
        return bytes(found)

    try:
        head = json.loads(exactly(LENGTH.unpack(exactly(LENGTH.size))[0]))
        return head, exactly(head["bytes"])
    except EOFError:
        return None


async def read_message(stream: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """The same for the service. Errors: asyncio.IncompleteReadError."""
    (length,) = LENGTH.unpack(await stream.readexactly(LENGTH.size))
    if length > MOST_HEAD:
        raise asyncio.IncompleteReadError(b"", length)
    head = json.loads(await stream.readexactly(length))
    return head, await stream.readexactly(head["bytes"])
