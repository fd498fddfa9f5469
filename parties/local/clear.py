"""The reference with the face of a session: the same computation in this process, which hides nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...models.compile import Compiled, decode_outputs
from ...models.program.interpreter import interpret
from ...protocols.clear import ClearEngine
from ..session.timings import Timings
from .session import LocalAnswer, LocalSession


class ClearSession(LocalSession):
    """No parties, so no options: `query` computes what they compute, wraps included."""

    def __init__(self, compiled: Compiled, **options: Any) -> None:
        self.compiled, self.open = compiled, True

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer:
        """One query. Errors: ProgramError, RangeError (wrong inputs) and AnswerOutOfRange."""
        started, compiled = time.perf_counter(), self.compiled
        engine = ClearEngine({**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants})
        outputs = decode_outputs(compiled.program, interpret(compiled.program, engine).outputs)
        return LocalAnswer(outputs, Timings(online_s=time.perf_counter() - started), {})

    def close(self) -> None:
        self.open = False
