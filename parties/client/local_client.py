"""A client of protocols that have no services: their parties run on this machine, for one program at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from ...models.artifacts import ClientLength, ClientPart, Question, load_client, load_server
from ...models.artifacts.client import together
from ...models.artifacts.server import compiled_of
from ...models.compile import AnswerOutOfRange, Compiled
from ...models.loading.truncation import Truncation
from ..reports.report import Report
from ..session.online import Answer, Progress, Timings
from .base import BaseClient
from .client import client_settings
from .protocols import LocalProtocol
from .queries import apart
from .session import LocalSession
from .transport import Reply, Transport

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation
    from ..session.part_runs import OnPass


@dataclass(kw_only=True)
class LocalReply(Reply):
    """`rows`: outputs of each question; or why there are none."""

    rows: list[dict[str, Tensor]] | AnswerOutOfRange

    def outputs(self, place: int) -> dict[str, Tensor]:
        if isinstance(self.rows, AnswerOutOfRange):
            raise self.rows
        return self.rows[place]


class LocalTransport(Transport):
    """One session for each program that is asked, kept until `close`."""

    def __init__(self, local: LocalProtocol, part: ClientPart, timeout: float, progress: Progress | None) -> None:
        super().__init__(client_settings(None), part, None, progress)
        self.turn = threading.Lock()
        self.local, self.server = local, load_server(part.folder.parent)
        self.options = {"timeout": timeout, "progress": progress}
        self._open: dict[str, tuple[Compiled, LocalSession]] = {}

    def per_request(self, part: ClientLength) -> int:
        return part.texts

    def connect(self, part: ClientLength) -> tuple[Compiled, LocalSession]:
        key = part.program.hash()
        if key not in self._open:
            compiled = compiled_of(part, self.server[key], self.server.plan)
            self._open[key] = compiled, self.local.open(compiled, **self.options)
        return self._open[key]

    def ask(self, questions: list[Question], more: bool) -> LocalReply:
        compiled, session = self.connect(questions[0].part)
        try:
            answer = session.query(together(questions), more)
        except AnswerOutOfRange as error:
            return LocalReply(self.local.report(compiled, session, Answer({}, Timings())), rows=error)
        rows = apart(answer.outputs, questions[0].part.texts, len(questions))
        return LocalReply(self.local.report(compiled, session, answer), rows=rows)

    def lost(self, part: ClientLength, error: BaseException) -> bool:
        _, session = self._open.get(part.program.hash(), (None, None))
        if session is None or session.open:
            return False
        self._open.pop(part.program.hash())
        return True

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()
        super().close()


class LocalClient(BaseClient):
    """Asks parties that are started here, of whatever protocol runs on this machine; or use `with`.

    folder     what compile wrote: DIR, with the parts of both sides
    length     tokens to pad texts to (default: the least compiled length that fits)
    truncate   a longer text: "off": it is refused; "end": its end is cut off; "start": its beginning. True is "end"
    timeout    seconds that a party may be silent
    progress   called with (phase, done, total)

    Errors: ArtifactError, LaunchError; of queries: InputError, AnswerOutOfRange.
    """

    def __init__(
        self,
        local: LocalProtocol,
        folder: str | Path,
        *,
        length: int | None = None,
        truncate: Truncation | bool = "off",
        timeout: float = 120,
        progress: Progress | None = None,
    ) -> None:
        self.protocol, self._local = local.entry.name, local
        super().__init__(LocalTransport(local, load_client(folder), timeout, progress), length, truncate)

    def conversation(self, told: OnPass | None = None) -> Conversation:
        """With a language model: `say`, `complete`; what was read stays read. `told`: of each pass."""
        assert isinstance(self._transport, LocalTransport)
        return self.held.enter_context(self._local.talk(self.part.folder.parent, told, **self._transport.options))

    @property
    def who(self) -> str:
        return self._local.entry.who.format(parties=self._local.parties.size)

    def costs(self, reports: list[Report]) -> str:
        return self._local.costs(reports, "a text" if self.part.task.medium is None else self.part.task.medium.one)
