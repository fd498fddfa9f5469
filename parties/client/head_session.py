"""The private sessions of a public model's head, beside one session of its base.

Who learns what. Of the base server and dealer see uniform numbers and rows (protocol delegated), and the client could
compute what the head reads. The head is a private model of its own (protocol beaver): the server alone has its
parameters, its input travels masked, the client learns its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...models.artifacts import ClientLength
from ...models.compile import AnswerOutOfRange
from ...models.delegated.head import PrivateHead
from ..receipts.receipt import VouchedSession
from ..reports.report import Report, with_head
from .session import Reply, Session


class HeadSessions:
    """Opened by `opened`, one for each of the head's programs, when it is needed."""

    def __init__(self, head: PrivateHead, opened: Callable[[ClientLength], Session]) -> None:
        self._head, self._opened = head, opened
        self._sessions: dict[str, Session] = {}
        self._reply: Reply | None = None
        self._spoilt: AnswerOutOfRange | None = None

    def run(self, run: Callable[[], Any]) -> Any:
        """What `run` returns, which runs the base once: the head is asked in its midst."""
        if len(self._head.part.lengths) == 1:  # a server that is busy says so before the base has computed
            self._session(next(iter(self._head.part.lengths.values())))
        self._reply = self._spoilt = None
        with self._head.place.asking(self._ask):
            return run()

    def completed(self, reply: Reply) -> Reply:
        """The base's reply, with what the head took, and its error if its answer has left its range."""
        assert self._reply is not None
        spoilt = self._spoilt

        def read(rows: slice) -> dict[str, Tensor]:
            if spoilt is not None:
                raise spoilt
            return reply.read(rows)

        return replace(reply, report=self.report_with(reply.report), read=read)

    def report_with(self, base: Report) -> Report:
        return base if self._reply is None else with_head(base, self._reply.report)

    @property
    def open(self) -> bool:
        return all(session.open for session in self._sessions.values())

    def vouched(self) -> list[VouchedSession]:
        return [session.vouched() for session in self._sessions.values()]

    def close(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _session(self, one: ClientLength) -> Session:
        name = one.program.hash()
        if name not in self._sessions:
            self._sessions[name] = self._opened(one)
        return self._sessions[name]

    def _ask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        self._reply = self._session(self._head.program_for(inputs)).ask(inputs)
        try:
            (answer,) = self._reply.outputs().values()
        except AnswerOutOfRange as error:  # nobody else may see it in how this query ends
            self._spoilt = error
            return None
        return answer
