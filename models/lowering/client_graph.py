"""The client's prelude: what depends on its inputs alone, run in the clear at the client.

Steps name ATen operations. Only operations on the list below are run: a program from a peer cannot name anything else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...approximations import attention as _defines_operations  # noqa: F401
from ...approximations.primitives import FUNCTIONS
from ..program.program import PreludeStep, Program, ProgramError

ALLOWED = frozenset(
    """
    embedding add sub rsub mul div neg pow sqrt rsqrt sum mean amax max min maximum minimum clamp eq ne lt le gt ge
    where masked_fill __and__ __or__ bitwise_and bitwise_or bitwise_not logical_and logical_or logical_not
    view reshape _unsafe_view flatten unflatten permute transpose t unsqueeze squeeze expand expand_as slice select
    index index_select gather cat stack split chunk unbind contiguous clone alias detach to _to_copy dropout
    type_as ones_like zeros_like full_like new_ones new_zeros arange full ones zeros cumsum im2col one_hot
    constant_pad_nd pad triu tril sin cos log log1p expm1 repeat roll abs square polynomial levels reached
    exp_by_cell fourier sides lift_fresh lift_fresh_copy new_full
    scalar_tensor argmax layer_norm repeat_interleave polar log2 exp floor matmul mm bmm addmm linear conv2d relu
    sigmoid tanh erf softplus reciprocal split_with_sizes any all isin remainder sign copy fill slice_scatter
    select_scatter scatter index_put unfold flip max_pool1d keeps unmasked sort argsort topk
    """.split()  # noqa: SIM905 - one list to read, not eighty quotes
)


def run_prelude(
    program: Program, tensors: Mapping[str, Tensor], inputs: Mapping[str, Any], wanted: Collection[str] | None = None
) -> dict[str, Any]:
    """All values of the prelude by name, for one query's inputs (shapes as compiled).

    `wanted`: only what these of `program.client` and `program.known` need.
    """
    values: dict[str, Any] = dict(tensors)
    refs = {**program.client, **program.known}
    needed = None if wanted is None else behind(program.prelude, (refs[name] for name in wanted))
    for name, shape in program.inputs.items():
        if needed is not None and name not in needed:
            continue
        if name not in inputs:
            raise ProgramError(f"input {name}: is missing; the program takes {', '.join(program.inputs)}")
        if tuple(inputs[name].shape) != tuple(shape):
            raise ProgramError(
                f"input {name}: has shape {list(inputs[name].shape)}, the program takes {list(shape)}; pad to that"
            )
        values[name] = inputs[name]
    with torch.no_grad():
        for step in program.prelude:
            if needed is not None and step.name not in needed:
                continue
            args = [_decode(arg, values) for arg in step.args]
            if step.target == "getitem":
                values[step.name] = args[0][args[1]]
                continue
            kwargs = {k: _decode(arg, values) for k, arg in step.kwargs.items()}
            _check_ids(step, args)
            values[step.name] = operation(step.target)(*args, **kwargs)
    return values


def inputs_behind(program: Program) -> dict[str, frozenset[str]]:
    """By value of the data's owner, the inputs that it is computed from."""
    inputs = set(program.inputs)
    return {name: frozenset(behind(program.prelude, [ref]) & inputs) for name, ref in program.client.items()}


def behind(steps: Sequence[PreludeStep], refs: Iterable[str]) -> set[str]:
    """These values, and all that they are computed from."""
    needed = set(refs)
    for step in reversed(steps):
        if step.name in needed:
            needed |= _refs([step.args, step.kwargs])
    return needed


def _refs(arg: Any) -> set[str]:
    if isinstance(arg, dict):
        return {arg["ref"]} if "ref" in arg else set().union(*(_refs(item) for item in arg.values()), set())
    return set().union(*(_refs(item) for item in arg), set()) if isinstance(arg, list | tuple) else set()


def _check_ids(step: PreludeStep, args: list[Any]) -> None:
    """Errors: ProgramError where a lookup would read a row that its table does not have."""
    if "embedding" in step.target:
        rows, ids = len(args[0]), args[1]
    elif "one_hot" in step.target:
        rows, ids = args[1], args[0]
    else:
        return
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
        raise ProgramError(f"inputs: an id is outside the model's {rows}; encode with the model's own tokenizer")


def operation(target: str) -> Any:
    """An operation of the list by its name, as `aten.add.Tensor`. Errors: ProgramError."""
    namespace, _, rest = target.partition(".")
    name, _, overload = rest.partition(".")
    ours = namespace == "blindformer"
    if (namespace != "aten" and not ours) or name not in (ALLOWED & FUNCTIONS.keys() if ours else ALLOWED):
        raise ProgramError(f"prelude: operation {target} is not allowed at the client; compile the model again")
    if name == "one_hot":
        return torch.nn.functional.one_hot
    if ours:
        return FUNCTIONS[name]
    if name in ("view", "_unsafe_view"):
        return torch.reshape  # how a copy lies in memory is not part of a step
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def _decode(arg: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(arg, dict):
        if "ref" in arg:
            return values[arg["ref"]]
        if "dtype" in arg:
            return getattr(torch, arg["dtype"])
        if "device" in arg:
            return torch.device(arg["device"])
    if isinstance(arg, list):
        return [_decode(item, values) for item in arg]
    return arg
