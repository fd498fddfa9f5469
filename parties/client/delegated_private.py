"""`make_private` of a model without private weights: the module itself, whose linear layers a server computes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...models.delegated.part import part_of_module
from ...models.delegated.sequences import read_memory
from ...models.loading.adapters import without_peft
from .delegated import DelegatedSession
from .private import PrivateModel


class DelegatedPrivateModel(PrivateModel):
    """As PrivateModel. Nothing is compiled or calibrated: the module runs here, on inputs of any shape, and `generate`
    is its own, beams and logits processors included."""

    def __init__(self, model: nn.Module, *given: Any, **options: Any) -> None:
        super().__init__(without_peft(model), *given, **options)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """One query, with the model's own arguments."""
        inputs = self.bound(named, values)
        session = self._opened(inputs)
        with session.working():
            return self._reported(session, lambda: session.part.runner.run(session.carrier, self.model, **inputs))

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """The model's own `generate`, with all of its options."""
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        session = self._opened({"input_ids": input_ids, **mask})
        model: Any = self.model
        with session.working(), session.part.runner.installed(session.carrier):
            return self._reported(session, lambda: model.generate(input_ids, **mask, **options))

    def prepare(self, inputs: Any) -> Any:
        """Open the session, on inputs of a usual shape."""
        return self._opened(self.bound(inputs)).part

    def _reported(self, session: DelegatedSession, run: Any) -> Any:
        result = run()
        self.report = session.report_of_passes()
        return result

    def _opened(self, inputs: dict[str, Any]) -> DelegatedSession:
        session: Any = self._session
        if session is None or not session.open:
            self.close()
            part = part_of_module(self.model, lambda: self.model(**inputs), plan=self.plan)
            part.pad = self.pad
            if self.client_memory:
                part.keep_layers(read_memory(self.client_memory), inputs, {})
            session = self._session = DelegatedSession(part, **self.session_options)
        return session
