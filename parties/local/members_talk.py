"""A conversation among N parties of this machine: passes are queries of their session, which keeps the state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...models.artifacts import load_client
from ..client.base import ClientError
from ..session.parties import Parties
from .members import LocalMembers, PartiesAnswer

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation

Told = Callable[[str, PartiesAnswer], None]


class MembersTalk:
    """Runs the passes of one conversation. An error ends the session, and its state; the next pass starts the parties
    again, and what was said is read again under fresh masks."""

    def __init__(self, folder: Path, start: Callable[[], LocalMembers], told: Told | None) -> None:
        from ...models.generation.conversation import Conversation

        client = load_client(folder)
        if client.chat is None:
            raise ClientError(f"{folder}: answers whole texts; compile the model with --chat to talk to it")
        length = client.for_length()
        self._start, self._told, self.session = start, told, start()
        tables = next(iter(length.parts.values())).tensors
        self.conversation = Conversation(client.chat, length.program, self._run, tables)

    def _run(self, part: str, inputs: Mapping[str, Tensor], following: object) -> Mapping[str, Tensor]:
        if not self.session.open:
            self.session = self._start()
            self.conversation.rows.read_again()
        try:
            answer = self.session.query(inputs, part=part)
        except BaseException:
            self.session.close()  # else its state would not be what the conversation takes it for
            raise
        if self._told:
            self._told(part, answer)
        return answer.outputs


@contextmanager
def conversation(
    folder: str | Path, told: Told | None = None, *, parties: Parties, **options: Any
) -> Iterator[Conversation]:
    """With a language model in the first party's hands; the party that asks talks. `options`: those of LocalMembers.

    Errors: ClientError, LaunchError, ArtifactError.
    """
    talk = MembersTalk(Path(folder), partial(LocalMembers, Path(folder), parties, **options), told)
    try:
        yield talk.conversation
    finally:
        talk.session.close()
