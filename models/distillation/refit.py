"""A student's start: linear layers that give what the teacher's give, from what the student's functions make of inputs.

Layer by layer, in the order in which they run, a linear layer's weight W and bias are replaced by the least squares
solution min ||X (W + D)^T - Y||^2 + ridge ||D||^2: X [tokens, inputs] is what it reads in the student, Y [tokens,
outputs] what it gives in the teacher. So the next linear layer undoes GELU's parabola as far as it can, before any step
of training. It is the layer-wise reconstruction of post-training quantisation (E. Frantar, D. Alistarh,
arXiv:2208.11580), for other functions instead of coarser weights.

Where a softmax reads only some of a head's features (linear attention), queries and keys are turned so that these
features hold as much of the scores as they can: a query A and a key B have the products of before if A B^T = 1, and the
singular values of the scores tell what each pair of their directions is worth.

A square stands in place of softmax's exponential. (1 + x/5)^2 is flatter, so queries are made larger by GAIN, but no
more than keeps scores below a limit: a large negative score has a large square. Keys lose their mean: softmax does not
see it, a square does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations import Plan, plan_of
from ...approximations.calibrate import in_force
from ...approximations.linear_attention import RANK, read_features
from ...approximations.pooling import fewer_tokens
from ...approximations.registry import EXACT
from ..loading.layers import layer_count, stack_of
from .layerwise import (
    Batch,
    first_calls,
    groups_of,
    inputs_of,
    kept_tokens,
    next_calls,
    queries_and_keys,
    results_of,
)

GAIN = 2.5  # 1 + 2 * 2.5 x / 5 is the exponential to first order
SPREAD = 4.0  # of a head's scores, a standard deviation: a third of what they may be (softmax's limit)
RIDGE = 1e-3  # of the mean square of an input


def refit(
    teacher: nn.Module, student: nn.Module, batches: Sequence[Batch], kept: Sequence[int] | None = None
) -> dict[str, tuple[float, float]]:
    """Refit the linear layers of a student's stack of layers in place. A layer of both models has the same modules.

    batches: of the model's inputs; some ten thousand tokens, several for each input of the widest layer.
    kept: which of the teacher's layers the student's are (None: all).
    Returns, by linear layer, the relative squared error of its result (before, after).

    Errors: DistillError for a model without a list of layers.
    """
    count, plan, own = layer_count(teacher), plan_of(student), plan_of(teacher)
    path, places = stack_of(teacher, count), list(range(count) if kept is None else kept)
    seen = [batch["attention_mask"].float() for batch in batches]
    errors: dict[str, tuple[float, float]] = {}
    tame = own is None or own.softmax.name == EXACT
    rotates = any("rotary" in type(module).__name__.lower() for module in student.modules())
    with torch.no_grad():
        theirs, ours = (first_calls(model, path, batches) for model in (teacher, student))
        for place in range(count):
            layer = teacher.get_submodule(f"{path}.{place}")
            if place not in places:
                theirs = next_calls(layer, theirs)
                continue
            number = places.index(place)
            copy = student.get_submodule(f"{path}.{number}")
            halvings = plan.halvings(number) if plan else 0
            heads: int = student.config.num_attention_heads  # type: ignore[union-attr,assignment]
            turned_for = None if rotates or (own is not None and not own.has_scores()) else plan
            taught = _pooled(results_of(layer, theirs), seen, halvings)
            taught = _tamed(taught, heads, turned_for, f"{path}.{number}", tame)
            masks = [fewer_tokens(mask[..., None], mask, halvings)[1] for mask in seen]
            for group in groups_of(layer, theirs[0]):
                read = inputs_of(copy, ours, group[0], masks)
                for name in group:
                    linear: Any = copy.get_submodule(name)
                    goal = taught[name][:, : linear.out_features]  # of a narrower student the first features
                    errors[f"{path}.{number}.{name}"] = _fit(linear, read, goal)
            theirs, ours = next_calls(layer, theirs), next_calls(copy, ours)
    return errors


def concentrate(student: nn.Module, batches: Sequence[Batch], own: Plan, plan: Plan) -> None:
    """Turn a model's queries and keys, in place, so that the features that linear attention reads hold as much of their
    scores as they can. Answers with its own functions stay as they are; where they do not, because something stands
    between a projection and the scores, such as a rotation by position, nothing is turned.

    own: the plan that its weights were trained with. plan: whose choices say how many features are read.
    """
    heads: int = student.config.num_attention_heads  # type: ignore[union-attr,assignment]
    results: dict[str, list[Tensor]] = {}
    named = ((path, _ends(module)) for path, module in student.named_modules())
    pairs = [(f"{path}.{e[0]}", f"{path}.{e[1]}") for path, e in named if e is not None and not plan.has_scores(path)]

    def keep(name: str, mask: Tensor | None, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        while mask is not None and mask.shape[1] > out.shape[1]:  # behind a pooling
            mask = fewer_tokens(mask[..., None], mask, 1)[1]
        results.setdefault(name, []).append(out.flatten(0, -2) if mask is None else out[mask > 0])

    with torch.no_grad(), in_force(student, own):
        for batch in batches:
            hooks = [
                student.get_submodule(name).register_forward_hook(partial(keep, name, batch.get("attention_mask")))
                for pair in pairs
                for name in pair
            ]
            before = _answers(student, batch)
            for hook in hooks:
                hook.remove()
        linears = {name: student.get_submodule(name) for pair in pairs for name in pair}
        weights = {name: {k: v.clone() for k, v in linear.state_dict().items()} for name, linear in linears.items()}
        for pair in pairs:
            query, key = (torch.cat(results[name]) for name in pair)
            if query.shape != key.shape:
                continue
            middle = key.mean(0) if own.softmax.name == EXACT else torch.zeros(key.shape[-1])
            rank = _rank_of(plan, pair[0].rpartition(".")[0])
            turns = _turns(query.unflatten(-1, (heads, -1)), (key - middle).unflatten(-1, (heads, -1)), rank)
            for name, turn, zero in zip(pair, turns, (0.0, middle), strict=True):
                linear: Any = linears[name]
                linear.weight.copy_(_turned(linear.weight.T, turn).T)
                linear.bias.copy_(_turned(linear.bias - zero, turn))
        after = zip(_answers(student, batch), before, strict=True)
        if any((new - old).abs().max() > 1e-3 * old.abs().max() for new, old in after):
            for name, state in weights.items():
                linears[name].load_state_dict(state)


def _answers(model: nn.Module, batch: Batch) -> list[Tensor]:
    """What a model gives for the tokens that count."""
    outputs, mask = model(**batch).to_tuple(), batch.get("attention_mask")
    tensors = [x for x in outputs if isinstance(x, Tensor)]
    return [x[mask > 0] if mask is not None and x.shape[:2] == mask.shape else x for x in tensors]


def _rank_of(plan: Plan, path: str) -> float:
    """How many features of a head linear attention reads there."""
    return plan.choice("softmax", path).options.get("rank", RANK)


def _ends(module: nn.Module) -> tuple[str, str] | None:
    """The names of its linear layers that give queries and keys."""
    children = module.named_children()
    return queries_and_keys(n for n, child in children if isinstance(child, nn.Linear) and child.bias is not None)


def _turns(query: Tensor, key: Tensor, rank: float) -> tuple[Tensor, Tensor]:
    """A and B [heads, d, d] of queries and keys [tokens, heads, d], with A B^T = 1: of query A and key B, the features
    that are read hold the largest singular values of the scores."""
    roots = []
    for x in (query, key):
        moments = torch.einsum("nhi,nhj->hij", x, x) / len(x)
        size = moments.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-6)  # of a head that says nothing, too
        ridge = 1e-4 * size[:, None, None] * torch.eye(x.shape[-1])
        roots.append(torch.linalg.cholesky(moments + ridge))
    left, values, right = torch.linalg.svd(roots[0].mT @ roots[1])
    read = read_features(query.shape[-1], rank)
    order = torch.tensor([*read, *sorted({*range(query.shape[-1])} - {*read})]).argsort()
    sides = ((root, side * values.sqrt()[:, None]) for root, side in zip(roots, (left, right.mT), strict=True))
    a, b = (torch.linalg.solve(root.mT, side)[..., order] for root, side in sides)
    return a, b


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """x [..., heads d], each head's features turned."""
    return torch.einsum("...hi,hij->...hj", x.unflatten(-1, (len(turn), -1)), turn).flatten(-2)


def _tamed(taught: dict[str, Tensor], heads: int, plan: Plan | None, layer: str, tame: bool) -> dict[str, Tensor]:
    """The teacher's results, with keys of mean 0 and queries of which scores are neither flat nor far, unless the
    teacher computes squares itself (`tame` is False); turned for the features that a plan reads, if one is given."""
    ends = queries_and_keys(taught)
    if ends is None:
        return taught
    query, key = ends
    q, k = taught[query], taught[key] - (taught[key].mean(0) if tame else 0.0)
    if q.shape != k.shape:
        return taught
    by_head = [value.unflatten(-1, (heads, -1)) for value in (q, k)]
    moments = [torch.einsum("nhi,nhj->hij", value, value) / len(value) for value in by_head]
    spread = ((moments[0] * moments[1]).sum((1, 2)) / moments[0].shape[-1]).sqrt()
    gain = (SPREAD / spread).clamp(max=GAIN) if tame else torch.ones(heads)
    q = (by_head[0] * gain[:, None]).flatten(1)
    module = f"{layer}.{query.rpartition('.')[0]}"
    if plan is not None and not plan.has_scores(module):
        turns = _turns(q.unflatten(-1, (heads, -1)), by_head[1], _rank_of(plan, module))
        q, k = _turned(q, turns[0]), _turned(k, turns[1])
    return {**taught, key: k, query: q}


def _fit(linear: Any, x: Tensor, y: Tensor) -> tuple[float, float]:
    middle, goal = x.mean(0), y.mean(0)
    x, y = x - middle, y - goal
    moments = x.T @ x
    ridge = RIDGE * moments.diagonal().mean() * torch.eye(len(moments))
    gain = (y * (x @ linear.weight.T)).sum(0) / (x @ linear.weight.T).square().sum(0).clamp_min(1e-12)
    weight = linear.weight * gain[:, None]
    left = y - x @ weight.T
    change = torch.linalg.solve(moments + ridge, x.T @ left)
    linear.weight.copy_(weight + change.T)
    if linear.bias is not None:
        linear.bias.copy_(goal - linear.weight @ middle)
    size = y.square().mean().clamp_min(1e-12)
    return float(left.square().mean() / size), float((left - x @ change).square().mean() / size)


def _pooled(results: dict[str, list[Tensor]], seen: Sequence[Tensor], halvings: int) -> dict[str, Tensor]:
    """What linear layers give, [tokens, outputs] by name, pooled as a student pools its tokens."""
    pooled = {
        name: [fewer_tokens(value, mask, halvings) for value, mask in zip(values, seen, strict=True)]
        for name, values in results.items()
    }
    return {name: kept_tokens(*zip(*pairs, strict=True)) for name, pairs in pooled.items()}
