"""Conversations with a language model that sees nobody's words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import Tensor

from ..session.passes import OnPass, part_run
from .forms import answer_to
from .session import ClientError, Session
from .sessions import Sessions

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.artifacts import ClientPart
    from ...models.generation.conversation import Conversation
    from ...models.generation.rows import Pass


def converse(sessions: Sessions, part: ClientPart, on_pass: OnPass | None = None) -> Conversation:
    """A conversation in a session of its own, and in another one when that is lost. `on_pass`: called after each pass.

    Errors: ClientError for a model that answers whole texts, and those of a session.
    """
    return _Passes(sessions, part, on_pass).conversation


class _Passes:
    """Runs the passes of one conversation. The state is the session's: where a session is lost, what was said is read
    again in a new one, from the client's own tokens and under fresh masks. Nothing of the lost one is used again."""

    def __init__(self, sessions: Sessions, part: ClientPart, on_pass: OnPass | None) -> None:
        from ...models.generation.conversation import Conversation

        if part.chat is None:
            raise ClientError(f"{part.folder}: answers whole texts; compile the model with --chat to talk to it")
        self.sessions, self.on_pass = sessions, on_pass
        self.part, self.name = part.for_length(), f" {uuid4()}"
        tensors = next(iter(self.part.parts.values())).tensors
        self.conversation = Conversation(part.chat, self.part.program, self.run, tensors, self._prepare)
        self._session: Session | None = None
        self._run: Pass
        self._behind = self._reading = False  # of a new session, whose state is to be filled; that this is being done
        sessions.ask_with_retry(self._connect, lambda: None, self._lost)

    def run(self, *given: Any) -> Mapping[str, Tensor]:
        """One pass. Errors: those of a session; the conversation goes on with the next pass."""
        if self._reading:  # a session that is lost now is the outer attempt's
            return self.sessions.ask_with_retry(lambda: None, lambda: self._run(*given), lambda error: False)[0]
        outputs, retried = self.sessions.ask_with_retry(self._connect, lambda: self._run(*given), self._lost)
        self.conversation.retried = retried or self.conversation.retried
        return outputs

    def _connect(self) -> None:
        rows = self.conversation.rows
        if self._session is None or not self._session.open:
            with self.sessions.lock:
                self._session = self.sessions.get(self.part, self.name)
            self._run, self._behind = self._session.passes(self.on_pass), rows.rows > 0
        if self._behind:
            self.sessions.report_progress("again", 0, 1)
            self._reading = True
            try:
                rows.read_again()
            finally:
                self._reading = False
            self._behind = False

    def _prepare(self, part: str, rows: int) -> None:
        """Of a session that is lost nothing is prepared: the next pass finds out, and opens another."""
        if not self._behind and self._session is not None and self._session.open:
            self._session.prepare(part_run(self.part.program, part, rows))

    def _lost(self, error: BaseException) -> bool:
        return self.sessions.lost(self.part, error, self.name)


def streamed(conversation: Conversation, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
    """The answer to messages in pieces, as they come. Who stops reading ends the answer."""
    pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            answer_to(conversation, messages, on_text=pieces.put, **options)
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
        conversation.stop()
        thread.join()
