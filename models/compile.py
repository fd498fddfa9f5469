"""From a model and an example to a Program: export, lower, rewrite, calibrate, place scales."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ContextDecorator, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx.config as fx_config
from torch import Tensor, nn

from ..approximations import Plan, approximate, calibrate, plan_of, restore
from ..protocols.errors import BlindformerError
from ..protocols.ring import Ring
from .graph import Node, order
from .lowering import Lowered, Lowering, LoweringError
from .passes import optimise
from .prelude import run_prelude
from .program import Program, ProgramError, Step
from .ranges import measure
from .scales import Precision, Scaled, Scaler

Progress = Callable[[str], None]


class _OneAtATime(ContextDecorator):
    """For one thread: torch.export patches modules for all, and a model that is compiled has a plan in force."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@dataclass
class Compiled:
    """A program and each party's part of it.

    `weights`: the server's, ring integers by name. `constants`: public ring integers. `client_tensors`: what the
    client's prelude reads (the released embedding block and public tables).
    """

    program: Program
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]
    client_tensors: dict[str, Tensor]
    client_scales: dict[str, int]
    plan: Plan
    nodes: list[Node] = field(default_factory=list, repr=False)
    placed: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)

    def encode_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The client's sources for one query: its prelude in the clear, then fixed point."""
        return encode_client(self.program, self.client_tensors, self.client_scales, inputs)

    def decode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ring results -> float32 tensors by output name. Errors: AnswerOutOfRange."""
        return decode_outputs(self.program, outputs)


class AnswerOutOfRange(BlindformerError):
    """A result so far from what calibration saw that it cannot be trusted."""


def decode_outputs(program: Program, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ring results of a query -> float32 tensors by output name.

    Fixed point wraps silently where an activation leaves its headroom, so an output far beyond the calibrated ones is
    an error and not an answer.
    """
    ring, decoded = Ring(program.ring), {}
    for name, value in outputs.items():
        item = program.instructions[program.outputs[name]]
        real = ring.decode(value, item.scale)
        if item.bound and real.numel() and float(real.abs().max()) > 8 * item.bound:
            raise AnswerOutOfRange(
                f"{name}: the answer is far outside the calibrated range, so it may be wrong; this input is unlike the "
                "calibration inputs: calibrate on inputs like it"
            )
        decoded[name] = real.float()
    return decoded


def encode_client(
    program: Program,
    tensors: Mapping[str, Tensor],
    scales: Mapping[str, int],
    inputs: Mapping[str, Tensor],
    wanted: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The data owner's values in the ring. `wanted`: these alone, where several parties own the data."""
    values = run_prelude(program, tensors, inputs, wanted)
    ring, names = Ring(program.ring), program.client if wanted is None else wanted
    return {name: ring.encode(values[program.client[name]], scales[name], program.client[name]) for name in names}


@_OneAtATime()
def compile(
    model: nn.Module,
    example: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    plan: Plan | str = "faithful",
    *,
    outputs: list[str] | None = None,
    embedding: str = "client",
    precision: Precision | None = None,
    progress: Progress | None = None,
    name: str = "",
) -> Compiled:
    """Compile `model` for inputs of the example's shapes.

    example     keyword arguments of the model's forward, or several batches of the same shapes: all calibrate, the
    first is exported plan        a preset's name (calibrated here) or a calibrated plan
    outputs     names of the model's outputs to compute and reveal to the client (default: all)
    embedding   "client": the embedding block is released to the client; "private": its table stays with the server

    Errors: LoweringError (no rule, a parameter with NaN), ProgramError, PlanError, CalibrationError: one line each.
    """
    if embedding not in ("client", "private"):
        raise ProgramError(f"embedding={embedding!r}: choose client or private")
    batches = [example] if isinstance(example, Mapping) else list(example)
    if not batches:
        raise ProgramError("compile: there is no example; give at least one batch of inputs")
    say = progress or (lambda stage: None)
    _check_weights(model)
    was_training, previous = model.training, plan_of(model)
    model.eval()
    try:
        if isinstance(plan, str) or not plan.ranges:
            say("calibrate")
            plan = calibrate(model, batches, plan)
        say("export")
        approximate(model, plan)
        exported, names = _export(model, batches[0])
        say("lower")
        lowering = Lowering(embedding=embedding)
        _give_examples(exported, lowering, batches[0])
        lowered = lowering.run(exported, outputs, names)
    finally:
        model.train(was_training)
        if previous is None:
            restore(model)
        else:
            approximate(model, previous)
    say("optimise")
    nodes = optimise(lowered.outputs)
    steps, clients = _client_steps(nodes, lowered.prelude)
    inputs = {n: tuple(batches[0][n].shape) for n in lowered.inputs if isinstance(batches[0][n], Tensor)}
    draft = Program(inputs=inputs, prelude=tuple(steps))
    say("measure")
    ranges = measure(
        order(nodes),
        ({n: v for n, v in run_prelude(draft, lowered.released, b).items() if n in clients} for b in batches),
    )
    precision = precision or Precision()
    scaled = Scaler(ranges, precision).run(nodes, lowered.output_names)
    return _assemble(scaled, draft, lowered, plan, name or type(model).__name__, nodes)


def _assemble(scaled: Scaled, draft: Program, lowered: Lowered, plan: Plan, name: str, nodes: list[Node]) -> Compiled:
    ring = Ring()
    steps = _needed(draft.prelude, {node.name for node, _ in scaled.clients.values()})
    used = {ref for step in steps for ref in _refs(step)} | {node.name for node, _ in scaled.clients.values()}
    tensors = {n: t for n, t in lowered.released.items() if n in used}
    program = Program(
        model=name,
        plan=plan.content_hash(),
        inputs={n: s for n, s in draft.inputs.items() if n in used},
        prelude=tuple(steps),
        client={n: node.name for n, (node, _) in scaled.clients.items()},
        instructions=tuple(scaled.instructions),
        outputs=scaled.outputs,
        released=tuple(sorted(frozenset().union(*(lowered.origins[n] for n in tensors)))),
        constants={n: _digest(value, scale) for n, (value, scale) in scaled.constants.items()},
    )
    return Compiled(
        program,
        {n: ring.encode(value, scale, n) for n, (value, scale) in scaled.weights.items()},
        {n: ring.encode(value, scale, n) for n, (value, scale) in scaled.constants.items()},
        tensors,
        {n: scale for n, (_, scale) in scaled.clients.items()},
        plan,
        nodes,
        scaled.placed,
    )


def _digest(value: Tensor, scale: int) -> str:
    import hashlib

    return hashlib.sha256(Ring().encode(value, scale).contiguous().numpy().tobytes()).hexdigest()[:16]


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise LoweringError(f"{name}: holds NaN or infinite weights; repair or retrain the model")


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Nobody reads where in a model's code an operation stands, and to find it takes long."""
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


def _export(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.export.ExportedProgram, list[str]]:
    kwargs = dict(batch)
    parameters = inspect.signature(model.forward).parameters
    if "use_cache" in parameters and getattr(getattr(model, "config", None), "use_cache", False):
        kwargs.setdefault("use_cache", False)  # a cache is for generating token by token; a query is one pass
    with torch.no_grad():
        sample = model(**kwargs)
        try:
            with _without_stack_traces():
                exported = torch.export.export(model, (), kwargs, strict=False)
        except BlindformerError:
            raise
        except Exception as error:  # torch.export raises many kinds; all mean the same to a user
            line = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
            raise LoweringError(f"{type(model).__name__}: torch.export cannot trace it: {line}") from error
    names = list(sample.keys()) if hasattr(sample, "keys") else []
    return exported, [n for n in names if isinstance(sample[n], Tensor)]


def _give_examples(exported: torch.export.ExportedProgram, lowering: Lowering, batch: Mapping[str, Any]) -> None:
    for item in exported.graph.nodes:
        if item.op == "placeholder" and item.name in batch:
            item.meta["example"] = batch[item.name]


def _client_steps(outputs: list[Node], prelude: list[Step]) -> tuple[list[Step], set[str]]:
    """The prelude with the transposed masks that passes asked for, and the names that the graph reads."""
    steps, names = list(prelude), set()
    for node in order(outputs):
        if node.op == "client":
            names.add(node.name)
            source = node.attributes.get("transposed")
            if source and not any(step.name == node.name for step in steps):
                steps.append(Step(name=node.name, target="aten.transpose.int", args=[{"ref": source}, -1, -2]))
    return steps, names


def _refs(step: Step) -> set[str]:
    found: set[str] = set()
    stack: list[Any] = [step.args, step.kwargs]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if "ref" in item:
                found.add(item["ref"])
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
    return found


def _needed(steps: Iterable[Step], wanted: set[str]) -> list[Step]:
    kept: list[Step] = []
    wanted = set(wanted)
    for step in reversed(list(steps)):
        if step.name in wanted:
            kept.append(step)
            wanted |= _refs(step)
    return kept[::-1]
