"""A model run, and traced by torch.export. All that torch raises on the way becomes a LoweringError with its reason."""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from traceback import walk_tb
from typing import Any

import torch
import torch.fx.config as fx_config
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ...errors import BlindformerError, first_line
from .structure import tensors_of
from .values import LoweringError, Value, short_name

Exported = tuple[torch.export.ExportedProgram, list[str]]
"""A traced model, and the names of its outputs, in order."""
CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"}


@contextmanager
def quietly() -> Iterator[None]:
    """What torch prints and logs of what it cannot trace, tracebacks too, is not part of the error, which is one line.
    Nobody reads where in a model's code an operation stands, and to find it takes long."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        with redirect_stderr(io.StringIO()), _without_stack_traces():
            yield
    finally:
        logger.disabled = before


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    name = "do_not_emit_stack_traces"  # of later versions
    before = getattr(fx_config, name, None)
    if before is None:
        yield
        return
    setattr(fx_config, name, True)
    try:
        yield
    finally:
        setattr(fx_config, name, before)


def _arguments(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    kwargs = dict(batch)
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters and getattr(getattr(model, "config", None), "use_cache", False):
        kwargs.setdefault("use_cache", False)  # a cache is for generating token by token; a query is one pass
    return kwargs


def run_model(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    """The model's own output, in the clear. Errors: LoweringError, with its reason, if it does not take the inputs."""
    try:
        with torch.no_grad():
            return model(**_arguments(model, batch))
    except BlindformerError:
        raise
    except Exception as error:  # a model may raise anything here; all mean the same to a user
        raise not_run(model, error) from error


def not_run(model: nn.Module, error: Exception) -> LoweringError:
    """What a model that raises on its inputs is refused with."""
    if "index out of range in self" in str(error):  # torch's words for a row that a table does not have
        return LoweringError(
            "inputs: an id has no row in the model; encode with its own tokenizer, no longer than it takes"
        )
    return LoweringError(f"{type(model).__name__}: does not run on these inputs: {first_line(error)}")


def export(model: nn.Module, batch: Mapping[str, Any]) -> Exported:
    """The model as torch traces it. Errors: LoweringError."""
    with torch.no_grad():
        try:
            with _use_lazy_graph_module(True):  # nobody runs the Python that torch would write for a graph
                with quietly():
                    exported = torch.export.export(model, (), _arguments(model, batch), strict=False)
                if any(_writes(item) for item in exported.graph.nodes):
                    _replace_idle_dropouts(exported.graph)
                    with warnings.catch_warnings():  # torch warns of itself
                        warnings.simplefilter("ignore", FutureWarning)
                        exported = exported.run_decompositions({})  # to values alone: no view is written through
        except BlindformerError:
            raise
        except Exception as error:  # torch.export raises many kinds; all mean the same to a user
            where, line = _place(model, error), first_line(error, 300)
            advice = "; branch on nothing that its inputs hold, as that stays secret" if "data-dep" in line else ""
            name = type(model).__name__
            raise LoweringError(f"{name}: torch.export cannot trace it{where}: {line}{advice}") from error
    for item in list(exported.graph.nodes):
        if short_name(item.target) in CHECKS:  # of the example, as the model ran; what they alone read goes with them
            exported.graph.erase_node(item)
    exported.graph.eliminate_dead_code()
    return exported, _names(exported)


def _place(model: nn.Module, error: Exception) -> str:
    """The innermost module that was running, in words."""
    paths = {id(module): path for path, module in model.named_modules()}
    running = (id(frame.f_locals.get("self")) for frame, _ in walk_tb(error.__traceback__))
    active = [paths[module] for module in running if paths.get(module)]
    return f", in {active[-1]}" if active else ""


def serves(graph: Exported, model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether a graph that was traced at other shapes gives on this batch, too, what the model gives."""
    exported, names = graph
    values = [value if kind != "input" else batch[name] for name, (kind, _, value) in sources(exported)]
    wanted = tensors_of(run_model(model, batch))
    try:
        with torch.no_grad():
            answers = torch.fx.Interpreter(exported.graph_module).run(*values)
    except (RuntimeError, ValueError, IndexError):  # of sizes that it states
        return False
    outputs = dict(zip(names, answers, strict=False))
    return outputs.keys() == wanted.keys() and all(_alike(outputs[name], wanted[name]) for name in names)


@dataclass
class Traces:
    """A model as it was traced, at the shapes of `widest` first: bounds that a trace states hold for smaller ones."""

    widest: Mapping[str, Any]
    found: list[Exported] = field(default_factory=list)

    def of(self, model: nn.Module, batch: Mapping[str, Any]) -> Exported:
        """One that gives on this batch what the model gives. Errors: LoweringError."""
        if not self.found:
            self.found.append(export(model, self.widest))
        graph = next((graph for graph in self.found if serves(graph, model, batch)), None)
        if graph is None:
            self.found.append(graph := export(model, batch))
        return graph


def _alike(output: Tensor, wanted: Tensor) -> bool:
    return output.shape == wanted.shape and bool((output - wanted).abs().max() <= 1e-3 * wanted.abs().max())


def sources(exported: torch.export.ExportedProgram) -> Iterator[tuple[str, tuple[str, str, object]]]:
    """Placeholder name, (parameter | public | input, name in the model, value)."""
    constants: dict[str, Any] = dict(exported.constants)
    for spec in exported.graph_signature.input_specs:
        arg: Any = spec.arg
        name, target, kind = getattr(arg, "name", ""), spec.target or "", spec.kind.name
        if kind == "PARAMETER":
            yield name, ("parameter", target or name, exported.state_dict[target].detach())
        elif kind == "BUFFER":
            value = (exported.state_dict if spec.persistent else constants)[target].detach()
            # What is saved is the model's own, whatever its type; what is not (position ids) is its architecture's.
            yield name, ("parameter" if spec.persistent else "public", target or name, value)
        elif kind == "CONSTANT_TENSOR":
            yield name, ("public", name, constants[target])
        elif kind == "USER_INPUT":
            yield name, (("public", name, arg.value) if hasattr(arg, "value") else ("input", name, None))


def _names(exported: torch.export.ExportedProgram) -> list[str]:
    """Names of the traced outputs, by the form that they have there: an approximation may change it."""
    spec: Any = exported.call_spec.out_spec
    outputs = [item for item in exported.graph_signature.output_specs if item.kind is OutputKind.USER_OUTPUT]
    args = [item.arg for item in outputs]
    leaves = [torch.empty(()) if isinstance(arg, TensorArgument) else getattr(arg, "value", None) for arg in args]
    return list(tensors_of(pytree.tree_unflatten(leaves, spec)))


def _writes(item: torch.fx.Node) -> bool:
    """Whether an operation writes to its argument. To detach a constant in place changes no number."""
    schema = getattr(item.target, "_schema", None)
    return schema is not None and schema.is_mutable and schema.name != "aten::detach_"


def _replace_idle_dropouts(graph: fx.Graph) -> None:
    """A dropout in evaluation returns its argument itself, but torch loses what is written through it there."""
    for item in graph.nodes:
        if item.target is torch.ops.aten.dropout.default and not item.args[2]:
            item.target, item.args = torch.ops.aten.alias.default, item.args[:1]


# An operation that has no rule, taken apart as PyTorch takes it apart.


def parts_of(
    operation: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[fx.Graph, list[Value]] | None:
    """The graph of smaller operations for a call, and the call's values in the order of the graph's placeholders.

    None: PyTorch has no smaller ones.
    """
    leaves, form = pytree.tree_flatten((list(args), dict(kwargs)))
    values = [leaf for leaf in leaves if isinstance(leaf, Value)]
    function = decomposition_table.get(operation, operation)  # without one, the dispatcher may still know

    def call(*tensors: Tensor) -> Any:
        inputs = iter(tensors)
        plain = [next(inputs) if isinstance(leaf, Value) else leaf for leaf in leaves]
        arguments, named = pytree.tree_unflatten(plain, form)
        return function(*arguments, **named)

    try:
        with quietly(), torch.no_grad():
            traced = make_fx(torch.func.functionalize(call), tracing_mode="fake")(*(_like(value) for value in values))
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # for these arguments
    calls = [item.target for item in traced.graph.nodes if item.op == "call_function"]
    if operation in calls or any(str(target).startswith("prims.") or isinstance(target, type) for target in calls):
        return None  # those have no rules, so it is the operation itself that lacks one
    return traced.graph, values


def _like(value: Value) -> Tensor:
    known = value.value
    if isinstance(known, Tensor):
        return known
    if known is not None:
        return torch.tensor(known)
    return torch.zeros(value.node.shape if value.node is not None else (), dtype=value.dtype)
