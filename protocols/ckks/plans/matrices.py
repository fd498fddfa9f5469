"""Matrix products: by a weight an affine map, of secrets the two products of attention."""

from __future__ import annotations

import numpy as np

from .. import affine
from ..circuit import Mix, Operand, QueryMix, QueryScores, Scores, check_scores
from ..packing import baby_steps, query_layout, score_layout, span
from ..planner import Planner, plan
from ..values import Array, FactoredValue, PlannedInstruction, PlannedValue, element_numbers, value_of


@plan("linear")
def linear(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    weight = planner.form(args[1]).known()
    if weight is None:
        return matmul(planner, item, args, scales)
    if weight.ndim != 2:
        raise planner.fail(f"a linear by several matrices [{_text(weight)}]; ckks knows one for all rows")
    x = args[0]
    if not x.form and x.at.ndim > 3:  # patches: their rows are tokens
        x = x.viewed(x.at.reshape(len(x.at), -1, x.at.shape[-1]))
    return value_of(affine.linear(planner.form(x), weight).scaled(2.0 ** (sum(scales) - item.scale)), item.shape)


@plan("matmul")
def matmul(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    factor = 2.0 ** (sum(scales) - item.scale)
    x, y = args
    if y.form is not None and not y.form.terms and y.at.ndim == 2:
        return linear(planner, item, args, scales)
    weights = planner.scores(x)
    if weights is not None and y.at.shape[:-1] == (*x.at.shape[:-2], x.at.shape[-1]):
        return _mixed(planner, x, y, item.shape, factor)
    turned = y.viewed(np.swapaxes(y.at, -1, -2))
    query = planner.form(x).known() if x.form is not None else None
    if query is not None and _attend(x.at.shape, turned.at.shape) and item.shape[-2] == 1:
        return _known_query(planner, query, turned, item.shape, factor)
    if not _attend(x.at.shape, turned.at.shape):
        raise planner.fail(
            f"a product of secrets [{_text(x.at)}] x [{_text(y.at)}]; ckks computes only those of attention over tokens"
        )
    return _scored(planner, x, turned, item.shape, factor)


def _clean(planner: Planner, value: PlannedValue) -> FactoredValue:
    factored = planner.held(value, value.at.shape, None)
    natural = planner.packing.natural(value.at.shape)
    if factored.base.clean and factored.base.layout.same(natural):
        return factored
    base = planner.laid_out(planner.form(value), natural)
    return FactoredValue(base, [Operand(number) for number in base.ciphertexts])


def _scored(planner: Planner, x: PlannedValue, y: PlannedValue, shape: tuple[int, ...], factor: float) -> PlannedValue:
    texts, heads, tokens = (shape[0], shape[1] if len(shape) == 4 else 1, shape[-1])
    check_scores(planner.packing, heads, planner.path)
    group, lanes = 1 << (heads - 1).bit_length(), planner.packing.lanes
    sums = [group * lanes << k for k in range((planner.packing.features // group).bit_length() - 1)]
    queries, keys = _clean(planner, x), _clean(planner, y)
    factor *= queries.factor * keys.factor
    if shape[-2] == 1:
        number = planner.circuit.new(1)
        planner.circuit.add(
            QueryScores(number, planner.path, span=span(tokens), queries=queries.operands, keys=keys.operands,
                        sums=sums)
        )  # fmt: skip
        return planner.result(query_layout(planner.packing, texts, heads, tokens), False, factor, shape, number, tokens)
    _check_stride(planner, tokens)
    numbers = planner.circuit.new(tokens)
    giant = baby_steps(tokens)
    planner.circuit.add(
        Scores(numbers, planner.path, tokens=tokens, giant=giant, lanes=lanes, queries=queries.operands,
               keys=keys.operands, sums=sums)
    )  # fmt: skip
    layout = score_layout(planner.packing, texts, heads, tokens, giant)
    return planner.result(layout, False, factor, shape, numbers, tokens)


def _known_query(
    planner: Planner, query: Array, y: PlannedValue, shape: tuple[int, ...], factor: float
) -> PlannedValue:
    """Scores of a query that is no secret, as of the first layer's class token: a linear map of the keys."""
    texts, heads, tokens = shape[0], shape[1] if len(shape) == 4 else 1, shape[-1]
    check_scores(planner.packing, heads, planner.path)
    form = affine.gather(affine.total(affine.times(planner.form(y), query)), element_numbers(shape)).scaled(factor)
    base = planner.laid_out(form, query_layout(planner.packing, texts, heads, tokens))
    return planner.result(base.layout, True, 1.0, shape, base.ciphertexts, tokens)


def _mixed(planner: Planner, x: PlannedValue, y: PlannedValue, shape: tuple[int, ...], factor: float) -> PlannedValue:
    weights, values = planner.held(x, x.at.shape, None), _clean(planner, y)
    factor *= weights.factor * values.factor
    tokens = x.at.shape[-1]
    numbers = planner.circuit.new(values.base.layout.blocks)
    if shape[-2] == 1:
        planner.circuit.add(
            QueryMix(numbers, planner.path, span=span(tokens), weights=weights.operands, values=values.operands)
        )
        return planner.result(planner.packing.natural(shape), False, factor, shape, numbers)
    planner.circuit.add(
        Mix(numbers, planner.path, tokens=tokens, giant=baby_steps(tokens), lanes=planner.packing.lanes,
            weights=weights.operands, values=values.operands)
    )  # fmt: skip
    return planner.result(values.base.layout, False, factor, shape, numbers)


def _check_stride(planner: Planner, tokens: int) -> None:
    if planner.packing.stride < 2 * tokens:
        raise planner.fail(f"attention over {tokens} tokens, and texts lie {planner.packing.stride} lanes apart")


def _attend(queries: tuple[int, ...], keys: tuple[int, ...]) -> bool:
    """Whether shapes [texts, (heads,) tokens, features] are of queries and keys: one query, or as many as keys."""
    return (
        len(queries) in (3, 4)
        and (*queries[:-2], queries[-1]) == (*keys[:-2], keys[-1])
        and queries[-2] in (1, keys[-2])
    )


def _text(at: Array) -> str:
    return ", ".join(str(n) for n in at.shape)
