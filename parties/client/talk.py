"""Conversations with a language model that sees nobody's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import Tensor

from ..session.part_runs import OnPass, QueryingParty, part_run, passes
from .base import ask_with_retry
from .forms import answer_to
from .transport import ClientError

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.artifacts import ClientPart
    from ...models.generation.conversation import Conversation
    from ...models.generation.rows import Ahead, Pass
    from .sessions import SessionTransport


def converse(transport: SessionTransport, told: OnPass | None = None) -> Conversation:
    """A conversation in a session of its own, and in another one when that is lost. Errors: ClientError, and those of
    a session."""
    return SessionPasses(transport, told).conversation


def conversation_on(
    part: ClientPart, run: Pass, ahead: Ahead | None = None, folder: str | Path | None = None
) -> Conversation:
    """With a language model whose passes `run` runs. `ahead`: told of what most likely comes next. `folder`: as it was
    named. Errors: ClientError for a model that answers whole texts."""
    from ...models.generation.conversation import Conversation

    if part.chat is None:
        raise ClientError(f"{folder or part.folder}: answers whole texts; compile the model with --chat to talk to it")
    length = part.for_length()
    return Conversation(part.chat, length.program, run, next(iter(length.parts.values())).tensors, ahead)


class SessionPasses:
    """Runs the passes of one conversation. The state is the session's: where a session is lost, what was said is read
    again in a new one, from the client's own tokens and under fresh masks. Nothing of the lost one is used again."""

    def __init__(self, transport: SessionTransport, told: OnPass | None) -> None:
        self.transport, self.told = transport, told
        self.conversation = conversation_on(transport.part, self.run, self._ahead)
        self.part, self.name = transport.part.for_length(), f" {uuid4()}"
        self._behind = self._reading = False  # of a new session, whose state is to be filled; that this is being done
        ask_with_retry(transport, self._connect, self._party, self._lost)

    def run(self, *given: Any) -> Mapping[str, Tensor]:
        """One pass. Errors: those of a session; the conversation goes on with the next pass."""

        def ask() -> Mapping[str, Tensor]:
            return passes(self._party(), self.part.parts, self.told, self.transport.progress)(*given)

        if self._reading:  # a session that is lost now is the outer attempt's
            return ask_with_retry(self.transport, lambda: None, ask, lambda error: False)[0]
        found, retried = ask_with_retry(self.transport, self._connect, ask, self._lost)
        self.conversation.retried = retried or self.conversation.retried
        return found

    def _connect(self) -> None:
        rows = self.conversation.rows
        if not self.transport.is_open(self.part, self.name):
            with self.transport.turn:
                self._party()
            self._behind = rows.rows > 0
        if self._behind:
            self.transport.tell("again", 0, 1)
            self._reading = True
            try:
                rows.read_again()
            finally:
                self._reading = False
            self._behind = False

    def _ahead(self, part: str, rows: int) -> None:
        """Of a session that is lost nothing is prepared: the next pass finds out, and opens another."""
        if not self._behind:
            self.transport.announce(self.part, part_run(self.part.program, part, rows), self.name)

    def _party(self) -> QueryingParty:
        return self.transport.connect(self.part, self.name).party

    def _lost(self, error: BaseException) -> bool:
        return self.transport.lost(self.part, error, self.name)


def streamed(talk: Conversation, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
    """The same in pieces, as they come. Who stops reading ends the answer."""
    pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            answer_to(talk, messages, on_text=pieces.put, **options)
            pieces.put(None)
        except BaseException as error:  # it is raised where the pieces are read
            pieces.put(error)

    thread = Thread(target=work)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        talk.stop()
        thread.join()
