"""From an exported ATen graph to a secret graph, whatever the architecture.

Every value belongs to someone. What depends on public things alone is computed now; what depends on parameters alone
is folded and stays the server's; what depends on the client's inputs alone is left to the client, in the clear, as
the program's prelude. Only what mixes the two becomes secret, by a rule per ATen operation (rules/).

The embedding block: an embedding table read by the client's tokens, and what follows elementwise up to the first
matrix product, runs at the client, so these parameters are released to it; a product that alone reads it and makes it
narrower is part of it, as a table of low rank would be. With `embedding="private"` the table stays with the server and
the lookup is a product with a secret one-hot matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from ...errors import BlindformerError, first_line
from ..graph.graph import Node, order
from ..program.program import PreludeStep
from . import rules
from .client_graph import ALLOWED
from .export import parts_of, sources
from .lowering import Lowering
from .masks import is_infinite
from .rules.elementwise import as_bits
from .values import LoweringError, Problems, Value, concrete, parameters_of, short_name, type_of, values_in

MATRIX_PRODUCTS = {
    "linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "convolution", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


UNWRITTEN = {"empty", "empty_like", "empty_permuted", "new_empty"}  # whatever the memory held, infinity perhaps


@dataclass(frozen=True)
class Inputs:
    """Inputs that are not the client's alone. `known`: all parties have them when it runs. `states`: rows kept from one
    run to the next; outputs of these names are rows to keep. `last`: of more rows than there is room for, the last;
    `end`: of fewer, the rows stand at the end. `whole`: those of the states that one run keeps all of."""

    known: frozenset[str] = frozenset()
    states: frozenset[str] = frozenset()
    last: bool = False
    end: bool = False
    whole: frozenset[str] = frozenset()

    def reading(self, name: str) -> dict[str, bool]:
        """How a run reads a state: attributes of the instruction."""
        how = {"whole": True} if name in self.whole else {"last": self.last, "end": self.end}
        return {attribute: True for attribute, chosen in how.items() if chosen}


@dataclass
class LoweredGraph:
    """`outputs`: those with names, then what is kept and nothing revealed is computed from.

    `released`: tensors of the prelude, by name. `origins`: the server's parameters that each is computed from; none:
    it is public. `public`: parameters that all who compute may have. `types`: of outputs that are no real numbers."""

    outputs: list[Node]
    output_names: list[str]
    prelude: list[PreludeStep]
    released: dict[str, Tensor]
    origins: dict[str, frozenset[str]]
    inputs: list[str]
    public: frozenset[str]
    types: dict[str, str]


def lower(
    exported: ExportedProgram,
    example: Mapping[str, object],
    names: Sequence[str],
    wanted: Sequence[str],
    embedding: str = "client",
    inputs: Inputs | None = None,
    public: frozenset[str] | None = None,
) -> LoweredGraph:
    """`names`: of the model's outputs, in order; `wanted`: those to compute. `public`: parameters that are no secret
    (None: all are the server's). Errors: LoweringError."""
    inputs = inputs or Inputs()
    walk = _Walk(exported, example, embedding, inputs)
    walk.lowering.public = public
    answers = walk.run()
    lowering = walk.lowering
    rows = [lowering.as_node(value) for name, value in zip(names, answers, strict=True) if name in inputs.states]
    for name, node in zip((name for name in names if name in inputs.states), rows, strict=True):
        _keep(node, name, name in inputs.whole)
    wanted = [name for name in wanted if name not in inputs.states]
    kept = [(n, v) for n, v in zip(names, answers, strict=True) if n in wanted]
    nodes = [lowering.as_node(v) for _, v in kept]
    for (name, _), node in zip(kept, nodes, strict=True):
        if is_infinite(lowering, node):
            raise LoweringError(
                f"output {name}: holds a mask's minus infinity, which has no fixed point; return it without"
            )
    read = frozenset(target for _, (kind, target, _) in sources(exported) if kind == "parameter")
    reached = set(map(id, order(nodes)))
    return LoweredGraph(
        [*nodes, *(node for node in rows if id(node) not in reached)],
        [n for n, _ in kept],
        lowering.steps,
        lowering.released,
        lowering.origins,
        walk.inputs,
        read & (public or frozenset()),
        {n: str(type_of(v)).removeprefix("torch.") for n, v in kept if type_of(v) in (torch.bool, *_WHOLE)},
    )


class _Walk:
    """One pass over the exported graph: who owns each value, and what becomes of it."""

    def __init__(self, exported: ExportedProgram, example: Mapping[str, object], embedding: str, given: Inputs) -> None:
        self.exported, self.example, self.embedding, self.given = exported, example, embedding, given
        self.lowering, self.problems = Lowering(self._inline), Problems()
        self.inputs: list[str] = []

    def run(self) -> list[Value]:
        """The model's outputs, in order."""
        placeholders, values = dict(sources(self.exported)), self.lowering.values
        outputs: list[Value] = []
        for item in self.exported.graph.nodes:
            if item.op == "placeholder":
                values[item.name] = self._source(item, *placeholders[item.name])
            elif item.op == "call_function":
                stack = item.meta.get("nn_module_stack") or {}
                path = next(reversed(stack.values()))[0] if stack else ""
                self.lowering.path = self.lowering.builder.path = path
                try:
                    values[item.name] = _typed(item, self._call(item, values, item.name))
                except LoweringError as error:  # go on, to name all that has no rule at once
                    self.problems.add(path, *error.args)
                    values[item.name] = _unknown(item)
                except BlindformerError:
                    raise
                except Exception as error:  # torch may raise anything, where a number was read of an input
                    what = f"operation {short_name(item.target)} cannot be computed beforehand: {first_line(error)}"
                    self.problems.add(path, what, "rewrite the module without it")
                    values[item.name] = _unknown(item)
            elif item.op == "output":
                specs = self.exported.graph_signature.output_specs  # what goes to a model's buffers is no answer of it
                answers = [a for a, s in zip(item.args[0], specs, strict=True) if s.kind.name == "USER_OUTPUT"]
                outputs = [values[arg.name] for arg in answers if isinstance(arg, fx.Node)]
        self.problems.check()
        return outputs

    def _source(self, item: fx.Node, kind: str, target: str, value: object) -> Value:
        if kind == "public":
            return Value("public", value)
        if kind == "parameter":
            source = Value("server", value, ref=target, parameters=frozenset({target}))
            # Minus infinity is what a mask that a model keeps as a buffer hides with.
            if source.tensor.is_floating_point() and not bool((source.tensor < math.inf).all()):
                raise LoweringError(f"{target}: holds NaN or infinite weights; repair or retrain the model")
            if self.lowering.is_open(source) and not source.tensor.is_floating_point():
                source.owner = "public"  # indices, say, of which rules know those alone that all may have
            return source
        if item.name in self.given.states:
            rows = self.example[item.name]
            assert isinstance(rows, Tensor)
            how = self.given.reading(item.name)
            node = Node("state", shape=tuple(rows.shape), name=item.name, value=rows, attributes=how)
            return Value("shared", node=node)
        self.inputs.append(item.name)
        example = self.example.get(item.name, value)
        return Value("client", example, ref=item.name, known=item.name in self.given.known)

    def _call(self, item: fx.Node, values: Mapping[str, Any], name: str) -> Any:
        """What an operation gives. `values`: of its graph, by name; `name`: for a step of the client."""
        call = item.target
        assert callable(call)
        target, short = str(call), short_name(call)
        if short == "sym_size":
            return None
        args: Any = fx.map_arg(item.args, lambda n: values[n.name])
        kwargs: Any = fx.map_arg(item.kwargs, lambda n: values[n.name])
        if short == "index" and (ids := _of_table(*args)) is not None:
            rows = args[0].tensor.shape[0]
            call, args = torch.ops.aten.embedding.default, (args[0], self.lowering.from_start(ids, rows, -rows))
            target, short = str(call), "embedding"
        if "getitem" in target and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        on = _drops(short, args, kwargs)
        if on or (torch.Tag.nondeterministic_seeded in getattr(call, "tags", ()) and rules.find(short) is None):
            advice = "call it with training=False" if on else "give them to the model as an input"
            raise LoweringError(f"operation {short} ({target}) draws random numbers", advice)
        operands = list(values_in([args, kwargs]))
        owner = self._owner(short, operands, _narrows(item, short, args))
        if owner == "shared" and rules.find(short) is not None:
            if _check_types(item, short, values):
                return Value("shared", node=as_bits(self.lowering, args[0]))
            return self._by_rule(short, target, args, kwargs)
        if short == "unless_known":  # whoever has x computes the function itself
            return self.lowering.apply(f"aten.{args[2]}.default", args[1])
        if (owner == "shared" and short not in rules.of_kinds()) or (owner == "client" and short not in ALLOWED):
            parts = parts_of(call, args, kwargs)
            if parts is not None:
                return self._inline(*parts, name)
        if owner == "shared":
            raise LoweringError(f"operation {short} ({target}) has no private form", rules.advice(short, "." in name))
        value = concrete(call, args, kwargs)
        if short in UNWRITTEN:
            value = torch.zeros_like(value)  # pyright: ignore[reportArgumentType]
        if owner != "client":
            parameters = parameters_of(operands)
            if isinstance(value, list | tuple):
                return [Value(owner, v, parameters=parameters) for v in value]
            return Value(owner, value, parameters=parameters)
        for v in operands:
            if v.owner == "server":
                self.lowering.release(v)
        if short not in ALLOWED:
            text = f"operation {short} ({target}) of the inputs alone cannot run at the client"
            self.problems.add(self.lowering.path, text, "do it beforehand")
        return self.lowering.at_client(name, target, args, kwargs, value)

    def _inline(self, graph: fx.Graph, given: Sequence[Value], name: str) -> Any:
        """What a graph gives, on these values in its placeholders' places."""
        values: dict[str, Any] = {}
        places = iter(given)
        for item in graph.nodes:
            if item.op == "placeholder":
                values[item.name] = next(places)
            elif item.op == "get_attr":
                raise LoweringError(f"operation {name} is made of others that hold a tensor of their own")
            elif item.op == "call_function":
                values[item.name] = _typed(item, self._call(item, values, f"{name}.{item.name}"))
            elif item.op == "output":
                return fx.map_arg(item.args[0], lambda n: values[n.name])
        raise AssertionError("a graph without an output")

    def _owner(self, short: str, operands: list[Value], narrows: bool) -> str:
        owners = {v.owner for v in operands}
        if "shared" in owners:
            return "shared"
        if owners >= {"client", "server"}:
            if short == "embedding":
                return "shared" if self.embedding == "private" else "client"
            released = self.embedding == "client" and all(v.embedded for v in operands if v.owner == "client")
            return "client" if released and (narrows or short not in MATRIX_PRODUCTS) else "shared"
        if "client" in owners:
            return "client"
        return "server" if "server" in owners else "public"

    def _by_rule(
        self, short: str, target: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Value | list[Value]:
        rule = rules.find(short)
        assert rule is not None
        try:
            result = rule(self.lowering, *args, **kwargs)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise LoweringError(
                f"operation {short} ({target}) is called in a way that its rule does not know; call it more simply", ""
            ) from error
        if isinstance(result, list):
            return [Value("shared", node=node) for node in result]
        return result if isinstance(result, Value) else Value("shared", node=result)


def _keep(node: Node, name: str, whole: bool) -> None:
    """Whoever reads the node reads it as it is kept, so that one opening serves."""
    inner, attributes = replace(node), {"name": name, **({"whole": True} if whole else {})}
    node.op, node.args, node.attributes, node.name, node.value = "keep", [inner], attributes, "", None


def _of_table(table: Value, indices: Sequence[Value | None]) -> Value | None:
    """The ids by which rows of a parameter are read: that is an embedding, whatever a model calls it."""
    ids = indices[0] if len(indices) == 1 else None
    if ids is None or (table.owner, ids.owner) != ("server", "client") or table.tensor.dim() != 2:
        return None
    return None if ids.tensor.is_floating_point() or ids.tensor.dtype == torch.bool else ids


def _typed(item: fx.Node, result: Any) -> Any:
    """The same; what is shared of it with the type that torch has for it."""
    fake = item.meta.get("val")
    parts = zip(result, fake, strict=False) if isinstance(fake, list | tuple) else [(result, fake)]
    for value, kind in parts:
        if isinstance(value, Value) and value.owner == "shared" and isinstance(kind, Tensor):
            value.dtype = kind.dtype
    return result


def _unknown(item: fx.Node) -> Value | list[Value]:
    """What stands for a result that there is no rule for: its shape."""
    fake = item.meta.get("val")
    parts = fake if isinstance(fake, list | tuple) else [fake]
    values = [Value("shared", node=Node("unknown", shape=tuple(getattr(part, "shape", ())))) for part in parts]
    return values if isinstance(fake, list | tuple) else values[0]


def _narrows(item: fx.Node, short: str, args: Sequence[object]) -> bool:
    """Whether a layer is the one reader of its input and makes it narrower, for other layers to come.

    A factorised embedding (ALBERT, ELECTRA) ends so. A layer that ends the model is its own secret, however narrow.
    """
    if short != "linear" or not isinstance(args[1], Value) or not isinstance(item.args[0], fx.Node):
        return False
    outputs, inputs = args[1].tensor.shape
    if outputs >= inputs or len(item.args[0].users) > 1:
        return False
    todo, seen = list(item.users), set()
    while todo:
        user = todo.pop()
        if short_name(user.target) in MATRIX_PRODUCTS:
            return True
        todo += [] if user in seen else list(user.users)
        seen.add(user)
    return False


def _drops(short: str, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a dropout drops anything: in a model that is evaluated it does not, unless it was told to."""
    how = {**dict(zip(("p", "train"), args[1:], strict=False)), **kwargs}
    return short.endswith("dropout") and bool(how.get("p")) and how.get("train") is not False


_CASTS = {"to", "_to_copy", "type_as"}
_WHOLE = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_OF_BITS = {
    "__and__", "bitwise_and", "logical_and", "__or__", "bitwise_or", "logical_or", "logical_xor", "bitwise_xor",
    "bitwise_not", "logical_not",
}  # fmt: skip
_OF_COMPLEX = {"view_as_real", "real", "imag", "slice", "clone", "alias", "detach"}


def _check_types(item: fx.Node, short: str, values: Mapping[str, Any]) -> bool:
    """Secrets are real numbers, whatever the type that torch has for them. Whether one becomes bits. Errors:
    LoweringError where its type is part of what an operation does."""
    secret = [n for n in item.all_input_nodes if isinstance(v := values.get(n.name), Value) and v.owner == "shared"]
    types = [n.meta["val"].dtype for n in secret if isinstance(n.meta.get("val"), Tensor)]
    result = item.meta.get("val")
    into = result.dtype if isinstance(result, Tensor) else None
    if any(kind.is_complex for kind in types) and short not in _OF_COMPLEX:
        raise LoweringError(
            f"operation {short} of complex numbers that are secret",
            "transform all dimensions at once, and take real parts",
        )
    for kind in types:
        if short in _CASTS and kind.is_floating_point and into in _WHOLE:
            raise LoweringError(f"operation {short} makes {into} of a secret's {kind}", "compare it with numbers")
        if short in _OF_BITS and kind != torch.bool:
            raise LoweringError(f"operation {short} of a secret's {kind}", "compare it with a number first")
    return short in _CASTS and into == torch.bool and types[:1] != [torch.bool]
