"""Conversations with a language model that sees nobody's words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from torch import Tensor

from ...protocols.errors import PeerError
from ..session.passes import Told, passes
from .base import ClientError

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion, Conversation
    from .sessions import SessionTransport


def converse(
    transport: SessionTransport, told: Told | None = None, lost: Callable[[], None] = lambda: None
) -> Conversation:
    """A conversation in a session of its own. `lost`: called when the session is, and with it all that was read.

    Errors: ClientError, and those of a session.
    """
    from ...models.generation.conversation import Conversation

    part = transport.part
    if part.chat is None:
        raise ClientError(f"{part.folder}: answers whole texts; compile the model with --chat to talk to it")
    length = part.for_length()
    opened = transport.connect(length, f" {uuid4()}")
    inner = passes(transport.two_parties(opened), length.parts, told)

    def run(*given: Any) -> Mapping[str, Tensor]:
        try:
            return inner(*given)
        except PeerError:
            lost()
            raise

    return Conversation(part.chat, length.program, run, next(iter(length.parts.values())).tensors)


def answer_to(talk: Conversation, messages: Sequence[dict[str, str]], **options: Any) -> Completion:
    """The answer to the last of these messages, which may be those of another conversation. Errors: ClientError."""
    if not messages or messages[-1].get("role") != "user":
        raise ClientError('messages: the last one must be the user\'s: {"role": "user", "content": "..."}')
    talk.messages = [dict(message) for message in messages[:-1]]
    return talk.say(str(messages[-1].get("content", "")), **options)


def streamed(talk: Conversation, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
    """The same in pieces, as they come. Who stops reading ends the answer."""
    pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            answer_to(talk, messages, on_text=pieces.put, **options)
            pieces.put(None)
        except BaseException as error:  # it is raised where the pieces are read
            pieces.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        talk.stop()
        thread.join()
