"""The form of what a model returns: a flat name for each of its tensors, and the way back from names to the form.

A tensor is named by the way to it: `logits`, `hidden_states.0`, `text_model_output.last_hidden_state`. Where a model
returns a bare tensor or a tuple, names start with `output_0`, `output_1` ...
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .values import LoweringError


@dataclass(frozen=True)
class Structure:
    """`spec`: the containers. Leaf by leaf: `names`, and `constants`, which are None in a tensor's place."""

    spec: Any
    names: tuple[str, ...]
    constants: tuple[Any, ...]
    tensors: tuple[str, ...]

    @classmethod
    def of(cls, output: Any) -> Structure:
        """The form of an output. Errors: LoweringError, if it holds what is neither a container nor a value, or if two
        of its tensors have one name."""
        leaves, spec = pytree.tree_flatten(output)
        named = list(_named(output, ""))
        foreign = [leaf for leaf in leaves if not isinstance(leaf, Tensor | str | bool | int | float | None)]
        if foreign:
            kind = type(foreign[0]).__name__
            raise LoweringError(
                f"model: returns a {kind}, in which tensors are not found; return a dict, a tuple or a ModelOutput"
            )
        names = [name for name, leaf in named if isinstance(leaf, Tensor)]
        if not names:
            raise LoweringError("model: returns no tensor; return what is to be revealed")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise LoweringError(f"model: returns two outputs that are both called {twice[0]}; rename one")
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        return cls(spec, tuple(name for name, _ in named), constants, tuple(names))

    def chosen(self, wanted: Collection[str] | None) -> list[str]:
        """The tensors that `wanted` names, in order (None: all). `hidden_states` names all of `hidden_states.0` ...

        Errors: LoweringError for a name that there is not.
        """
        if wanted is None:
            return list(self.tensors)
        for name in wanted:
            if not any(_under(tensor, name) for tensor in self.tensors):
                raise LoweringError(f"output {name}: the model returns {', '.join(self.tensors)}; name one of these")
        return [tensor for tensor in self.tensors if any(_under(tensor, name) for name in wanted)]

    def fill(self, tensors: Mapping[str, Tensor]) -> Any:
        """The output with these tensors in it. What is left out is None, or missing in a dict."""
        leaves = [tensors.get(name, constant) for name, constant in zip(self.names, self.constants, strict=True)]
        whole = pytree.tree_unflatten(leaves, self.spec)
        return whole if all(name in tensors for name in self.tensors) else _pruned(whole)


def tensors_of(output: Any) -> dict[str, Tensor]:
    """The tensors of an output by their flat names."""
    return {name: leaf for name, leaf in _named(output, "") if isinstance(leaf, Tensor)}


def _named(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(name, leaf) in the order in which torch flattens them."""
    children, spec = pytree.tree_flatten(value, is_leaf=lambda inner: inner is not value)
    if spec.is_leaf():
        yield path or "output_0", value
        return
    for key, child in zip(_keys(value, len(children)), children, strict=True):
        start = f"output_{key}" if isinstance(key, int) else str(key)
        yield from _named(child, f"{path}.{key}" if path else start)


def _keys(value: Any, count: int) -> Sequence[Any]:
    if isinstance(value, Mapping):
        return list(value)
    return getattr(value, "_fields", range(count))


def _under(tensor: str, name: str) -> bool:
    return tensor == name or tensor.startswith(f"{name}.")


def _pruned(value: Any) -> Any:
    """Without containers in which nothing is left."""
    if type(value) is dict:
        kept = {key: inner for key, item in value.items() if (inner := _pruned(item)) is not None}
        return kept or None
    if isinstance(value, Mapping):
        return type(value)(**{key: inner for key, item in value.items() if (inner := _pruned(item)) is not None})
    if isinstance(value, tuple | list):
        items = [_pruned(item) for item in value]
        if all(item is None for item in items):
            return None
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
