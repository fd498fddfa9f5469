"""PyTorch's override mechanism: while an approximated module runs, its functions are answered by the plan."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .attention import all_or_kept, keep_and_scores, scaled_scores, split_mask
from .linear import AffineParameters, fake_quantise, quantise_behind
from .normalisation import centred, rms_norm
from .plan import DENOMINATOR, FULL_BITS, Plan
from .primitives import inverse
from .registry import EXACT, KINDS, Approximation, Constants
from .softmax import mix

LINEAR = "linear"


class Observer(Protocol):
    """Sees, at every call site, the values whose range the approximation is fitted to."""

    def __call__(self, site: str, kind: str, value: Tensor) -> None: ...


class LinearReader(Protocol):
    """Sees a linear layer's input x [..., inputs], its weight, the axis of its outputs, and the norm before it."""

    def __call__(
        self, path: str, x: Tensor, weight: Tensor, axis: int, norm: AffineParameters | None, bits: int
    ) -> None: ...


@dataclass
class _Frame:
    path: str
    calls: Counter[str] = field(default_factory=Counter)
    paused: bool = False


class _Affines(WeakIdKeyDictionary):
    """A norm's result -> its affine, for a linear layer that reads it. A copy is empty: nothing outlives a run."""

    def __reduce__(self) -> tuple[type[_Affines], tuple[()]]:
        return _Affines, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Affines:
        return _Affines()


class Overrides(TorchFunctionMode):
    """Answers the functions of one approximated model. Modules enter it in turn; it is in force while any of them runs.

    plan      what to answer
    observer  if set, is shown values on the way
    exact     kinds left to torch for now, whatever the plan says (used while calibrating)
    reader    if set, is shown what each linear layer that is to be quantised reads
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.observer: Observer | None = None
        self.exact: frozenset[str] = frozenset()
        self.reader: LinearReader | None = None
        self._frames: dict[int, list[_Frame]] = {}  # by thread, as torch's own stack of modes is
        self._constants: dict[tuple[str, str], tuple[Approximation, Constants]] = {}
        self._affines = _Affines()

    def use(self, plan: Plan) -> None:
        """Replace the plan."""
        self.plan = plan
        self._constants.clear()

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """In force, for calls made by the module at ``path``."""
        thread = threading.get_ident()
        frames = self._frames.setdefault(thread, [])
        frames.append(_Frame(path))
        try:
            if len(frames) == 1:
                with self:
                    yield
            else:
                yield
        finally:
            frames.pop()
            if not frames:
                del self._frames[thread]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not in force, for the rest of the innermost module's call."""
        frame = self._frame()
        frame.paused = True
        try:
            yield
        finally:
            frame.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = _ANSWERS.get(func)
        if answer is None or self._frame().paused:
            return self._without_affine(func, func(*args, **(kwargs or {})))
        return answer(self, func, *args, **(kwargs or {}))

    # One method per shape of function. ``exactly`` is what torch would have done.

    def elementwise(self, kind: str, x: Tensor, exactly: Callable[[], Tensor], scale: float = 1.0) -> Tensor:
        """f(scale x) / scale, f one of gelu, silu, tanh, sigmoid, rsqrt, reciprocal."""
        site = self._site(kind)
        scaled = x if scale == 1.0 else x * scale
        self._show(site, kind, scaled)
        found, constants = self._find(kind, site)
        if found.function is None:
            return exactly()
        result = found.function(scaled, **constants)
        return result if scale == 1.0 else result * (1.0 / scale)

    def softmax(self, x: Tensor, dim: int, exactly: Callable[[], Tensor]) -> Tensor:
        """Softmax of scores that may have an additive mask in them already."""
        site = self._site("softmax")
        found, constants = self._find("softmax", site)
        if found.function is None and self.observer is None:
            return exactly()
        last = dim in (-1, x.dim() - 1)
        keep, scores = keep_and_scores(x if last else x.transpose(dim, -1))
        self._show(site, "softmax", scores)
        if found.function is None:
            return exactly()
        numerators, denominators = found.function(scores, all_or_kept(keep), **constants)
        result = mix(numerators, denominators, None, lambda d: self._divide(site, d, found.most * scores.shape[-1]))
        return result if last else result.transpose(dim, -1)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        dropout: float,
        causal: bool,
        scale: float | None,
        exactly: Callable[[], Tensor],
    ) -> Tensor:
        """Scaled dot-product attention, divided after the mixing of values."""
        site = self._site("softmax")
        found, constants = self._find("softmax", site)
        if found.function is None and self.observer is None:
            return exactly()
        if key.shape[-3] != query.shape[-3] and key.dim() > 3:  # grouped queries
            key, value = (_repeat_heads(t, query.shape[-3] // t.shape[-3]) for t in (key, value))
        keep, bias = split_mask(mask, query, key, causal)
        scores, scale = scaled_scores(query, key, scale, bias)
        if self.observer is not None:
            self._show(site, "softmax", scores * scale)
        if found.function is None:
            return exactly()
        numerators, denominators = found.function(scores, keep, scale, **constants)
        if dropout > 0.0:
            numerators = F.dropout(numerators, dropout)
        return mix(numerators, denominators, value, lambda d: self._divide(site, d, found.most * key.shape[-2]))

    def layer_norm(
        self,
        x: Tensor,
        shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        *,
        eps: float,
        exactly: Callable[[], Tensor],
    ) -> Tensor:
        """LayerNorm over the last dimensions ``shape``."""
        site = self._site("layer_norm")
        if self.observer is not None:
            self._show(site, "layer_norm", centred(x, shape, eps)[1])
        found, constants = self._find("layer_norm", site)
        result = exactly() if found.function is None else found.function(x, shape, weight, bias, eps, **constants)
        if len(shape) == 1 and weight is not None:
            # Lowering leaves the odd part of the mean's 1 / features with the gain (models/passes/scalars.py).
            self._affines[result] = AffineParameters(weight / _odd_part(shape[0]), bias)
        return result

    def rms_norm(
        self, x: Tensor, shape: tuple[int, ...], weight: Tensor | None, eps: float, exactly: Callable[[], Tensor]
    ) -> Tensor:
        """RMSNorm over the last dimensions ``shape``, by the plan's rsqrt."""
        if self.observer is None and self._chosen("rsqrt") == EXACT:
            return exactly()
        result = rms_norm(x, shape, weight, eps, lambda m: self.elementwise("rsqrt", m, lambda: torch.rsqrt(m)))
        if len(shape) == 1 and weight is not None:
            self._affines[result] = AffineParameters(weight, None)
        return result

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> tuple[Tensor, Tensor | None]:
        """A linear layer's weight and bias as they will be on secrets; activations in a weight's place stay."""
        if LINEAR in self.exact or not isinstance(weight, nn.Parameter):
            return weight, bias
        bits = self.plan.bits_of(self._frame().path)
        if bits >= FULL_BITS:  # rounded when it is encoded
            return weight, bias
        norm = self._affines.get(x)
        if self.reader is not None:
            self.reader(self._frame().path, x, weight, axis, norm, bits)
            return weight, bias
        if norm is None:
            return fake_quantise(weight, bits, axis=axis), bias
        quantised, shift = quantise_behind(weight, bits, norm, axis)
        if shift is None or bias is None:
            return quantised, shift if bias is None else bias
        return quantised, bias + shift

    def _without_affine(self, func: Any, result: Any) -> Any:
        """A linear layer reads a norm if nothing stands between. Some functions return what they were given (dropout
        in evaluation, for one), but not under torch.export: in either case, theirs is no norm's result."""
        if not isinstance(result, Tensor) or result not in self._affines:
            return result
        if getattr(func, "__name__", "").endswith("_"):
            del self._affines[result]
            return result
        return result.view_as(result)

    def _divide(self, site: str, denominators: Tensor, most: float) -> Tensor:
        """`most`: the largest denominator there can be; 0: not known."""
        site += DENOMINATOR
        self._show(site, "reciprocal", denominators)
        if most:
            self._show(site, "reciprocal", torch.full((1,), most))
        found, constants = self._find("reciprocal", site)
        return denominators.reciprocal() if found.function is None else found.function(denominators, **constants)

    def _frame(self) -> _Frame:
        return self._frames[threading.get_ident()][-1]

    def _site(self, kind: str) -> str:
        frame = self._frame()
        frame.calls[kind] += 1
        count = frame.calls[kind]
        return f"{frame.path}/{kind}" if count == 1 else f"{frame.path}/{kind}/{count}"

    def _show(self, site: str, kind: str, value: Tensor) -> None:
        if self.observer is not None:
            self.observer(site, kind, value)

    def _chosen(self, kind: str) -> str:
        return EXACT if kind in self.exact else self.plan.choice(kind, self._frame().path).name

    def _find(self, kind: str, site: str) -> tuple[Approximation, Constants]:
        if kind in self.exact:
            return Approximation(kind, EXACT, None), {}
        if (kind, site) not in self._constants:
            self._constants[kind, site] = self.plan.constants(kind, site, self._frame().path)
        return self._constants[kind, site]


def _odd_part(n: int) -> int:
    return n // (n & -n)


def _repeat_heads(x: Tensor, times: int) -> Tensor:
    """Each head of x [..., heads, length, features] ``times`` times in a row."""
    shape = x.shape
    return x.unsqueeze(-3).expand(*shape[:-2], times, *shape[-2:]).reshape(*shape[:-3], -1, *shape[-2:])


# How torch's functions map to the methods above. Each entry has the signature of the function it answers.


def _elementwise(kind: str) -> Callable[..., Tensor]:
    def answer(overrides: Overrides, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return overrides.elementwise(kind, input, lambda: func(input, *args, **kwargs))

    return answer


def _reciprocal(overrides: Overrides, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    exact = func(input, *args, **kwargs)
    found = overrides.elementwise("reciprocal", input, lambda: exact)
    return exact if found is exact else inverse(found, input)


def _divided_by(overrides: Overrides, func: Any, input: Tensor, other: Any) -> Tensor:
    """number / x, by the name that x has for it."""
    if not input.is_floating_point():
        return func(input, other)
    return _reciprocal(overrides, torch.reciprocal, input) * other


def _silu(overrides: Overrides, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
    return overrides.elementwise("silu", input, lambda: func(input, inplace=inplace))


def _softmax(overrides: Overrides, func: Any, input: Tensor, dim: Any = None, *rest: Any, **kwargs: Any) -> Tensor:
    exact = lambda: func(input, dim, *rest, **kwargs)  # noqa: E731
    dtype = kwargs.get("dtype") or next((r for r in rest if isinstance(r, torch.dtype)), None)
    if not isinstance(dim, int):
        return exact()
    return overrides.softmax(input if dtype is None else input.to(dtype), dim, exact)


def _attention(
    overrides: Overrides,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    exact = lambda: func(query, key, value, attn_mask, dropout_p, is_causal, **options)  # noqa: E731
    return overrides.attention(
        query, key, value, attn_mask, dropout=dropout_p, causal=is_causal, scale=scale, exactly=exact
    )


def _layer_norm(
    overrides: Overrides,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    exact = lambda: F.layer_norm(input, normalized_shape, weight, bias, eps)  # noqa: E731
    return overrides.layer_norm(input, tuple(normalized_shape), weight, bias, eps=eps, exactly=exact)


def _rms_norm(
    overrides: Overrides,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    exact = lambda: func(input, normalized_shape, weight, eps)  # noqa: E731
    return overrides.rms_norm(input, tuple(normalized_shape), weight, eps, exact)


def _linear(overrides: Overrides, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    weight, bias = overrides.linear(input, weight, bias, axis=0)
    return func(input, weight, bias)


def _addmm(overrides: Overrides, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, **kwargs: Any) -> Tensor:
    # Conv1D of GPT-2: bias, x, weight. With a factor on any of them it is something else.
    weight, bias = overrides.linear(mat1, mat2, None if kwargs else input, axis=1)
    return func(input if bias is None else bias, mat1, weight, **kwargs)


_multi_head = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""torch's own, which does not hand itself over as a whole: its parts are to be answered."""


def _attention_layer(overrides: Overrides, func: Any, *args: Any, **kwargs: Any) -> Any:
    with overrides:
        return _multi_head(*args, **kwargs)


_ANSWERS: dict[Any, Callable[..., Tensor]] = {
    F.gelu: _elementwise("gelu"),
    F.silu: _silu,
    torch.tanh: _elementwise("tanh"),
    Tensor.tanh: _elementwise("tanh"),
    F.tanh: _elementwise("tanh"),
    torch.sigmoid: _elementwise("sigmoid"),
    Tensor.sigmoid: _elementwise("sigmoid"),
    F.sigmoid: _elementwise("sigmoid"),
    torch.rsqrt: _elementwise("rsqrt"),
    Tensor.rsqrt: _elementwise("rsqrt"),
    torch.reciprocal: _reciprocal,
    Tensor.reciprocal: _reciprocal,
    Tensor.__rdiv__: _divided_by,
    Tensor.__rtruediv__: _divided_by,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    Tensor.softmax: _softmax,
    F.scaled_dot_product_attention: _attention,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.multi_head_attention_forward: _attention_layer,
    F.linear: _linear,
    torch.addmm: _addmm,
}

ALL_KINDS = frozenset((*KINDS, LINEAR))
