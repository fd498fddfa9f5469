"""From an exported ATen graph to a secret graph, whatever the architecture.

Every value belongs to someone. What depends on public things alone is computed now; what depends on parameters alone
is folded and stays the server's; what depends on the client's inputs alone is left to the client, in the clear, as
the program's prelude. Only what mixes the two becomes secret, by a rule per ATen operation (models/lowering/rules/).

The embedding block: an embedding table read by the client's tokens, and what follows elementwise up to the first
matrix product, runs at the client, so these parameters are released to it; a product that alone reads it and makes it
narrower is part of it, as a table of low rank would be. With `embedding="private"` the table stays with the server and
the lookup is a product with a secret one-hot matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from ...approximations.attention import MASKED
from ..graph import Builder, Node
from ..program import PreludeStep
from .client_graph import ALLOWED, operation
from .problems import LoweringError, Problems
from .rules import Rules
from .rules.masks import is_infinite

MATRIX_PRODUCTS = {"linear", "addmm", "matmul", "mm", "bmm", "conv2d", "conv1d", "baddbmm"}
REARRANGES = {
    "to", "_to_copy", "clone", "alias", "contiguous", "detach", "expand", "view", "reshape", "unsqueeze", "squeeze",
    "transpose", "permute", "t", "slice", "select", "index", "flatten", "repeat",
}  # fmt: skip
ROW_BY_ROW = {"sum", "clamp", "div"}  # of a mask: how its rows are made to add up to 1
IGNORED = {"_assert_tensor_metadata", "sym_size", "_assert_async", "_assert_scalar"}


@dataclass(eq=False)
class Value:
    """A lowered value. `value`: concrete, on the example, unless shared. `node`: its node once it has one."""

    owner: str  # public | server | client | shared
    value: Any = None
    node: Node | None = None
    ref: str = ""  # its name in the prelude (client) or among the parameters (server, if it is one as such)
    embedded: bool = False  # comes from an embedding block
    parameters: frozenset[str] = frozenset()  # the server's, that it is computed from
    binary: bool = False  # zeros and ones whatever the input: a comparison's result, rearranged
    factors: tuple[Value, ...] = ()  # a client mask that is the conjunction of these


@dataclass
class Lowered:
    outputs: list[Node]
    output_names: list[str]
    prelude: list[PreludeStep]
    released: dict[str, Tensor]  # tensors of the prelude, by name
    origins: dict[str, frozenset[str]]  # the server's parameters that each is computed from; none: it is public
    inputs: list[str]


@dataclass
class Lowering:
    """Walks the exported graph once. Rules see it as their context."""

    builder: Builder = field(default_factory=Builder)
    embedding: str = "client"
    values: dict[str, Any] = field(default_factory=dict)
    steps: list[PreludeStep] = field(default_factory=list)
    released: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, frozenset[str]] = field(default_factory=dict)
    applied: dict[tuple[Any, ...], tuple[Value, Any]] = field(default_factory=dict)
    hiding: dict[int, tuple[Node, Value, Node]] = field(default_factory=dict)  # scores with a mask (rules/masks.py)
    rules: Rules = field(default_factory=Rules)
    problems: Problems = field(default_factory=Problems)
    path: str = ""

    def run(self, exported: ExportedProgram, outputs: list[str] | None, names: list[str]) -> Lowered:
        """`names`: names of the model's outputs in order; `outputs`: those wanted (None: all)."""
        sources = _sources(exported)
        inputs: list[str] = []
        found: list[Any] = []
        for item in exported.graph.nodes:
            if item.op == "placeholder":
                self.values[item.name] = self._source(item, sources, exported, inputs)
            elif item.op == "call_function":
                stack = item.meta.get("nn_module_stack") or {}
                self.path = next(reversed(stack.values()))[0] if stack else ""
                self.builder.path = self.path
                try:
                    self.values[item.name] = self._call(item)
                except LoweringError as error:  # go on, to name all that has no rule at once
                    self.problems.add(self.path, *error.args)
                    self.values[item.name] = _unknown(item)
            elif item.op == "output":
                specs = exported.graph_signature.output_specs  # what a model writes to its buffers is no answer of it
                answers = [a for a, s in zip(item.args[0], specs, strict=True) if s.kind.name == "USER_OUTPUT"]
                found = [self.values[arg.name] for arg in answers if isinstance(arg, fx.Node)]
        self.problems.check()
        kept = [(n, v) for n, v in zip(names, found, strict=True) if outputs is None or n in outputs]
        nodes = [self.as_node(v) for _, v in kept]
        for (name, _), node in zip(kept, nodes, strict=True):
            if is_infinite(self, node):
                raise LoweringError(
                    f"output {name}: holds a mask's minus infinity, which has no fixed point; return it without"
                )
        return Lowered(nodes, [n for n, _ in kept], self.steps, self.released, self.origins, inputs)

    # --- for rules ---------------------------------------------------------------------------------------------------
    def as_node(self, value: Any) -> Node:
        """The graph's node for any lowered value, tensor or number; a node is its own."""
        if isinstance(value, Node):
            return value
        if not isinstance(value, Value):
            return self.builder.constant(value)
        if value.node is None:
            tensor = value.value if isinstance(value.value, Tensor) else torch.tensor(value.value)
            op = {"public": "constant", "server": "weight", "client": "client"}[value.owner]
            name = value.ref or f"{op}_{len(self.values)}_{self.path}"
            attributes = {"binary": True} if value.binary else {}
            value.node = Node(op, [], attributes, tuple(tensor.shape), value.owner, self.path, name, tensor.detach())
        return value.node

    def apply(self, target: str, *args: Any) -> Value:
        """A listed operation (client_graph.py) on values of one owner and public ones. Equal calls are one value.

        It is done now; if the client owns the result, the client does it in every query, too.
        """
        key = (target, *((a.ref or id(a.value)) if isinstance(a, Value) else repr(a) for a in args))
        if key not in self.applied:
            found = list(_values(args))
            owner = next((o for o in ("client", "server") if any(v.owner == o for v in found)), "public")
            value = _concrete(operation(target), args, {})
            if owner == "client":
                name = f"{next(v.ref for v in found if v.owner == owner)}.{_short(target)}.{len(self.steps)}"
                made = self._at_client(name, target, args, {}, value)
            else:
                made = Value(owner, value, parameters=frozenset().union(*(v.parameters for v in found)))
            self.applied[key] = made, args  # which keeps their identities
        return self.applied[key][0]

    def least_number(self, value: Value) -> float:
        """The largest number that the steps to a client's value mention, as a negative one."""
        return -max(_mentioned(self.steps, value.ref), default=0.0)

    def fail(self, what: str, advice: str = "") -> LoweringError:
        """For a rule to raise: what cannot be done, and the way out, which many may share."""
        return LoweringError(what, advice)

    # --- sources -----------------------------------------------------------------------------------------------------
    def _source(self, item: fx.Node, sources: dict[str, Any], exported: ExportedProgram, inputs: list[str]) -> Value:
        kind, target, value = sources[item.name]
        if kind == "parameter":
            # Minus infinity is what a mask that a model keeps as a buffer hides with.
            if value.is_floating_point() and not bool((value < math.inf).all()):
                raise LoweringError(f"{target}: holds NaN or infinite weights; repair or retrain the model")
            return Value("server", value, ref=target, parameters=frozenset({target}))
        if kind == "public":
            return Value("public", value)
        inputs.append(item.name)
        return Value("client", item.meta.get("example", value), ref=item.name)

    # --- calls -------------------------------------------------------------------------------------------------------
    def _call(self, item: fx.Node) -> Any:
        target = str(item.target)
        short = _short(target)
        if short in IGNORED:
            return None
        args: Any = fx.map_arg(item.args, lambda n: self.values[n.name])
        kwargs: Any = fx.map_arg(item.kwargs, lambda n: self.values[n.name])
        if "getitem" in target and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        found = list(_values(args)) + list(_values(kwargs))
        owner = self._owner(short, found, _narrows(item, short, args))
        if owner == "shared":
            return self._shared(short, target, args, kwargs)
        if short == "inverse":  # whoever has the number divides by it
            return self.apply("aten.reciprocal.default", args[1])
        value = _concrete(item.target, args, kwargs)
        parameters = frozenset().union(*(v.parameters for v in found))
        if owner in ("public", "server"):
            return self._results(value, owner, parameters)
        return self._client(item, short, args, kwargs, found, value)

    def _owner(self, short: str, found: list[Value], narrows: bool) -> str:
        owners = {v.owner for v in found}
        if "shared" in owners:
            return "shared"
        if owners >= {"client", "server"}:
            if short == "embedding":
                return "shared" if self.embedding == "private" else "client"
            released = all(v.embedded for v in found if v.owner == "client")
            return "client" if released and (narrows or short not in MATRIX_PRODUCTS) else "shared"
        if "client" in owners:
            return "client"
        return "server" if "server" in owners else "public"

    def _shared(self, short: str, target: str, args: Any, kwargs: Any) -> Any:
        rule = self.rules.find(short)
        if rule is None:
            raise self.fail(f"operation {short} ({target}) has no private form", self.rules.advice(short))
        try:
            result = rule(self, *args, **kwargs)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise self.fail(
                f"operation {short} ({target}) is called in a way that its rule does not know; call it more simply"
            ) from error
        if isinstance(result, list | tuple):
            return [Value("shared", node=n) for n in result]
        return result if isinstance(result, Value) else Value("shared", node=result)

    def _results(self, value: Any, owner: str, parameters: frozenset[str]) -> Any:
        if isinstance(value, list | tuple):
            return [Value(owner, v, parameters=parameters) for v in value]
        return Value(owner, value, parameters=parameters)

    def _client(self, item: fx.Node, short: str, args: Any, kwargs: Any, found: list[Value], value: Any) -> Any:
        for v in found:
            if v.owner == "server":
                self._release(v)
        if short not in ALLOWED:
            text = f"operation {short} ({item.target}) of the inputs alone cannot run at the client"
            self.problems.add(self.path, text, "do it beforehand")
        return self._at_client(item.name, str(item.target), args, kwargs, value)

    def _at_client(self, name: str, target: str, args: Any, kwargs: Any, value: Any) -> Any:
        """The client's value of a step of its prelude."""
        short, found = _short(target), list(_values([args, kwargs]))
        embedded = short == "embedding" or any(v.embedded for v in found)
        self.steps.append(PreludeStep(name=name, target=target, args=_encode(args, self), kwargs=_encode(kwargs, self)))
        if isinstance(value, list | tuple):
            results = []
            for number, part in enumerate(value):
                self.steps.append(PreludeStep(name=f"{name}.{number}", target="getitem", args=[{"ref": name}, number]))
                results.append(Value("client", part, ref=f"{name}.{number}", embedded=embedded))
            return results
        rearranged = short in REARRANGES and all(v.binary for v in found)
        binary = value.dtype == torch.bool or short == "keeps" or rearranged
        factors = self._of_keys(target, args, kwargs) or _factors(short, args)
        return Value("client", value, ref=name, embedded=embedded, binary=binary, factors=factors)

    def _of_keys(self, target: str, args: Any, kwargs: Any) -> tuple[Value, ...]:
        """Where the rows of a mask are all alike, what is computed of each is computed of one: a mask of keys."""
        short = _short(target)
        if short not in ROW_BY_ROW or kwargs or (short == "sum" and list(args[1:]) != [[-1], True]):
            return ()
        narrow = [_one_row(v) if isinstance(v, Value) and v.owner == "client" else v for v in args]
        if not isinstance(args[0], Value) or any(v is None for v in narrow):
            return ()
        return (self.apply(target, *narrow),)

    def _release(self, v: Value) -> None:
        if not v.ref:
            v.ref = f"released.{len(self.released)}"
        self.released[v.ref] = v.value.detach()
        self.origins[v.ref] = v.parameters


def _unknown(item: fx.Node) -> Any:
    """What stands for a result that there is no rule for: its shape."""
    found = item.meta.get("val")
    parts = found if isinstance(found, list | tuple) else [found]
    made = [Value("shared", node=Node("unknown", shape=tuple(getattr(part, "shape", ())))) for part in parts]
    return made if isinstance(found, list | tuple) else made[0]


def _short(target: Any) -> str:
    return str(target).removeprefix("aten.").removeprefix("blindformer.").split(".")[0]


def _narrows(item: fx.Node, short: str, args: Any) -> bool:
    """Whether a layer is the one reader of its input and makes it narrower, for other layers to come.

    A factorised embedding (ALBERT, ELECTRA) ends so. A layer that ends the model is its own secret, however narrow.
    """
    if short != "linear" or not isinstance(args[1], Value) or not isinstance(item.args[0], fx.Node):
        return False
    outputs, inputs = args[1].value.shape
    if outputs >= inputs or len(item.args[0].users) > 1:
        return False
    todo, seen = list(item.users), set()
    while todo:
        user = todo.pop()
        if _short(user.target) in MATRIX_PRODUCTS:
            return True
        todo += [] if user in seen else list(user.users)
        seen.add(user)
    return False


def _sources(exported: ExportedProgram) -> dict[str, tuple[str, str, Any]]:
    """Placeholder name -> (parameter | public | input, name in the model, value)."""
    constants: dict[str, Any] = dict(exported.constants)
    found: dict[str, tuple[str, str, Any]] = {}
    for spec in exported.graph_signature.input_specs:
        arg: Any = spec.arg
        name, target = getattr(arg, "name", ""), spec.target or ""
        kind = spec.kind.name
        if kind == "PARAMETER":
            found[name] = ("parameter", target or name, exported.state_dict[target].detach())
        elif kind == "BUFFER":
            table = exported.state_dict if spec.persistent else constants
            value = table[target].detach()
            # Index buffers (position ids) are the architecture's; float buffers that are saved are the model's.
            secret = bool(spec.persistent) and value.is_floating_point()
            found[name] = ("parameter" if secret else "public", target or name, value)
        elif kind == "CONSTANT_TENSOR":
            found[name] = ("public", name, constants[target])
        elif kind == "USER_INPUT":
            found[name] = ("public", name, arg.value) if hasattr(arg, "value") else ("input", name, None)
    return found


def _values(tree: Any) -> Any:
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _values(item)
    elif isinstance(tree, dict):
        for item in tree.values():
            yield from _values(item)


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
        if _short(step.target) == "clamp" and isinstance(step.args[1], float) and step.args[1] >= MASKED:
            continue
        for arg in [*step.args, *step.kwargs.values()]:
            if isinstance(arg, float) or (isinstance(arg, int) and abs(arg) < 2**31):
                yield abs(arg)
            if isinstance(arg, dict) and "ref" in arg:
                todo.append(arg["ref"])


def _map(tree: Any, function: Any) -> Any:
    if isinstance(tree, Value):
        return function(tree)
    if isinstance(tree, list | tuple):
        return type(tree)(_map(item, function) for item in tree) if not isinstance(tree, torch.Size) else tree
    if isinstance(tree, dict):
        return {k: _map(item, function) for k, item in tree.items()}
    return tree


def _concrete(target: Any, args: Any, kwargs: Any) -> Any:
    with torch.no_grad():
        return target(*_map(list(args), lambda v: v.value), **_map(dict(kwargs), lambda v: v.value))


def _factors(short: str, args: Any) -> tuple[Value, ...]:
    """A mask that is a conjunction keeps its factors: a public one is free, one without a query axis is cheap."""
    values = [a for a in args if isinstance(a, Value)]
    if short in ("__and__", "bitwise_and", "logical_and") and len(values) == 2:
        return tuple(f for v in values for f in (v.factors or (v,)))
    if short in ("expand", "to", "_to_copy", "clone", "alias", "contiguous") and values:
        return values[0].factors or (values[0],)
    return ()


def _one_row(mask: Value) -> Value | None:
    """The one row of keys that a mask repeats for every query, if it does so."""
    secret = [f for f in mask.factors if f.owner != "public" or not bool((f.value == 1).all())]
    return secret[0] if len(secret) == 1 and secret[0].value.dim() > 1 and secret[0].value.shape[-2] == 1 else None


def _encode(tree: Any, lowering: Lowering) -> Any:
    """Arguments of a prelude step as JSON."""
    if isinstance(tree, Value):
        if tree.owner == "public" and not isinstance(tree.value, Tensor):
            return tree.value
        if tree.owner == "public":
            lowering._release(tree)  # a public tensor travels with the client's part, too
        return {"ref": tree.ref}
    if isinstance(tree, list | tuple):
        return [_encode(item, lowering) for item in tree]
    if isinstance(tree, dict):
        return {k: _encode(item, lowering) for k, item in tree.items()}
    if isinstance(tree, torch.dtype):
        return {"dtype": str(tree).removeprefix("torch.")}
    if isinstance(tree, torch.layout | torch.memory_format):
        return None
    if isinstance(tree, torch.device):
        return {"device": "cpu"}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise lowering.fail(f"a prelude step takes a {type(tree).__name__}, which has no JSON form")
