"""Answers the calls of linear layers while a model runs: torch's own mechanism, `TorchFunctionMode`.

The rest of the model is its authors' code. A call is answered where its weight is a parameter of the model: `F.linear`,
`torch.addmm` (GPT-2's Conv1D), products with `@`, and convolutions, whose input is unfolded to rows. What computes with
a parameter in any other way shows it to the observer, and is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...approximations.overrides import opened
from ...protocols.operations.shapes import patches
from .layers import LinearLayer, ParameterIndex


class LinearCalls(Protocol):
    """Who answers, while one model runs."""

    def answer(self, layer: LinearLayer, x: Tensor) -> Tensor | None:
        """x [rows, inputs] times the layer's matrix, float32 [rows, outputs]; None: it is left to torch."""
        ...

    def used(self, parameter: str) -> None:
        """Something else computes with this parameter."""
        ...


class Interception(TorchFunctionMode):
    """In force as a context manager. `index`: of the model that runs. `observing`: whether other uses of parameters are
    shown, which takes time."""

    def __init__(self, index: ParameterIndex, calls: LinearCalls, observing: bool = True) -> None:
        super().__init__()
        self._index, self._calls, self._observing = index, calls, observing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}  # thousands of calls a token come through here, most of them to leave at once
        answer = _ANSWERS.get(func)
        if answer is not None:
            result = answer(self, *args, **kwargs)
            if result is not None:
                return result
        elif not self._observing and func not in _IN_PARTS:
            return func(*args, **kwargs)
        if func in _IN_PARTS:
            with self:
                return opened(func)(*args, **kwargs)
        result = func(*args, **kwargs)
        if self._observing and getattr(func, "__name__", "") != "__get__":  # of attributes: shapes, types
            self._note(args, kwargs, result)
        return result

    def matmul(self, x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """x [..., inputs] by the layer's matrix [outputs, inputs], and a bias of the client's own."""
        layer = self._index.layer_of(matrix)
        if layer is None or not x.is_floating_point():
            return None
        rows = x.reshape(-1, layer.inputs)
        product = self._calls.answer(layer, rows.float())
        if product is None:
            return None
        product = product.view(*x.shape[:-1], layer.outputs).to(x.dtype)
        return product if bias is None else product + bias

    def _note(self, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Parameters among the arguments of a function whose result is not a view of one."""
        for tensor in _tensors((args, tuple(kwargs.values()))):
            name = self._index.name_of(tensor)
            if name is not None and any(self._index.name_of(one) != name for one in _tensors(result)):
                self._calls.used(name)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _linear(mode: Interception, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    return mode.matmul(input, weight, bias)


def _addmm(mode: Interception, input: Tensor, mat1: Tensor, mat2: Tensor, **factors: Any) -> Tensor | None:
    return None if factors else mode.matmul(mat1, mat2.t(), input)


def _product(mode: Interception, input: Tensor, other: Tensor) -> Tensor | None:
    return mode.matmul(input, other.t()) if other.dim() == 2 else None


def _convolution(
    mode: Interception,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """As a product of the unfolded input [batch, places, channels x kernel]. One with groups is left to torch."""
    sizes = weight.shape[2:]
    axes = len(sizes)
    dilation = _each(dilation, axes)
    if groups != 1 or input.dim() != weight.dim():
        return None
    if padding == "same":
        whole = [hole * (size - 1) for size, hole in zip(sizes, dilation, strict=True)]
        input = F.pad(input, [side for one in reversed(whole) for side in (0, one % 2)])  # more at the end
        padding = [one // 2 for one in whole]
    around = [0] * axes if padding == "valid" else _each(padding, axes)
    product = mode.matmul(patches(input, sizes, _each(stride, axes), around, dilation), weight, bias)
    return None if product is None else product.movedim(-1, 1).contiguous()


def _each(value: Any, count: int) -> list[int]:
    return [value] * count if isinstance(value, int) else list(value) * (count if len(value) == 1 else 1)


_ANSWERS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _product),
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
}
_IN_PARTS = {F.multi_head_attention_forward}
