"""A model as its client runs it: its own code, with the delegated layers answered by others, pass by pass.

A pass is a call of the model, or of an encoder that `generate` calls by itself. Its sequence of groups and rows is
known before its first message: from the shapes of the inputs, by a rehearsal once for each combination of shapes.
"""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .calls import Interception
from .layers import LayerGroup, LinearLayer, ParameterIndex
from .manifest import DelegatedModel
from .sequences import (
    DelegationError,
    GroupCalls,
    Step,
    other_content,
    rehearse_twice,
    same_content,
    sequence_of,
    steps_of,
)

# Inputs whose shapes change from pass to pass and change no layer's rows, but for whether they are there.
_NO_ROWS = ("attention_mask", "decoder_attention_mask", "position_ids", "cache_position", "head_mask")


class Carrier(Protocol):
    """Who carries a pass to the parties that compute its layers."""

    @property
    def refused(self) -> bool:
        """Whether the last pass was, before its first call."""
        ...

    def begin(self, sequence: GroupCalls) -> None:
        """A pass of these calls follows."""
        ...

    def call(self, group: int, x: Tensor) -> Tensor:
        """The next call: x [rows, inputs] times the group's matrix, float32 [rows, outputs]."""
        ...

    def end(self) -> None:
        """The pass has made all its calls."""
        ...

    def abandon(self) -> None:
        """The pass ended in its midst."""
        ...


class _Calls:
    """Answers as `LinearCalls`, through one pass."""

    def __init__(
        self, groups: Sequence[LayerGroup], delegated: Collection[str], steps: Sequence[Step], carrier: Carrier
    ) -> None:
        self._groups, self._delegated = groups, delegated
        self._left, self._carrier = list(reversed(steps)), carrier
        self._input: Tensor | None = None
        self._answers: dict[LinearLayer, Tensor] = {}

    def answer(self, layer: LinearLayer, x: Tensor) -> Tensor | None:
        if layer.parameter not in self._delegated:
            return None
        step = self._left.pop() if self._left else None
        if step is None or (step.layer, step.rows) != (layer, len(x)):
            raise _unlike(f"called {layer.parameter} with {len(x)} rows, or out of its order")
        # Whether something is sent follows from the rehearsal alone. The same content and not the same object: what was
        # written into since has other products.
        if step.group is not None:
            self._fetch(step.group, x)
        elif self._input is None or not same_content(self._input, x):
            raise _unlike(f"called {layer.parameter} with another input than the layer before")
        return self._answers[layer]

    def used(self, parameter: str) -> None:
        pass

    def finish(self) -> None:
        """Errors: DelegationError where calls are left that were announced."""
        if self._left:
            raise _unlike("made fewer calls")

    def _fetch(self, number: int, x: Tensor) -> None:
        products, layers = self._carrier.call(number, x), self._groups[number].layers
        self._input, self._answers, start = x.clone() if len(layers) > 1 else None, {}, 0
        for one in layers:
            self._answers[one] = products[:, start : start + one.outputs]
            start += one.outputs


def _unlike(what: str) -> DelegationError:
    return DelegationError(
        f"model: {what}, unlike its rehearsal, so its calls depend on more than shapes; nothing more was sent"
    )


class DelegatedRunner:
    """Runs the passes of a module, whose delegated layers' own weights are never read. Threads may run it at once, each
    with a carrier of its own."""

    def __init__(self, module: nn.Module, model: DelegatedModel) -> None:
        self.module = module
        self.groups = model.manifest.layer_groups
        self.delegated = model.manifest.parameters
        self.index = ParameterIndex(module, self.delegated)
        self._steps: dict[Any, tuple[Step, ...]] = {}
        self._inside = threading.local()

    def run(self, carrier: Carrier, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """One pass through the module, or a part of it that is called by itself."""
        forward = functools.partial(type(part).forward, part)
        if getattr(self._inside, "passes", False):
            return forward(*args, **kwargs)
        steps = self.steps(part, args, kwargs)
        if not steps:
            return forward(*args, **kwargs)
        calls = _Calls(self.groups, self.delegated, steps, carrier)
        try:
            with self._pass():
                carrier.begin(sequence_of(steps))
                with torch.no_grad(), Interception(self.index, calls, observing=False):
                    result = forward(*args, **kwargs)
                calls.finish()
                carrier.end()
            return result
        except BaseException:
            carrier.abandon()
            raise

    def keep(self, parameters: Collection[str]) -> None:
        """Compute with these here, from now on."""
        self.delegated = self.delegated.difference(parameters)
        self._steps.clear()

    @contextmanager
    def _pass(self) -> Iterator[None]:
        """Calls of the module's parts in this block belong to one pass."""
        self._inside.passes = True
        try:
            yield
        finally:
            self._inside.passes = False

    def steps(self, part: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Step, ...]:
        """The calls of a pass with inputs of these shapes. Errors: DelegationError."""
        key = (id(part), _shapes(args), _shapes(kwargs))
        if key not in self._steps:
            one, other = self._rehearsed(part, args, kwargs)
            if one != other:
                raise _unlike("called its layers otherwise with another content")
            self._steps[key] = one
        return self._steps[key]

    def _rehearsed(self, part: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[tuple[Step, ...]]:
        def run(change: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Any:
            given = copy.deepcopy((list(args), dict(kwargs)))  # a cache is written into
            return type(part).forward(part, *given[0], **change(given[1]))

        kept = self.index.parameters.keys() - self.delegated
        with self._pass():
            both = rehearse_twice(self.index, lambda: run(dict), lambda: run(other_content), kept)
        if odd := sorted((both[0].others | both[1].others) & self.delegated):
            raise DelegationError(f"{odd[0]}: is read otherwise than as a linear layer by a pass like this one")
        return [steps_of(self.groups, rehearsal.calls) for rehearsal in both]

    @contextmanager
    def installed(self, carrier: Carrier) -> Iterator[None]:
        """Calls of the module, and of its encoder, are passes. Others' replacements of `forward` come back."""
        parts = [self.module, *_encoders(self.module)]
        before = [part.__dict__.get("forward") for part in parts]
        for part in parts:
            part.forward = functools.wraps(part.forward)(functools.partial(self.run, carrier, part))  # type: ignore[method-assign]
        try:
            yield
        finally:
            for part, forward in zip(parts, before, strict=True):
                if forward is None:
                    del part.forward
                else:
                    part.forward = forward  # type: ignore[method-assign]


def _encoders(module: nn.Module) -> list[nn.Module]:
    """That `generate` calls by itself."""
    get: Callable[[], Any] | None = getattr(module, "get_encoder", None)
    if get is None or not getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        return []
    return [get()]


def _shapes(value: Any) -> Any:
    """All of some arguments that may change a pass's sequence, without their contents."""
    if isinstance(value, Tensor):
        return tuple(value.shape), str(value.dtype)
    if isinstance(value, Mapping):
        return tuple((n, one is not None if n in _NO_ROWS else _shapes(one)) for n, one in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_shapes, value))
    if hasattr(value, "get_seq_length"):
        updated = getattr(value, "is_updated", None)  # of an encoder-decoder's cache, by layer
        return type(value).__name__, value.get_seq_length() > 0, tuple(updated.items()) if updated else ()
    return value if isinstance(value, bool | int | float | str | type(None)) else type(value).__name__


# Rows that hide how many there are: a pass sends rows of zeros beside its own, masked like these, and drops their
# answers. The model is none the wiser, so texts, images and recordings are padded alike.


PASSES = 16  # that all passes of a conversation are filled up to after each answer


def row_class(rows: int) -> int:
    """The least power of two that has room for them."""
    return 1 << max(0, rows - 1).bit_length()


class PaddedCarrier:
    """A `Carrier` beneath which another one sees `padded(rows)` rows of each call."""

    def __init__(self, carrier: Carrier, padded: Callable[[int], int] = row_class) -> None:
        self._carrier, self._padded = carrier, padded
        self.end, self.abandon = carrier.end, carrier.abandon

    @property
    def refused(self) -> bool:
        return self._carrier.refused

    def begin(self, sequence: GroupCalls) -> None:
        self._carrier.begin(tuple((group, self._padded(rows)) for group, rows in sequence))

    def call(self, group: int, x: Tensor) -> Tensor:
        zeros = x.new_zeros(self._padded(len(x)) - len(x), x.shape[1])
        return self._carrier.call(group, torch.cat([x, zeros]) if len(zeros) else x)[: len(x)]


class Recorder:
    """A `Carrier` to nobody, which notes the sequence of each pass. `outputs`: by group."""

    refused = False

    def __init__(self, outputs: Sequence[int]) -> None:
        self._outputs, self.sequences = outputs, list[GroupCalls]()

    def begin(self, sequence: GroupCalls) -> None:
        self.sequences.append(sequence)

    def call(self, group: int, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self._outputs[group])

    def end(self) -> None:
        pass

    def abandon(self) -> None:
        pass
