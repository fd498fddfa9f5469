"""The sessions that a client has open: one for each program that it asks, opened when first needed."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ...models.artifacts import Question
from ...models.program import Program
from ...protocols.errors import PeerError, PeerGone
from ..certificates.development import client_context
from ..config import Settings
from ..local.services import LocalServices
from ..session import Answer, ClientParty, Progress, UseSpool
from ..session.compute_slots import SlotsBusy
from ..session.helper.owner import ask_two_servers
from ..session.meeting import meet_server, my_hello, new_session, seed_dealer, tell
from ..session.spool import Spool

REOPEN_SECONDS = 1.0  # between attempts to reach parties that a session was lost to


class ClientSession(Protocol):
    """The data owner's end of a session, whoever sits on the client's seat."""

    program: Program
    setup_bytes: int

    def query(self, sources: Any, progress: Progress | None = None, more: bool = False) -> Answer: ...

    def close(self) -> None: ...


@dataclass
class OpenSession:
    """`setup_s`: seconds that it took to meet the others and to get the masked weights."""

    party: ClientSession
    setup_s: float


class Sessions:
    """Opens, keeps and drops sessions with the parties of `settings`; `local`: with ones started here when needed."""

    def __init__(
        self,
        settings: Settings,
        *,
        local: bool = False,
        cache: Path | None = None,
        use_spool: UseSpool = "auto",
        progress: Progress | None = None,
    ) -> None:
        self.settings = settings
        self._start_local = local
        self._local: LocalServices | None = None
        self.use_spool: UseSpool = use_spool
        self.cache, self.progress = cache, progress
        self.spool = None if settings.client.spool is None else Spool(settings.client.spool)
        self._open: dict[str, OpenSession] = {}

    def open(self, question: Question, deadline: float, patient: bool = False) -> OpenSession:
        """The session of the question's program. A busy server is asked again until `deadline` (of time.monotonic).

        `patient`: so is one that cannot be reached, because it may be coming back. Errors: PeerError, Busy.
        """
        key = question.part.program.hash()
        while key not in self._open:
            try:
                if self.progress:
                    self.progress("connect", 0, 1)
                self._open[key] = self._meet(question)
                if self.progress:
                    self.progress("connect", 1, 1)
            except SlotsBusy as busy:
                if not self._make_room():
                    self.rest(busy, deadline)
            except PeerGone:
                if not patient or time.monotonic() + REOPEN_SECONDS > deadline:
                    raise
                time.sleep(REOPEN_SECONDS)
        return self._open[key]

    def rest(self, busy: SlotsBusy, deadline: float) -> None:
        """Sleep as long as a busy server asks for, and a little more, or less if the deadline is near.

        Errors: the same Busy when the deadline is here.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise busy
        spread = 1 + secrets.randbelow(200) / 1000  # many that were told the same must not come back at the same moment
        if self.progress:
            self.progress("busy", 0, 1)
        time.sleep(min(left, busy.retry_after * spread))

    def drop(self, question: Question) -> None:
        """Forget the session of the question's program: it is lost."""
        opened = self._open.pop(question.part.program.hash(), None)
        if opened is not None:
            with suppress(PeerError):
                opened.party.close()

    def close(self) -> None:
        """End all sessions, and the local parties."""
        while self._make_room():
            pass
        if self._local is not None:
            self._local.close()
            self._local = None

    def _make_room(self) -> bool:
        """Close a session with another program: a server bounds how many one client may have."""
        if not self._open:
            return False
        _, opened = self._open.popitem()
        with suppress(PeerError):
            opened.party.close()
        return True

    def _meet(self, question: Question) -> OpenSession:
        started = time.perf_counter()
        part, timeout = question.part, self.settings.session.timeout
        if self._start_local and self._local is None:
            self._local = LocalServices(self.settings.client.folder, timeout)
        folder = self._local.certificates if self._local else self.settings.certificates.folder
        context = client_context(folder, "client")
        if self.settings.session.topology == "helper":
            server, helper = self._address("server"), self._address("helper")
            party: ClientSession = ask_two_servers(
                part.program,
                context,
                server,
                helper,
                timeout,
                config=self.settings.shared_hash(),
                waiting=self._waiting,
            )
            return OpenSession(party, time.perf_counter() - started)
        mine = my_hello(part.program, "client", new_session(), config=self.settings.shared_hash())
        channel = meet_server(context, self._address("server"), mine, timeout)
        try:
            party = ClientParty(
                part.program,
                part.constants,
                channel,
                partial(seed_dealer, context, self._address("dealer"), mine, timeout),
                session=mine.session,
                cache=self.cache,
                spool=self.spool,
                use_spool=self.use_spool,
                waiting=self._waiting,
            )
            party.set_up(self.progress)
        except PeerError as error:
            tell([channel], error)
            raise
        except BaseException:
            channel.close()
            raise
        return OpenSession(party, time.perf_counter() - started)

    def _address(self, role: Any) -> tuple[str, int]:
        return self._local.addresses[role] if self._local else self.settings.address(role)

    def _waiting(self, message: dict) -> None:
        if self.progress and isinstance(place := message.get("queued"), int):
            self.progress("queue", 0, place + 1)
