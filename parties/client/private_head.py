"""Public models for `make_private`: one without private weights is the module itself, whose linear layers a server
computes; of one with a private head the base is delegated so, and the head is a private session.

Who learns what. The base is public, so the head's input is what the client could compute itself; of the base server and
dealer see uniform numbers and rows (protocol delegated). The head's parameters are masked for the client, and absent
from all that the base's parties hold (protocol beaver). The client learns the head's output, as it does of any private
model with a public base: a linear head of H inputs is known after H + 1 whole answers. Limit how many it gets.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ...approximations import Plan
from ...models.compile import Compiled
from ...models.delegated.head import HeadInPlace, read_by_head
from ...models.delegated.part import part_of_module
from ...models.delegated.sequences import read_memory
from ...models.loading.adapters import without_peft
from ...models.weight_owners import PRIVATE, WeightOwners
from ...protocols.delegated import RINGS
from ..receipts.receipt import Prices, Receipt
from ..receipts.statement import ReceiptError
from ..registry import DEFAULT, find
from ..reports.report import with_head
from .delegated import DelegatedSession
from .local import LocalProtocol, find_local
from .private import Inputs, PrivateModel, shapes_of


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


def private_head(model: nn.Module, weights: WeightOwners) -> str | None:
    """The last part of a model, if it holds all of the private parameters and no public one."""
    opened, names = weights.of(model), model.state_dict().keys()
    parts = [name for name, part in model.named_children() if part.state_dict()]
    if opened is None or len(parts) < 2 or getattr(model, "can_generate", lambda: False)():
        return None
    mine = {name for name in names if name.startswith(f"{parts[-1]}.")}
    return parts[-1] if mine == names - opened else None


class PrivateHeadModel(PrivateModel):
    """As PrivateModel. If public layers follow the head after all, the whole model is one private session.

    name   of the head, as `private_head` gives it
    """

    def __init__(self, model: nn.Module, plan: Plan | str, local: LocalProtocol, name: str) -> None:
        super().__init__(model, plan, local)
        self._name, self._last = name, dict[tuple, bool]()  # whether the head comes last, by shapes of inputs
        tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        base = copy.deepcopy(model, tensors)  # which shares them
        self._place = HeadInPlace(model.get_submodule(name))
        base.set_submodule(name, self._place)
        ring = plan if isinstance(plan, str) and plan in RINGS else "faithful"
        self.base = DelegatedPrivateModel(base, ring, find_local(find(DEFAULT).public))
        self.head = PrivateModel(model.get_submodule(name), plan, local)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """One query, with the model's own arguments."""
        inputs = self.bound(named, values)
        self.prepare(inputs)
        if not self._last[shapes_of(inputs)]:
            return super().__call__(**inputs)
        part = self.base.prepare(inputs)
        part.runner.steps(self.base.model, (), inputs)  # rehearsed here, so that nobody is asked about noise
        with self._place.asking(lambda read: self.head(**read)):
            answer = self.base(**inputs)
        if self.base.report is not None and self.head.report is not None:
            self.report = with_head(self.base.report, self.head.report)
        return answer

    def receipt(self, prices: Prices = None) -> Receipt:
        if any(self._last.values()):
            what = "base and head are sessions of two services, which vouch for themselves"
            raise ReceiptError(f"receipt: {what}; take those of private.base and private.head")
        return super().receipt(prices)

    def close(self) -> None:
        super().close()
        self.base.close()
        self.head.close()

    def prepare(self, inputs: Inputs) -> Compiled:
        """Compile the head for what it reads of such inputs; the whole model, if the head does not come last."""
        inputs = self.bound(inputs)
        shapes = shapes_of(inputs)
        if shapes not in self._last:
            read, *others = (read_by_head(self.model, self._name, batch) for batch in (inputs, *self.calibration))
            self._last[shapes] = read is not None
            if read is not None:
                self.head.calibration = [one for one in others if one is not None]
                self.head.options = {**self.options, "weights": PRIVATE}
                self.head.session_options = self.base.session_options = self.session_options
                self.compiled = self.head.prepare(read)
        return self.compiled if self._last[shapes] and self.compiled else super().prepare(inputs)


def with_private_head(
    model: nn.Module, plan: Plan | str, local: LocalProtocol, weights: WeightOwners
) -> PrivateHeadModel | None:
    """None: these weights are not private in the last part alone."""
    head = private_head(model, weights)
    return None if head is None else PrivateHeadModel(model, plan, local, head)
