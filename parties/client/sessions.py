"""The sessions of one client, by program: opened when they are asked, kept, and replaced when they are lost."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from ...models.artifacts import ClientLength
from ...protocols.errors import PeerDropped, PeerGone
from ..session.compute_slots import SlotsBusy
from ..session.online import Progress
from .session import ClientError, Session

T = TypeVar("T")
Open = Callable[[ClientLength, Progress], Session]
REOPEN_SECONDS = 1.0  # between attempts to reach parties that questions were lost to


class Sessions:
    """`open` opens one, for a length and with a `progress` to call. `wait`: seconds to go on asking a server that is
    busy, or that comes back.

    makes_room  a session with another program is closed for a server that is busy: it bounds how many a client may have
    lock        held while questions are asked, errors and waiting included
    progress    called with (phase, done, total)
    """

    def __init__(self, open: Open, wait: float, progress: Progress | None = None, makes_room: bool = False) -> None:
        self._open, self.wait, self.progress, self.makes_room = open, wait, progress, makes_room
        self.lock: AbstractContextManager[object] = threading.Lock()
        self.closed = False
        self._by_key: dict[str, Session] = {}

    def get(self, part: ClientLength, name: str = "") -> Session:
        """The open session of a program, or a new one. `name`: of the conversation whose state it keeps. Errors:
        PeerError, SlotsBusy, LaunchError."""
        session = self.opened(part, name)
        if session is None:
            session = self._by_key[part.program.hash() + name] = self._open(part, self.report_progress)
        return session

    def opened(self, part: ClientLength, name: str = "") -> Session | None:
        session = self._by_key.get(part.program.hash() + name)
        return session if session is not None and session.open else None

    def lost(self, part: ClientLength, error: BaseException, name: str = "") -> bool:
        """Close what an error has spoilt. Whether another attempt may succeed."""
        session = self._by_key.get(part.program.hash() + name)
        return session is not None and session.lost(error)

    def ask_with_retry(
        self, connect: Callable[[], object], ask: Callable[[], T], lost: Callable[[BaseException], bool]
    ) -> tuple[T, str]:
        """Connect and ask; retry once after a lost session, and until `wait` expires while a server is busy, which has
        not taken what was asked. Returns (result, reason for the retry). `lost`: closes what an error has spoilt, and
        says whether another attempt may succeed.

        Between two attempts, one that cannot be reached may be coming back: it is tried until `wait` expires. So is one
        that has kept this side waiting before it hung up, as a crowded service does.
        """
        if self.closed:
            raise ClientError("this client is closed; make a new one")
        deadline, retried = time.monotonic() + self.wait, ""
        while True:
            connected, began = False, time.monotonic()
            try:
                connect()
                connected = True
                return ask(), retried
            except SlotsBusy as busy:
                if connected or not self._make_room():
                    rest(busy, deadline, self.report_progress)
            except BaseException as error:
                again = lost(error) and connected
                in_time = time.monotonic() + REOPEN_SECONDS <= deadline
                crowded = isinstance(error, PeerDropped) and time.monotonic() - began > REOPEN_SECONDS
                if (retried or crowded) and not connected and isinstance(error, PeerGone) and in_time:
                    time.sleep(REOPEN_SECONDS * (1 + secrets.randbelow(1000) / 1000))
                elif retried or not again:
                    raise
                else:
                    retried = str(error)

    def report_progress(self, phase: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(phase, done, total)

    def close(self) -> None:
        self.closed = True
        while self._by_key:
            self._by_key.popitem()[1].close()

    def _make_room(self) -> bool:
        """Close a session of another length. Whether there was any."""
        if not (self.makes_room and self._by_key):
            return False
        self._by_key.popitem()[1].close()
        return True


def rest(busy: SlotsBusy, deadline: float, progress: Progress) -> None:
    """Sleep as long as a busy server asks for, and a little more, or less if the deadline is near.

    Errors: the same SlotsBusy when the deadline is here.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise busy
    spread = 1 + secrets.randbelow(200) / 1000  # many that were told the same must not come back at the same moment
    progress("busy", 0, 1)
    time.sleep(min(left, busy.retry_after * spread))
