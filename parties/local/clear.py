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
from .launcher import LocalAnswer


class ClearSession:
    """No parties: `query` computes what they compute, wraps included."""

    setup_s, setup_bytes = 0.0, 0

    def __init__(self, compiled: Compiled) -> None:
        self.compiled, self.open = compiled, True

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer:
        """One query. Errors: ProgramError, RangeError (wrong inputs) and AnswerOutOfRange."""
        started, compiled = time.perf_counter(), self.compiled
        engine = ClearEngine({**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants})
        outputs = decode_outputs(compiled.program, interpret(compiled.program, engine).outputs)
        return LocalAnswer(outputs, Timings(online_s=time.perf_counter() - started), {})

    def close(self) -> None:
        self.open = False

    def __enter__(self) -> ClearSession:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()
