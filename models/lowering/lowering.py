"""What a rule works with: it makes nodes, and steps that the client runs in the clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from ...approximations.attention import MASKED
from ..graph.graph import Builder, Node
from ..program.program import PreludeStep
from .client_graph import operation
from .export import parts_of
from .values import LoweringError, Operand, Value, concrete, parameters_of, short_name, values_in

REARRANGES = {
    "to", "_to_copy", "clone", "alias", "contiguous", "detach", "expand", "view", "_unsafe_view", "reshape",
    "unsqueeze", "squeeze", "transpose", "permute", "t", "slice", "select", "index", "flatten", "repeat",
}  # fmt: skip
ROW_BY_ROW = {"sum", "clamp", "div"}  # of a mask: how its rows are made to add up to 1
CONJUNCTIONS = {"__and__", "bitwise_and", "logical_and"}
COPIES = {"expand", "to", "_to_copy", "clone", "alias", "contiguous"}
NODE_OF = {"public": "constant", "server": "weight", "client": "client"}


@dataclass
class Lowering:
    """The state of one walk over an exported graph.

    values              what the walk has lowered so far, by the exported graph's names
    steps               the client's prelude
    released, origins   tensors that the prelude reads, and the server's parameters that each is computed from
    inline              lowers a graph of smaller operations on values, in the walk; the last argument names its steps
    hiding              scores with a mask: the node, where it keeps, the scores without it (masks.py)
    public              the parameters that all who compute may have; None: all are the server's, public matrices, too
    path                the module of the model that the walk is in
    """

    inline: Callable[[fx.Graph, Sequence[Value], str], Any]
    builder: Builder = field(default_factory=Builder)
    values: dict[str, Any] = field(default_factory=dict)
    steps: list[PreludeStep] = field(default_factory=list)
    released: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    applied: dict[tuple[object, ...], tuple[Value, object]] = field(default_factory=dict)
    hiding: dict[int, tuple[Node, Value, Node]] = field(default_factory=dict)
    public: frozenset[str] | None = None
    path: str = ""
    matrices: int = 0  # public ones that rules multiply by

    # --- for rules ---------------------------------------------------------------------------------------------------
    def as_node(self, value: Operand) -> Node:
        """The graph's node for any lowered value, or number; a node is its own."""
        if isinstance(value, Node):
            return value
        if not isinstance(value, Value):
            return self.builder.constant(value)
        if value.node is None:
            tensor = value.value if isinstance(value.value, Tensor) else torch.tensor(value.value)
            op = NODE_OF[value.owner]
            name = value.ref or f"{op}_{len(self.values)}_{self.path}"
            attributes = {"binary": True} if value.binary else {}
            owner = "public" if value.known or self.is_open(value) else value.owner
            value.node = Node(op, [], attributes, tuple(tensor.shape), owner, self.path, name, tensor.detach())
        return value.node

    def is_open(self, value: Value) -> bool:
        """Whether a value of the server's is computed from public parameters alone. Of one whose parameters are not
        known it is not said."""
        if value.owner != "server" or self.public is None or not value.parameters:
            return False
        return value.parameters <= self.public

    def apply(self, target: str, *args: object) -> Value:
        """A listed operation (client_graph.py) on values of one owner and public ones. Equal calls are one value.

        It is done now; if the client owns the result, the client does it in every query, too.
        """
        key = (target, *(_identity(a) if isinstance(a, Value) else repr(a) for a in args))
        if key not in self.applied:
            operands = list(values_in(args))
            owner = next((o for o in ("client", "server") if any(v.owner == o for v in operands)), "public")
            if owner == "client":
                ref = next(v.ref for v in operands if v.owner == owner)
                value = self.step(f"{ref}.{short_name(target)}.{len(self.steps)}", target, *args)
            else:
                value = Value(owner, concrete(operation(target), args, {}), parameters=parameters_of(operands))
            self.applied[key] = value, args  # which keeps their identities
        return self.applied[key][0]

    def from_start(self, indices: Value, size: int, least: int) -> Value:
        """Indices that their owner has in the clear, those below 0 counted from the end where `least` is below 0."""
        if not least:
            return indices
        end = self.apply("aten.add.Tensor", indices, size)
        return self.apply("aten.where.self", self.apply("aten.lt.Scalar", indices, 0), end, indices)

    def step(self, name: str, target: str, *args: object) -> Value:
        """A new step of the prelude with one result: a listed operation on the client's values and public ones."""
        value = self.at_client(name, target, args, {}, concrete(operation(target), args, {}))
        assert isinstance(value, Value)
        return value

    def least_number(self, value: Value) -> float:
        """The largest number that the steps to a client's value mention, as a negative one."""
        return -max(_mentioned(self.steps, value.ref), default=0.0)

    def apart(self, function: Callable[..., Tensor], *args: object) -> Value:
        """A function of torch on these values, each of whose operations follows its rule, or is its owner's."""
        values = [Value("shared", node=arg) if isinstance(arg, Node) else arg for arg in args]
        parts = parts_of(function, values, {})
        if parts is None:
            raise self.fail(f"{function.__name__.strip('_')}: is not made of smaller operations")
        return self.inline(*parts, f"{self.path}.{function.__name__}.{len(self.steps)}")

    def fail(self, what: str, advice: str = "") -> LoweringError:
        """The error for a rule to raise: what cannot be done, and the way out, which many may share."""
        return LoweringError(what, advice)

    # --- for the walk ------------------------------------------------------------------------------------------------
    def at_client(
        self, name: str, target: str, args: Sequence[object], kwargs: Mapping[str, object], value: object
    ) -> Value | list[Value]:
        """The client's value (or values) of a new step; `value`: what it gives on the example."""
        short, operands = short_name(target), list(values_in([args, kwargs]))
        embedded = short == "embedding" or any(v.embedded for v in operands)
        known = all(v.known or v.owner == "public" for v in operands)
        encoded = {key: self._encode(arg) for key, arg in kwargs.items()}
        step = PreludeStep(name=name, target=target, args=[self._encode(arg) for arg in args], kwargs=encoded)
        self.steps.append(step)
        if isinstance(value, list | tuple):
            results = []
            for number, part in enumerate(value):
                self.steps.append(PreludeStep(name=f"{name}.{number}", target="getitem", args=[{"ref": name}, number]))
                results.append(Value("client", part, ref=f"{name}.{number}", embedded=embedded, known=known))
            return results
        rearranged = short in REARRANGES and all(v.binary for v in operands)
        binary = short == "keeps" or rearranged or (isinstance(value, Tensor) and value.dtype == torch.bool)
        factors = self._of_keys(target, args, kwargs) or _factors(short, args)
        return Value("client", value, ref=name, embedded=embedded, binary=binary, factors=factors, known=known)

    def release(self, value: Value) -> None:
        """Give the client a tensor that its prelude reads, under a name that no input and no step has."""
        value.released = value.released or f"released {len(self.released)}"
        self.released[value.released] = value.tensor.detach()
        self.origins[value.released] = value.parameters

    def _of_keys(self, target: str, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[Value, ...]:
        """Where the rows of a mask are all alike, what is computed of each is computed of one: a mask of keys."""
        short = short_name(target)
        if short not in ROW_BY_ROW or kwargs or (short == "sum" and list(args[1:]) != [[-1], True]):
            return ()
        narrow = [_one_row(v) if isinstance(v, Value) and v.owner == "client" else v for v in args]
        if not isinstance(args[0], Value) or any(v is None for v in narrow):
            return ()
        return (self.apply(target, *narrow),)

    def _encode(self, tree: object) -> object:
        """An argument of a prelude step as JSON."""
        if isinstance(tree, Value):
            if tree.owner == "public" and not isinstance(tree.value, Tensor):
                return tree.value
            if tree.owner == "public":
                self.release(tree)  # a public tensor travels with the client's part, too
            return {"ref": tree.ref if tree.owner == "client" else tree.released}
        if isinstance(tree, list | tuple):
            return [self._encode(item) for item in tree]
        if isinstance(tree, dict):
            return {key: self._encode(item) for key, item in tree.items()}
        if isinstance(tree, torch.dtype):
            return {"dtype": str(tree).removeprefix("torch.")}
        if isinstance(tree, torch.layout | torch.memory_format):
            return None
        if isinstance(tree, torch.device):
            return {"device": "cpu"}
        if tree is None or isinstance(tree, bool | int | float | str):
            return tree
        raise self.fail(f"a prelude step takes a {type(tree).__name__}, which has no JSON form")


def _identity(value: Value) -> object:
    """Of a client's value its name; others may have one name, of a parameter or of what is folded."""
    return value.ref if value.owner == "client" else id(value.value)


def _mentioned(steps: list[PreludeStep], ref: str) -> Iterator[float]:
    """Sizes of the numbers in the steps that lead to `ref`, those that only mean "to the end" aside. What comes before
    a bound from below by a number that hides nothing cannot be low any more."""
    table = {step.name: step for step in steps}
    todo, seen = [ref], set()
    while todo:
        step = table.get(todo.pop())
        if step is None or step.name in seen:
            continue
        seen.add(step.name)
        if short_name(step.target) == "clamp" and isinstance(step.args[1], float) and step.args[1] >= MASKED:
            continue
        for arg in [*step.args, *step.kwargs.values()]:
            if isinstance(arg, float) or (isinstance(arg, int) and abs(arg) < 2**31):
                yield abs(arg)
            if isinstance(arg, dict) and "ref" in arg:
                todo.append(arg["ref"])


def _factors(short: str, args: Sequence[object]) -> tuple[Value, ...]:
    """A mask that is a conjunction keeps its factors: a public one is free, one without a query axis is cheap."""
    values = [a for a in args if isinstance(a, Value)]
    if short in CONJUNCTIONS and len(values) == 2:
        return tuple(f for v in values for f in (v.factors or (v,)))
    if short in COPIES and values:
        return values[0].factors or (values[0],)
    return ()


def _one_row(mask: Value) -> Value | None:
    """The one row of keys that a mask repeats for every query, if it does so."""
    secret = [f for f in mask.factors if f.owner != "public" or not bool((f.tensor == 1).all())]
    return secret[0] if len(secret) == 1 and secret[0].tensor.dim() > 1 and secret[0].tensor.shape[-2] == 1 else None
