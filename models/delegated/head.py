"""A public model with a private last part, its head, which its owner alone has: a classifier on a public encoder.

    DIR/server/head    the server's part of the head, compiled for a private session (protocol beaver): its parameters
    DIR/client/head    the client's part of it: the Program
    DIR/client/model   the model's own files, with zeros in the head's place

All else is as of any delegated model. The dealer's folder says nothing of the head, and neither do the integers that
server and dealer hold of the base.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..artifacts.client import ClientLength, ClientPart
from ..compile import Compiled, Progress, compile, part_of
from ..loading.heads import SentenceEncoder, save_model
from ..loading.huggingface import huggingface
from ..loading.load import Loaded
from ..weight_owners import PRIVATE
from .sequences import DelegationError

Ask = Callable[[dict[str, Tensor]], Tensor | None]


class HeadInPlace(nn.Module):
    """Stands where the head was. It knows the head's shapes and no number of it; `asking` has its answers."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._shapes = [copy.deepcopy(head).to("meta")]  # in a list, so that it is no part of this module
        self._ask: Ask | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        answer = None if self._ask is None else self._ask(bound(self._shapes[0], inputs))
        if answer is not None:
            return answer
        return torch.zeros(self._shapes[0](*(x.to("meta") for x in inputs)).shape)  # while the pass is rehearsed

    @contextmanager
    def asking(self, ask: Ask) -> Iterator[None]:
        """In this block `ask` answers; None: zeros, which nobody reads."""
        self._ask = ask
        try:
            yield
        finally:
            self._ask = None


@dataclass
class PrivateHead:
    """At the client: what stands in the head's place, and the client's part of its private session."""

    place: HeadInPlace
    part: ClientPart

    @property
    def lengths(self) -> list[int]:
        """Of texts, where what the head reads depends on it."""
        return [length for length in self.part.lengths if length]

    def program_for(self, inputs: Mapping[str, Tensor]) -> ClientLength:
        """Errors: DelegationError where the head was compiled for no such input."""
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        for one in self.part.lengths.values():
            if {name: tuple(shape) for name, shape in one.program.inputs.items()} == shapes:
                return one
        raise DelegationError(f"head: is compiled for other shapes than {shapes}; compile it with --lengths")


def bound(head: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """A head's inputs by name."""
    return dict(inspect.signature(head.forward).bind(*inputs).arguments)


def head_of(model: nn.Module, called: str = "model") -> str:
    """The part that stands beside the base model. Errors: DelegationError of the model `called` so, where it is not one
    part."""
    base = "model" if isinstance(model, SentenceEncoder) else getattr(model, "base_model_prefix", "")
    parts = [name for name, part in model.named_children() if part.state_dict()]
    beside = [name for name in parts if name != base]
    if base not in parts or len(beside) != 1 or getattr(model, "can_generate", lambda: False)():
        what = f"has {', '.join(beside) or 'nothing'} beside its base, and a private head is one part"
        raise DelegationError(f"{called}: {what}; say what is private by name: --weights NAME=private")
    return beside[0]


def private_of(model: nn.Module) -> list[str]:
    """Names of the head's parameters. Errors: DelegationError."""
    name = head_of(model)
    return [f"{name}.{own}" for own in model.get_submodule(name).state_dict()]


def without_head(loaded: Loaded, name: str) -> tuple[Loaded, HeadInPlace]:
    """The same model, of the same tensors, with the head's place empty."""
    base, place = _copied(loaded.model), HeadInPlace(loaded.model.get_submodule(name))
    base.set_submodule(name, place)
    return replace(loaded, model=base), place


def save_without_head(loaded: Loaded, name: str, folder: Path) -> None:
    """The model's files for clients, with zeros in the head's place."""
    model = _copied(loaded.model)
    head = copy.deepcopy(loaded.model.get_submodule(name)).requires_grad_(False)
    for value in head.state_dict().values():
        value.zero_()
    model.set_submodule(name, head)
    with huggingface():
        loaded.processor.save_pretrained(folder)
        save_model(model, folder)


def read_by_head(model: nn.Module, name: str, inputs: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """What the head reads of inputs, in the clear; None: other layers follow it, or it reads no tensors alone."""
    order, read = list[str](), list[tuple[Any, ...]]()

    def note(path: str) -> Callable[..., None]:
        return lambda part, args: order.append(path)

    with ExitStack() as hooks, torch.no_grad():
        for path, part in model.named_modules():
            if next(part.parameters(recurse=False), None) is not None:
                hooks.callback(part.register_forward_pre_hook(note(path)).remove)
        head = model.get_submodule(name)
        hooks.callback(head.register_forward_pre_hook(lambda part, args: read.append(args)).remove)
        model(**inputs)
    inside = [path.partition(".")[0] == name for path in order]
    whole = len(read) == 1 and bool(read[0]) and all(isinstance(x, Tensor) for x in read[0])
    return bound(head, read[0]) if whole and inside == sorted(inside) else None


def compile_head(
    loaded: Loaded,
    name: str,
    plan: str,
    typical: Mapping[int, Sequence[Mapping[str, Any]]],
    progress: Progress | None = None,
) -> dict[int, Compiled]:
    """For a private session, by length of the text; under 0 where the head reads the same of any length. `typical`:
    inputs of the model that it is calibrated on, by length. Errors: DelegationError, and those of `compile`."""
    head, batches = loaded.model.get_submodule(name), dict[int, list[dict[str, Tensor]]]()
    for length, inputs in typical.items():
        read = [read_by_head(loaded.model, name, one) for one in inputs]
        batches[length] = [one for one in read if one is not None]
        if len(batches[length]) < len(read):
            what = f"other layers follow {name}, or it reads more than tensors"
            raise DelegationError(f"{loaded.name}: {what}; say what is private by name: --weights NAME=private")
    if len({str({n: x.shape for n, x in some[0].items()}) for some in batches.values()}) == 1:
        batches = {0: [one for some in batches.values() for one in some]}
    programs = {}
    for at, (length, some) in enumerate(batches.items()):
        share = part_of(progress, at / len(batches), (at + 1) / len(batches), "head: ")
        how: dict[str, Any] = {"weights": PRIVATE, "progress": share, "name": f"{loaded.name}, head"}
        programs[length] = compile(head, some, plan, **how)
    return programs


def _copied(model: nn.Module) -> Any:
    """Of the same tensors."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
