"""How a client's questions reach the other parties: one class for each way, opened when it is needed."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ...errors import BlindformerError
from ...models.artifacts import ClientLength, ClientPart, Question
from ..config import Address, Role, Settings
from ..launch.processes import LocalServices
from ..registry import find_served
from ..reports.report import Report
from ..session.compute_slots import SlotsBusy
from ..session.online import Progress


class ClientError(BlindformerError):
    """A client that is asked for something it cannot do."""


@dataclass
class Reply(ABC):
    """The answer to questions that were asked together. `retried`: as `Result.retried`."""

    report: Report
    retried: str = ""

    @abstractmethod
    def outputs(self, place: int) -> dict[str, Tensor]:
        """The model's outputs for one of the questions. Errors: AnswerOutOfRange, SealedError."""


class Transport(ABC):
    """Connects, asks, and says after an error whether the questions may be asked again.

    at_once   whether each reply is read when it comes; else when all questions have been asked
    turn      held while questions are asked, errors and waiting included
    """

    at_once, closed = True, False
    turn: AbstractContextManager[object] = nullcontext()

    def __init__(
        self, settings: Settings, part: ClientPart, local: Sequence[str] | None, progress: Progress | None
    ) -> None:
        """`local`: the server is started here when it is needed, with these options."""
        self.settings, self.part, self.progress = settings, part, progress
        self._local = local
        self._services: LocalServices | None = None

    def per_request(self, part: ClientLength) -> int:
        """How many questions a request takes."""
        return 1

    @abstractmethod
    def connect(self, part: ClientLength) -> object:
        """Have what questions of a length need: a session, or keys at the server. Errors: PeerError, SlotsBusy."""

    @abstractmethod
    def ask(self, questions: list[Question], more: bool) -> Reply:
        """One attempt, after `connect`. `more`: others of this length follow. Errors: PeerError, SlotsBusy."""

    @abstractmethod
    def lost(self, part: ClientLength, error: BaseException) -> bool:
        """Drop what an error of `ask` has spoilt. Whether another attempt may succeed."""

    def prepare(self, part: ClientLength) -> None:  # noqa: B027
        """Begin what the next question of a length needs, where that can be."""

    def make_room(self) -> bool:
        """Give up something of another length, for a server that is busy. Whether there was anything."""
        return False

    def close(self) -> None:
        """End what is open, and services that were started here. Safe to call twice."""
        self.closed = True
        services, self._services = self._services, None
        if services is not None:
            services.close()

    def tell(self, phase: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(phase, done, total)

    def rest(self, busy: SlotsBusy, deadline: float) -> None:
        """Sleep as long as a busy server asks for, and a little more, or less if the deadline is near.

        Errors: the same SlotsBusy when the deadline is here.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            raise busy
        spread = 1 + secrets.randbelow(200) / 1000  # many that were told the same must not come back at the same moment
        self.tell("busy", 0, 1)
        time.sleep(min(left, busy.retry_after * spread))

    def address(self, role: Role) -> Address:
        services = self._start()
        return services.addresses[role] if services else self.settings.address(role)

    def addresses(self) -> dict[str, Address]:
        """Of the parties that are dialled, by role; none of this machine that were not started."""
        if self._local is not None:
            return dict(self._services.addresses) if self._services else {}
        helpers = find_served(self.settings.session.protocol).helpers
        roles: list[Role] = ["server", *(["dealer"] if "dealer" in helpers else [])]
        return {role: self.settings.address(role) for role in roles}

    def certificates(self) -> Path:
        services = self._start()
        return services.certificates if services else self.settings.certificates.folder

    def _start(self) -> LocalServices | None:
        if self._services is not None and not self._services.alive:
            self._services.close(0)
            self._services = None
        if self._local is not None and self._services is None:
            session = self.settings.session
            self._services = LocalServices(self.settings.client.folder, session.timeout, session.protocol, self._local)
        return self._services
