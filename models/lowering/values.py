"""The values that lowering works on: who owns each one, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...protocols.errors import BlindformerError
from ..graph.graph import Node


@dataclass(eq=False)
class Value:
    """A lowered value. `value`: concrete, on the example, unless shared. `node`: its node once it has one."""

    owner: str  # public | server | client | shared
    value: object = field(default=None, repr=False)  # it may be a weight, and errors name values
    node: Node | None = None
    ref: str = ""  # its name in the prelude (client) or among the parameters (server, if it is one as such)
    released: str = ""  # its name among what the prelude reads, once it is released
    embedded: bool = False  # comes from an embedding block
    parameters: frozenset[str] = frozenset()  # the server's, that it is computed from
    binary: bool = False  # zeros and ones whatever the input: a comparison's result, rearranged
    factors: tuple[Value, ...] = ()  # a client mask that is the conjunction of these
    dtype: torch.dtype = torch.float32  # torch's, of a shared value
    known: bool = False  # the client's, and all parties know it: where a token stands

    @property
    def tensor(self) -> Tensor:
        """What its owner has in the clear. Errors: TypeError, which lowering reports, where that is no tensor."""
        if not isinstance(self.value, Tensor):
            raise TypeError(f"a value of the {self.owner} is not known as a tensor")
        return self.value

    def with_tensor(self, change: Callable[[Tensor], Tensor]) -> Value:
        """The same in another layout, made now."""
        return Value(self.owner, change(self.tensor), ref=self.ref or "folded", parameters=self.parameters)


Operand = Value | Node | float
"""What a rule is given where its operation takes a tensor or a number."""
RuleResult = Value | Node | list[Node]
"""What a rule gives: a value, or one for each result of its operation."""


def owner_of(operand: Operand) -> str:
    return "public" if isinstance(operand, int | float) else operand.owner


def type_of(value: Value) -> torch.dtype:
    """What torch has it as."""
    return value.value.dtype if isinstance(value.value, Tensor) else value.dtype


def known(operand: Operand) -> object:
    """The number, or what the owner has in the clear; None of a shared value."""
    return operand if isinstance(operand, int | float) else operand.value


def short_name(target: object) -> str:
    """`add` for aten.add.Tensor."""
    return str(target).removeprefix("aten.").removeprefix("blindformer.").split(".")[0]


def values_in(tree: object) -> Iterator[Value]:
    """The lowered values among an operation's arguments."""
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from values_in(item)


def parameters_of(values: Sequence[Value]) -> frozenset[str]:
    """The server's parameters that these values are computed from."""
    return frozenset().union(*(v.parameters for v in values))


def concrete(target: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> object:
    """What an operation gives on the example."""
    with torch.no_grad():
        return target(*(_bare(arg) for arg in args), **{key: _bare(arg) for key, arg in kwargs.items()})


def _bare(tree: object) -> object:
    """An argument with concrete values in the place of lowered ones."""
    if isinstance(tree, Value):
        return tree.value
    if isinstance(tree, list | tuple):
        return type(tree)(_bare(item) for item in tree) if not isinstance(tree, torch.Size) else tree
    if isinstance(tree, dict):
        return {key: _bare(item) for key, item in tree.items()}
    return tree


# All that keeps a model from being lowered, said in one line.


MOST = 8  # problems that a line names


class LoweringError(BlindformerError):
    """The model contains an operation without a rule, or cannot be made private with these options."""


@dataclass
class Problems:
    """What was met on the way, by what it is: modules in order, and what to do about it."""

    modules: dict[str, list[str]] = field(default_factory=dict)
    advice: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, what: str, advice: str = "") -> None:
        places = self.modules.setdefault(what, [])
        if path not in places:
            places.append(path)
        self.advice[what] = advice

    def check(self) -> None:
        """Raise LoweringError if there are any."""
        if not self.modules:
            return
        sentences = [_said(what, places) for what, places in self.modules.items()]
        if len(sentences) > MOST:
            sentences[MOST:] = [f"{len(sentences) - MOST} more"]
        advice = dict.fromkeys(text for text in self.advice.values() if text)
        raise LoweringError("; ".join(["; also ".join(sentences), *advice]))


def _said(what: str, places: list[str]) -> str:
    others = f" (and in {len(places) - 1} other modules)" if len(places) > 1 else ""
    return f"{places[0] or 'model'}: {what}{others}"
