"""From a Program to a circuit: sums and rearrangements are composed in the clear, products become steps.

Every instruction is read as what it means for real numbers: integer 2^-scale. A rescale and a shift change nothing
then, but where the scale of a value was moved by a power of two its readers' scales tell, and the factor is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..operations import operations
from ..ring import signed
from . import forms
from .circuit import (
    AffineStep,
    Circuit,
    Input,
    Mix,
    MultiplyStep,
    Operand,
    Output,
    QueryMix,
    QueryScores,
    Scores,
    check_scores,
)
from .diagonals import blocks_of
from .forms import AffineForm
from .packing import Layout, Packing, baby_steps, query_layout, score_layout, span
from .parameters import CkksError
from .values import (
    Base,
    FactoredValue,
    PlannedInstruction,
    PlannedValue,
    element_numbers,
    equal,
    is_rows,
    scaled,
    value_of,
    viewed,
)

Array = np.ndarray


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
            form = self._form(self.values[number])
            base = self._laid_out(form, self.packing.natural(form.shape))
            self.circuit.outputs.append(Output(name, item.shape, base.layout, base.ciphertexts, item.scale))
        self.circuit.settle()
        return self.circuit

    # --- values ------------------------------------------------------------------------------------------------------
    def _value(self, item: PlannedInstruction) -> PlannedValue:
        args = [self.values[arg] for arg in item.args]
        scales = [self.instructions[arg].scale for arg in item.args]
        if item.op == "client":
            return PlannedValue(
                element_numbers(item.shape), client=self.clients.get(item.attributes["name"], item.attributes["name"])
            )
        if item.op in ("weight", "constant"):
            return value_of(forms.known(self.known[item.attributes["name"]]), item.shape)
        if operations()[item.op].rearranges and len(args) == 1:
            return scaled(viewed(item.op, args[0], item.attributes), scales[0] - item.scale)
        if item.op in ("shift", "rescale", "reveal"):
            bits = item.attributes.get("bits", 0) * (1 if item.op == "shift" else -1)
            return scaled(args[0], scales[0] + bits - item.scale)
        if item.op == "neg":
            return scaled(args[0], scales[0] - item.scale, -1.0)
        handler: Callable[..., PlannedValue] | None = getattr(self, f"_{item.op}", None)
        if handler is None:
            raise self._fail(f"needs the operation {item.op}, which protocol ckks does not offer; choose another plan")
        return handler(item, args, scales)

    def _fail(self, what: str) -> CkksError:
        return CkksError(f"{self.path or 'model'}: {what}")

    def _form(self, value: PlannedValue, at: Array | None = None) -> AffineForm:
        """The value (or these of its elements) as a form."""
        at = value.at if at is None else at
        if value.form is not None:
            return forms.gather(value.form, at).scaled(value.factor)
        whole = self.whole[value.client]
        if is_rows(at, whole.shape):  # sent once, with the rows that others read
            return forms.gather(forms.identity(self._input(value.client, whole), whole.shape), at).scaled(value.factor)
        base = self._input(value.client, at)
        return forms.identity(base, at.shape or (1,)).scaled(value.factor)

    def _input(self, ref: str, at: Array, layout: Layout | None = None) -> int:
        """The client sends these elements of its value, packed."""
        key = (ref, at.tobytes(), at.shape)
        if key not in self.inputs:
            layout = layout or self.packing.natural(at.shape or (1,))
            numbers = self.circuit.new(layout.blocks)
            self.circuit.inputs.append(Input(self.finest[ref][1], at.reshape(-1), layout, numbers))
            self.inputs[key] = self._base(Base(layout, numbers, clean=True))
        return self.inputs[key]

    def _base(self, base: Base) -> int:
        self.bases.append(base)
        return len(self.bases) - 1

    def _result(self, layout: Layout, clean: bool, factor: float, shape: tuple[int, ...], numbers: list[int],
                tokens: int = 0) -> PlannedValue:  # fmt: skip
        base = self._base(Base(layout, numbers, clean, tokens))
        return value_of(forms.identity(base, shape).scaled(factor), shape)

    # --- what is linear ----------------------------------------------------------------------------------------------
    def _add(
        self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int], sign: float = 1.0
    ) -> PlannedValue:
        x, y = (self._form(v).scaled(2.0 ** (s - item.scale)) for v, s in zip(args, scales, strict=True))
        return value_of(forms.add(x, y.scaled(sign)), item.shape)

    def _sub(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        return self._add(item, args, scales, -1.0)

    def _sum(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        dims = sorted(d % args[0].at.ndim for d in item.attributes["dims"])
        kept = [d for d in range(args[0].at.ndim) if d not in dims]
        at = args[0].at.transpose(*kept, *dims)
        at = at.reshape(*at.shape[: len(kept)], -1)
        return value_of(forms.total(self._form(args[0], at)).scaled(2.0 ** (scales[0] - item.scale)), item.shape)

    def _concat(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        parts = [self._form(v).scaled(2.0 ** (s - item.scale)) for v, s in zip(args, scales, strict=True)]
        starts = np.cumsum([0, *(part.size for part in parts)])
        numbers = [start + element_numbers(value.at.shape) for start, value in zip(starts, args, strict=False)]
        at = np.concatenate(numbers, axis=item.attributes["dim"])
        return value_of(forms.gather(forms.stack(parts), at), item.shape)

    def _linear(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        weight = self._form(args[1]).known()
        if weight is None:
            return self._matmul(item, args, scales)
        x = args[0]
        if not x.form and x.at.ndim > 3:  # patches: their rows are tokens
            x = x.viewed(x.at.reshape(len(x.at), -1, x.at.shape[-1]))
        return value_of(forms.linear(self._form(x), weight).scaled(2.0 ** (sum(scales) - item.scale)), item.shape)

    # --- products ----------------------------------------------------------------------------------------------------
    def _mul(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        factor = 2.0 ** (sum(scales) - item.scale)
        for one, other in (args, args[::-1]):
            value = self._form(other).known() if other.form is not None else None
            if value is not None:
                return value_of(forms.times(self._form(one), value).scaled(factor), item.shape)
        wide = [value.viewed(np.broadcast_to(value.at, item.shape)) for value in args]
        left = right = self._held(wide[0], item.shape, self._scores(wide[1]))
        if not equal(wide[0], wide[1]):
            right = self._held(wide[1], item.shape, left.base.layout)
            if not left.base.layout.same(right.base.layout):
                left = self._held(wide[0], item.shape, right.base.layout, again=True)
        return self._multiplied(left, right, item.shape, factor)

    _mul_public = _mul
    _mul_private = _mul

    def _multiplied(
        self, left: FactoredValue, right: FactoredValue, shape: tuple[int, ...], factor: float = 1.0
    ) -> PlannedValue:
        numbers = self.circuit.new(left.base.layout.blocks)
        pairs = list(zip(left.operands, right.operands, strict=True))
        self.circuit.add(MultiplyStep(numbers, self.path, pairs=pairs))
        clean = left.base.clean or right.base.clean
        factor *= left.factor * right.factor
        return self._result(left.base.layout, clean, factor, shape, numbers, left.base.tokens)

    def _scores(self, value: PlannedValue) -> Layout | None:
        """The layout of scores, if that is what the value lies in."""
        if value.form is None:
            return None
        found = forms.as_elementwise(self._form(value), value.at.size) if len(value.form.terms) == 1 else None
        if found is None or not self.bases[found.base].tokens:
            return None
        return self.bases[found.base].layout

    def _held(
        self, value: PlannedValue, shape: tuple[int, ...], layout: Layout | None, again: bool = False
    ) -> FactoredValue:
        """The value in ciphertexts: those it lies in if it is but a factor of them, else through an affine map."""
        shape = shape or (1,)
        if value.form is None and layout is not None:
            base = self.bases[self._input(value.client, value.at, layout)]
            return FactoredValue(base, [Operand(number) for number in base.ciphertexts], value.factor)
        form = self._form(value)
        found = None if again else forms.as_elementwise(form, form.size)
        factor = found.uniform if found else None
        if found is not None and factor is not None:
            base = self.bases[found.base]
            plus: list[Array | None] = [None] * base.layout.blocks
            if found.shift.any():
                plus = list(base.layout.spread(found.shift.reshape(-1) / factor))
            operands = [Operand(n, p) for n, p in zip(base.ciphertexts, plus, strict=True)]
            return FactoredValue(base, operands, factor)
        own = self.bases[found.base].layout if found is not None else None
        base = self._laid_out(form, own or layout or self.packing.natural(shape))
        return FactoredValue(base, [Operand(number) for number in base.ciphertexts])

    def _laid_out(self, form: AffineForm, layout: Layout) -> Base:
        """An affine map into new ciphertexts."""
        held = {term.base: self.bases[term.base] for term in form.terms}
        places = {number: (base.layout, base.ciphertexts) for number, base in held.items()}
        numbers = self.circuit.new(layout.blocks)
        self.circuit.add(AffineStep(numbers, self.path, blocks=blocks_of(form, layout, places, self.packing)))
        scores = next((b.tokens for b in held.values() if b.layout.same(layout)), 0)
        base = Base(layout, numbers, clean=True, tokens=scores)
        self.bases.append(base)
        return base

    def _polynomial(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        """Powers by products, as few in sequence as there can be; coefficients are left to whoever reads the sum."""
        given = item.attributes["coefficients"]
        c = [signed(v) * 2.0 ** (k * scales[0] - item.scale) for k, v in enumerate(given)]
        while len(c) > 1 and c[-1] == 0:
            c.pop()
        if len(c) == 3:  # c2 (x + c1 / 2 c2)^2 + the rest: a square of one affine map
            shifted = value_of(forms.add(self._form(args[0]), forms.known(np.array([c[1] / (2 * c[2])]))), item.shape)
            held = self._held(shifted, item.shape, None)
            square = self._form(self._multiplied(held, held, item.shape, c[2]))
            return value_of(forms.add(square, forms.known(np.array([c[0] - c[1] ** 2 / (4 * c[2])]))), item.shape)
        held = self._held(args[0], item.shape, None)
        powers = {1: held}
        out = forms.add(self._form(args[0]).scaled(c[1] if len(c) > 1 else 0.0), forms.known(np.array([c[0]])))
        if len(c) > 2:  # what lies in ciphertexts already is read from there
            out = forms.known(np.full(item.shape or (1,), c[0]))
        for k in range(2, len(c)):
            if c[k] != 0:
                out = forms.add(out, self._form(self._power(powers, k, item.shape)).scaled(c[k]))
        if len(c) > 2 and c[1] != 0:
            out = forms.add(out, self._read(held, item.shape).scaled(c[1]))
        return value_of(out, item.shape)

    def _power(self, powers: dict[int, FactoredValue], k: int, shape: tuple[int, ...]) -> PlannedValue:
        """x^k, its ciphertexts kept for higher ones. Half of k is rounded to a power of two: products are shared."""
        high = 1 << (k - 1).bit_length() - 1
        for part in (high, k - high):
            if part not in powers:
                self._power(powers, part, shape)
        value = self._multiplied(powers[high], powers[k - high], shape)
        powers[k] = self._held(value, shape, None)
        return value

    def _read(self, held: FactoredValue, shape: tuple[int, ...]) -> AffineForm:
        """The form of what is held."""
        number = next(i for i, base in enumerate(self.bases) if base is held.base)
        constant = np.zeros(int(np.prod(shape)))
        if held.operands[0].plus is not None:
            constant = held.base.layout.collect(np.stack([o.plus for o in held.operands if o.plus is not None]))
        form = forms.identity(number, shape or (1,))
        return AffineForm(form.shape, form.terms, constant.reshape(form.constant.shape)).scaled(held.factor)

    # --- attention ---------------------------------------------------------------------------------------------------
    def _matmul(self, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
        factor = 2.0 ** (sum(scales) - item.scale)
        x, y = args
        if y.form is not None and not y.form.terms and y.at.ndim == 2:
            return self._linear(item, args, scales)
        weights = self._scores(x)
        if weights is not None and y.at.shape[:-1] == (*x.at.shape[:-2], x.at.shape[-1]):
            return self._mixed(x, y, item.shape, factor)
        turned = y.viewed(np.swapaxes(y.at, -1, -2))
        query = self._form(x).known() if x.form is not None else None
        if query is not None and _attend(x.at.shape, turned.at.shape) and item.shape[-2] == 1:
            return self._known_query(query, turned, item.shape, factor)
        if not _attend(x.at.shape, turned.at.shape):
            raise self._fail(
                f"a product of secrets [{_text(x.at)}] x [{_text(y.at)}]; ckks knows attention over the tokens "
                "of a text: queries by keys, weights by values"
            )
        return self._scored(x, turned, item.shape, factor)

    def _clean(self, value: PlannedValue) -> FactoredValue:
        held = self._held(value, value.at.shape, None)
        natural = self.packing.natural(value.at.shape)
        if held.base.clean and held.base.layout.same(natural):
            return held
        base = self._laid_out(self._form(value), natural)
        return FactoredValue(base, [Operand(number) for number in base.ciphertexts])

    def _scored(self, x: PlannedValue, y: PlannedValue, shape: tuple[int, ...], factor: float) -> PlannedValue:
        texts, heads, tokens = (shape[0], shape[1] if len(shape) == 4 else 1, shape[-1])
        check_scores(self.packing, heads, self.path)
        group, lanes = 1 << (heads - 1).bit_length(), self.packing.lanes
        sums = [group * lanes << k for k in range((self.packing.features // group).bit_length() - 1)]
        queries, keys = self._clean(x), self._clean(y)
        factor *= queries.factor * keys.factor
        if shape[-2] == 1:
            number = self.circuit.new(1)
            self.circuit.add(
                QueryScores(number, self.path, span=span(tokens), queries=queries.operands, keys=keys.operands,
                            sums=sums)
            )  # fmt: skip
            return self._result(query_layout(self.packing, texts, heads, tokens), False, factor, shape, number, tokens)
        self._check_stride(tokens)
        numbers = self.circuit.new(tokens)
        giant = baby_steps(tokens)
        self.circuit.add(
            Scores(numbers, self.path, tokens=tokens, giant=giant, lanes=lanes, queries=queries.operands,
                   keys=keys.operands, sums=sums)
        )  # fmt: skip
        layout = score_layout(self.packing, texts, heads, tokens, giant)
        return self._result(layout, False, factor, shape, numbers, tokens)

    def _known_query(self, query: Array, y: PlannedValue, shape: tuple[int, ...], factor: float) -> PlannedValue:
        """Scores of a query that is no secret, as of the first layer's class token: a linear map of the keys."""
        texts, heads, tokens = shape[0], shape[1] if len(shape) == 4 else 1, shape[-1]
        check_scores(self.packing, heads, self.path)
        form = forms.gather(forms.total(forms.times(self._form(y), query)), element_numbers(shape)).scaled(factor)
        base = self._laid_out(form, query_layout(self.packing, texts, heads, tokens))
        return self._result(base.layout, True, 1.0, shape, base.ciphertexts, tokens)

    def _mixed(self, x: PlannedValue, y: PlannedValue, shape: tuple[int, ...], factor: float) -> PlannedValue:
        weights, values = self._held(x, x.at.shape, None), self._clean(y)
        factor *= weights.factor * values.factor
        tokens = x.at.shape[-1]
        numbers = self.circuit.new(values.base.layout.blocks)
        if shape[-2] == 1:
            self.circuit.add(
                QueryMix(numbers, self.path, span=span(tokens), weights=weights.operands, values=values.operands)
            )
            return self._result(self.packing.natural(shape), False, factor, shape, numbers)
        self.circuit.add(
            Mix(numbers, self.path, tokens=tokens, giant=baby_steps(tokens), lanes=self.packing.lanes,
                weights=weights.operands, values=values.operands)
        )  # fmt: skip
        return self._result(values.base.layout, False, factor, shape, numbers)

    def _check_stride(self, tokens: int) -> None:
        if self.packing.stride < 2 * tokens:
            raise self._fail(f"attention over {tokens} tokens, and texts lie {self.packing.stride} lanes apart")


def _attend(queries: tuple[int, ...], keys: tuple[int, ...]) -> bool:
    """Whether shapes [texts, (heads,) tokens, features] are of queries and keys: one query, or as many as keys."""
    return (
        len(queries) in (3, 4)
        and (*queries[:-2], queries[-1]) == (*keys[:-2], keys[-1])
        and queries[-2] in (1, keys[-2])
    )


def _text(at: Array) -> str:
    return ", ".join(str(n) for n in at.shape)
