"""The reference with the face of a session: the same computation in this process, which hides nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...models.artifacts import load_client, load_server
from ...models.compile import Compiled, decode_outputs
from ...models.program.interpreter import interpret
from ...protocols.clear import ClearEngine
from ..session.online import Answer, Timings
from .session import LocalSession
from .talk import conversation_on

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation


class ClearSession(LocalSession):
    """No parties, so no options: `query` computes what they compute, wraps included."""

    def __init__(self, compiled: Compiled, **options: Any) -> None:
        self.compiled, self.open = compiled, True

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> Answer:
        """One query. Errors: ProgramError, RangeError (wrong inputs) and AnswerOutOfRange."""
        started, compiled = time.perf_counter(), self.compiled
        engine = ClearEngine({**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants})
        outputs = decode_outputs(compiled.program, interpret(compiled.program, engine).outputs)
        return Answer(outputs, Timings(online_s=time.perf_counter() - started))

    def close(self) -> None:
        self.open = False


@contextmanager
def conversation(folder: str | Path, told: Any = None, **options: Any) -> Iterator[Conversation]:
    """With a language model in this process, as parties would compute it. Errors: ArtifactError."""
    from ...models.generation.rows import run_clear

    part, served = load_client(folder), load_server(folder).for_length()
    yield conversation_on(part, run_clear(part.for_length().parts, served.weights), folder=folder)
