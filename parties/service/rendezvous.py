"""Two processes of the server serve one session, the helper's and the owner's: here they find each other.

Each connection has a process of its own (service/), so the owner's shares come into one process and are needed in
another. Whoever comes first leaves a Unix socket under the session's name and waits; the other one calls it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from ...protocols.errors import BlindformerError, PeerError, PeerGone, PeerRefused, PeerTimeout
from ..transport.stream import PlainWire, StreamChannel

OWNER, SESSION = "client", "helper"  # by the role of who sits at the other end of the process's own connection
_OTHER = {OWNER: SESSION, SESSION: OWNER}


BEAT = 1.0  # seconds
PATH_BYTES = 107 - 33  # what the system allows for a socket's name, less a session's id


class RendezvousError(BlindformerError):
    """The server's processes of one session cannot meet."""


class Rendezvous:
    """`folder`: of this service alone, mode 0700. Errors: `RendezvousError` if its path is too long for a socket."""

    def __init__(self, folder: Path) -> None:
        if len(os.fsencode(folder)) > PATH_BYTES:
            raise RendezvousError(f"{folder}: is too long a path for a Unix socket; set TMPDIR to a shorter one")
        self.folder = folder

    def meet(self, session: str, seat: str, timeout: float, alive: Callable[[], None] = lambda: None) -> StreamChannel:
        """The channel to the process that serves the other peer of this session; `seat`: the role of our own peer.

        `alive` is called every second of waiting, to tell our own peer, and to see whether it is still there.

        Its `peer` is who is spoken to through it: the owner ("client") for the session's process, and for the owner's
        process the server itself.

        Errors: `PeerTimeout` if the other peer does not come, `PeerRefused` if there are two of one kind.
        """
        other = _OTHER[seat]
        sock = self._call(session) or self._wait(session, other, timeout, alive)
        channel = StreamChannel(PlainWire(sock), "server" if seat == OWNER else OWNER, timeout)
        try:
            channel.send_message({"seat": seat})
            if channel.recv_message().get("seat") != other:
                what = f"is in this session already, as {seat}"
                raise PeerRefused(seat, what, "draw a new session's id for every session")
        except PeerError:
            channel.close()
            raise
        return channel

    def _call(self, session: str) -> socket.socket | None:
        """The one that came first; None if nobody has."""
        caller = socket.socket(socket.AF_UNIX)
        try:
            caller.connect(str(self.folder / session))
        except FileNotFoundError:
            caller.close()
            return None
        except OSError:
            caller.close()
            raise PeerGone("client", "its session is over", "open a new session") from None
        return caller

    def _wait(self, session: str, other: str, timeout: float, alive: Callable[[], None]) -> socket.socket:
        place, draft = self.folder / session, self.folder / secrets.token_hex(8)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.bind(str(draft))
            waiting.listen(1)
            try:
                os.link(draft, place)  # it listens before it has its name; and a name is given once
            except FileExistsError:
                found = self._call(session)  # both came at once
                if found is not None:
                    return found
                raise PeerGone(other, "has left again", "open a new session") from None
            finally:
                draft.unlink()
            try:
                end = time.monotonic() + timeout
                while (left := end - time.monotonic()) > 0:
                    waiting.settimeout(min(left, BEAT))
                    with contextlib.suppress(TimeoutError):
                        return waiting.accept()[0]
                    alive()
                what = f"did not come to the server in {timeout:g} seconds"
                raise PeerTimeout(other, what, f"see the {other}'s own message, then open a new session")
            finally:
                with contextlib.suppress(FileNotFoundError):
                    place.unlink()
