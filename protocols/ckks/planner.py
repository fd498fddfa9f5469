"""From a Program to a circuit: sums and rearrangements are composed in the clear, products become steps.

Every instruction is read as what it means for real numbers: integer 2^-scale. A rescale and a shift change nothing
then, but where the scale of a value was moved by a power of two its readers' scales tell, and the factor is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..scanning import FunctionRegistry
from . import affine
from .affine import AffineForm
from .circuit import AffineStep, Circuit, Input, MultiplyStep, Operand, Output
from .diagonals import blocks_of
from .packing import Layout, Packing
from .parameters import CkksError
from .values import Base, FactoredValue, PlannedInstruction, PlannedValue, element_numbers, is_rows, value_of

Array = np.ndarray
OperationPlan = Callable[["Planner", PlannedInstruction, list[PlannedValue], list[int]], PlannedValue]
plan: FunctionRegistry[OperationPlan] = FunctionRegistry(f"{__package__}.plans")


@dataclass
class Planner:
    """Walks the instructions once. `known`: real values of weights and constants by name; `clients`: whose source a
    client's value is, by name (two names may be one value at two scales)."""

    instructions: Sequence[PlannedInstruction]
    known: Mapping[str, Array]
    clients: Mapping[str, str]
    packing: Packing
    circuit: Circuit = field(init=False)
    values: list[PlannedValue] = field(default_factory=list)
    bases: list[Base] = field(default_factory=list)
    inputs: dict[tuple[str, bytes, tuple[int, ...]], int] = field(default_factory=dict)
    path: str = ""

    def __post_init__(self) -> None:
        self.circuit = Circuit(self.packing)
        # Of one value at several scales, the finest is sent.
        self.finest: dict[str, tuple[int, str]] = {}
        self.whole: dict[str, Array] = {}
        for item in self.instructions:
            if item.op == "client":
                name = item.attributes["name"]
                ref = self.clients.get(name, name)
                self.whole[ref] = element_numbers(item.shape)
                self.finest[ref] = max(self.finest.get(ref, (item.scale, name)), (item.scale, name))

    def run(self, outputs: Mapping[str, int]) -> Circuit:
        for item in self.instructions:
            self.path = item.path
            self.values.append(self._value(item))
        for name, number in outputs.items():
            item = self.instructions[number]
            self.path = item.path
            form = self.form(self.values[number])
            base = self.laid_out(form, self.packing.natural(form.shape))
            self.circuit.outputs.append(Output(name, item.shape, base.layout, base.ciphertexts, item.scale))
        self.circuit.settle()
        return self.circuit

    def _value(self, item: PlannedInstruction) -> PlannedValue:
        if item.op == "client":
            name = item.attributes["name"]
            return PlannedValue(element_numbers(item.shape), client=self.clients.get(name, name))
        if item.op in ("weight", "constant"):
            return value_of(affine.known(self.known[item.attributes["name"]]), item.shape)
        rule = plan.all.get(item.op)
        if rule is None:
            raise self.fail(f"needs the operation {item.op}, which protocol ckks does not offer; choose another plan")
        args = [self.values[arg] for arg in item.args]
        return rule(self, item, args, [self.instructions[arg].scale for arg in item.args])

    def fail(self, what: str) -> CkksError:
        return CkksError(f"{self.path or 'model'}: {what}")

    def form(self, value: PlannedValue, at: Array | None = None) -> AffineForm:
        """The value (or these of its elements) as a form."""
        at = value.at if at is None else at
        if value.form is not None:
            return affine.gather(value.form, at).scaled(value.factor)
        whole = self.whole[value.client]
        if is_rows(at, whole.shape):  # sent once, with the rows that others read
            rows = affine.identity(self._input(value.client, whole), whole.shape)
            return affine.gather(rows, at).scaled(value.factor)
        base = self._input(value.client, at)
        return affine.identity(base, at.shape or (1,)).scaled(value.factor)

    def _input(self, ref: str, at: Array, layout: Layout | None = None) -> int:
        """The client sends these elements of its value, packed."""
        key = (ref, at.tobytes(), at.shape)
        if key not in self.inputs:
            layout = layout or self.packing.natural(at.shape or (1,))
            numbers = self.circuit.new(layout.blocks)
            self.circuit.inputs.append(Input(self.finest[ref][1], at.reshape(-1), layout, numbers))
            self.inputs[key] = self.base(Base(layout, numbers, clean=True))
        return self.inputs[key]

    def base(self, base: Base) -> int:
        self.bases.append(base)
        return len(self.bases) - 1

    def result(self, layout: Layout, clean: bool, factor: float, shape: tuple[int, ...], numbers: list[int],
                tokens: int = 0) -> PlannedValue:  # fmt: skip
        base = self.base(Base(layout, numbers, clean, tokens))
        return value_of(affine.identity(base, shape).scaled(factor), shape)

    def multiplied(
        self, left: FactoredValue, right: FactoredValue, shape: tuple[int, ...], factor: float = 1.0
    ) -> PlannedValue:
        numbers = self.circuit.new(left.base.layout.blocks)
        pairs = list(zip(left.operands, right.operands, strict=True))
        self.circuit.add(MultiplyStep(numbers, self.path, pairs=pairs))
        clean = left.base.clean or right.base.clean
        factor *= left.factor * right.factor
        return self.result(left.base.layout, clean, factor, shape, numbers, left.base.tokens)

    def scores(self, value: PlannedValue) -> Layout | None:
        """The layout of scores, if that is what the value lies in."""
        if value.form is None:
            return None
        elementwise = affine.as_elementwise(self.form(value), value.at.size) if len(value.form.terms) == 1 else None
        if elementwise is None or not self.bases[elementwise.base].tokens:
            return None
        return self.bases[elementwise.base].layout

    def held(
        self, value: PlannedValue, shape: tuple[int, ...], layout: Layout | None, again: bool = False
    ) -> FactoredValue:
        """The value in ciphertexts: those it lies in if it is but a factor of them, else through an affine map."""
        shape = shape or (1,)
        if value.form is None and layout is not None:
            base = self.bases[self._input(value.client, value.at, layout)]
            return FactoredValue(base, [Operand(number) for number in base.ciphertexts], value.factor)
        form = self.form(value)
        elementwise = None if again else affine.as_elementwise(form, form.size)
        factor = elementwise.uniform if elementwise else None
        if elementwise is not None and factor is not None:
            base = self.bases[elementwise.base]
            plus: list[Array | None] = [None] * base.layout.blocks
            if elementwise.shift.any():
                plus = list(base.layout.spread(elementwise.shift.reshape(-1) / factor))
            operands = [Operand(n, p) for n, p in zip(base.ciphertexts, plus, strict=True)]
            return FactoredValue(base, operands, factor)
        own = self.bases[elementwise.base].layout if elementwise is not None else None
        base = self.laid_out(form, own or layout or self.packing.natural(shape))
        return FactoredValue(base, [Operand(number) for number in base.ciphertexts])

    def laid_out(self, form: AffineForm, layout: Layout) -> Base:
        """An affine map into new ciphertexts."""
        bases = {term.base: self.bases[term.base] for term in form.terms}
        places = {number: (base.layout, base.ciphertexts) for number, base in bases.items()}
        numbers = self.circuit.new(layout.blocks)
        self.circuit.add(AffineStep(numbers, self.path, blocks=blocks_of(form, layout, places, self.packing)))
        scores = next((b.tokens for b in bases.values() if b.layout.same(layout)), 0)
        base = Base(layout, numbers, clean=True, tokens=scores)
        self.bases.append(base)
        return base

    def read(self, factored: FactoredValue, shape: tuple[int, ...]) -> AffineForm:
        """The form of what is held."""
        number = next(i for i, base in enumerate(self.bases) if base is factored.base)
        constant = np.zeros(int(np.prod(shape)))
        if factored.operands[0].plus is not None:
            constant = factored.base.layout.collect(np.stack([o.plus for o in factored.operands if o.plus is not None]))
        form = affine.identity(number, shape or (1,))
        return AffineForm(form.shape, form.terms, constant.reshape(form.constant.shape)).scaled(factored.factor)
