"""One client's evaluation keys and requests, in the process that reads them (isolated.py)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BlindformerError
from .facts import CircuitNeeds
from .hiding import hide
from .isolated import Say, pack, unpack
from .keys import load_evaluation, load_request
from .parameters import CkksError
from .sealed import SealedError, to_bytes

if TYPE_CHECKING:
    from .evaluator import Evaluator
    from .keys import EvaluationKeys


class Computing:
    """Keys lie in `folder`, by number, until the first request. It says {"step": n} after each step of the circuit,
    and at last {"seconds": s} with the answer; or why there is none, {"refused": why} or {"failed": why}."""

    def __init__(self, facts: CircuitNeeds, evaluator: Evaluator, folder: Path) -> None:
        self.facts, self.evaluator, self.folder = facts, evaluator, folder
        self._keys: EvaluationKeys | None = None

    def __call__(self, request: bytes, say: Say) -> bytes:
        try:
            return self._answer(unpack(request)[1], lambda head: say(pack(head)))
        except SealedError as error:
            return pack({"refused": str(error)})
        except BlindformerError as error:
            return pack({"failed": str(error)})

    def _answer(self, sealed: Sequence[bytes], say: Callable[[dict[str, Any]], None]) -> bytes:
        facts, evaluator, keys = self.facts, self.evaluator, self._load()
        inputs = load_request(evaluator.ring, dict(zip(facts.inputs, sealed, strict=True)), facts.inputs)
        started = time.perf_counter()
        answers = evaluator.run(inputs, keys, lambda done, total: say({"step": done}))
        hidden = hide(evaluator.ring, answers, keys)
        reply = [to_bytes(hidden[item.number]) for item in facts.reply_items()]
        return pack({"seconds": time.perf_counter() - started}, reply)

    def _load(self) -> EvaluationKeys:
        if self._keys is None:
            items = self.facts.key_items()
            sealed = ((item.number, (self.folder / str(item.number)).read_bytes()) for item in items)
            try:
                self._keys = load_evaluation(self.evaluator.ring, sealed)
            except OSError:
                raise CkksError("the keys are gone; send them again") from None
        return self._keys
