"""PyTorch's override mechanism: while an approximated module runs, its functions are answered by the plan."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from types import FunctionType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .errors import PlanError
from .linear import AffineParameters, fake_quantise, quantise_behind
from .plan import FULL_BITS, Plan
from .primitives import unless_known
from .registry import EXACT, Approximation, Constants, Range, define_kind, find, find_kind, kinds

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


class _Remembered(WeakIdKeyDictionary):
    """What a result was made of (a norm's its affine), for what reads it. A copy is empty: nothing outlives a run."""

    def __reduce__(self) -> tuple[type[_Remembered], tuple[()]]:
        return _Remembered, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Remembered:
        return _Remembered()


class Root:
    """What a square root is of, as long as nobody writes into either."""

    def __init__(self, squared: Tensor, root: Tensor) -> None:
        self._squared, self._versions = squared, (squared._version, root._version)

    def of(self, root: Tensor) -> Tensor | None:
        return self._squared if (self._squared._version, root._version) == self._versions else None


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
        self._affines = _Remembered()
        self._same_keys: dict[str, bool] = {}  # by path
        self.roots = _Remembered()  # a square root -> Root
        self.pooled = _Remembered()  # a layer's answer -> what it was before it was repeated for more tokens

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
        answer, kwargs = _answers().get(func), kwargs or {}
        if answer is None or self._frame().paused:
            return self._without_affine(func, func(*args, **kwargs))
        result = answer(self, func, *args, **kwargs)
        written = args[0] if kwargs.get("inplace") else kwargs.get("out")
        return result if written is None else written.copy_(result)

    # What the kinds answer with. ``exactly`` is what torch would have done.

    def elementwise(self, kind: str, x: Tensor, exactly: Callable[[], Tensor], scale: float = 1.0) -> Tensor:
        """f(scale x) / scale of an elementwise function f."""
        site = self.site(kind)
        scaled = x if scale == 1.0 else x * scale
        self.show(site, kind, scaled)
        approximation, constants = self.approximation(kind, site)
        if approximation.function is None:
            return exactly()
        result = approximation.function(scaled, **constants)
        known = find_kind(kind).known
        if known and not approximation.needs_distillation:  # a student has learnt with the function as it is
            result = unless_known(result, scaled, known)
        return result if scale == 1.0 else result * (1.0 / scale)

    def site(self, kind: str) -> str:
        """The name of a call of this kind that is being made now."""
        frame = self._frame()
        frame.calls[kind] += 1
        count = frame.calls[kind]
        return f"{frame.path}/{kind}" if count == 1 else f"{frame.path}/{kind}/{count}"

    def show(self, site: str, kind: str, value: Tensor) -> None:
        """Let the observer, if there is one, see what an approximation is fitted to."""
        if self.observer is not None:
            self.observer(site, kind, value)

    @property
    def same_keys(self) -> bool:
        """Whether in the module that is running all queries see the same keys, as far as it has been run."""
        return self._same_keys.get(self._frame().path, False)

    def note_keys(self, same: bool) -> None:
        """What a run shows of that; once they differ, they do."""
        path = self._frame().path
        self._same_keys[path] = same and self._same_keys.get(path, True)

    def chosen(self, kind: str) -> str:
        """The name of the approximation in force in the module that is running."""
        return EXACT if kind in self.exact else self.plan.choice(kind, self._frame().path).name

    def approximation(self, kind: str, site: str) -> tuple[Approximation, Constants]:
        """The approximation for a call site, and its constants."""
        if kind in self.exact:
            return find(kind, EXACT), {}
        if (kind, site) not in self._constants:
            self._constants[kind, site] = self.plan.constants(kind, site, self._frame().path)
        return self._constants[kind, site]

    def fitted(self, kind: str, range_: Range, many: bool, **options: float) -> Callable[[Tensor], Tensor] | None:
        """The approximation in force in the module that is running, or its own for `many` numbers, fitted to this
        range. None: exact. `options`: of its fit, where it has them. What the plan sets itself, it keeps."""
        choice = self.plan.choice(kind, self._frame().path)
        approximation = find(kind, EXACT if kind in self.exact else choice.name)
        if many and approximation.many and not choice.options:
            approximation = find(kind, approximation.many)
        if approximation.function is None:
            return None
        known = {name: value for name, value in (options | choice.options).items() if name in approximation.options()}
        return partial(approximation.function, **approximation.constants(range_, known))

    def keep_affine(self, result: Tensor, affine: AffineParameters) -> None:
        """Remember what a norm has applied to its result, for a linear layer that reads it."""
        self._affines[result] = affine

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

    def _frame(self) -> _Frame:
        return self._frames[threading.get_ident()][-1]


def define_elementwise(
    name: str,
    function: Callable[..., Tensor],
    *others: Callable[..., Tensor],
    answers: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
    **facts: Any,
) -> None:
    """Make a function of one tensor a kind, and answer its calls, also by its other names in torch.

    ``answers``: what else it answers, or answers otherwise; ``facts`` are `FunctionKind`'s other fields.
    """

    def answer(overrides: Overrides, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return overrides.elementwise(name, input, lambda: func(input, *args, **kwargs))

    names = dict.fromkeys((function, *others), answer)
    define_kind(name, answers={**names, **(answers or {})}, exact=function, **facts)


def _linear(overrides: Overrides, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    weight, bias = overrides.linear(input, weight, bias, axis=0)
    return func(input, weight, bias)


def _addmm(overrides: Overrides, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, **kwargs: Any) -> Tensor:
    # Conv1D of GPT-2: bias, x, weight. With a factor on any of them it is something else.
    weight, bias = overrides.linear(mat1, mat2, None if kwargs else input, axis=1)
    return func(input if bias is None else bias, mat1, weight, **kwargs)


@cache
def opened(func: FunctionType) -> FunctionType:
    """A function of torch.nn.functional that does not hand itself over as a whole: its parts are to be answered."""
    asks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    variables = {**func.__globals__, **dict.fromkeys(asks, lambda *tensors: False)}
    return FunctionType(func.__code__, variables, func.__name__, func.__defaults__, func.__closure__)


def answer_in_parts(overrides: Overrides, func: FunctionType, *args: Any, **kwargs: Any) -> Any:
    with overrides:
        return opened(func)(*args, **kwargs)


_composites: dict[Any, Callable[..., Any]] = {}


def define_composites(answers: Mapping[Any, Callable[..., Any]]) -> None:
    """What answers functions that are made of others, unless a kind does."""
    _composites.update(answers)


@cache
def _answers() -> dict[Any, Callable[..., Any]]:
    """What answers each of torch's functions, with the signature of the function."""
    by_function: dict[Any, Callable[..., Any]] = {F.linear: _linear, torch.addmm: _addmm}
    of_kinds = kinds()  # finds all files
    for kind in of_kinds.values():
        for function, answer in kind.answers.items():
            if function in by_function:
                raise PlanError(f"kind {kind.name!r} answers {function!r}, which is answered already: keep one")
            by_function[function] = answer
    return {**_composites, **by_function}


def everything() -> frozenset[str]:
    """All that a plan changes: every kind, and the weights of linear layers."""
    return frozenset((*kinds(), LINEAR))
