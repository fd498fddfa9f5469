"""From a model and an example to a Program: export, lower, rewrite, calibrate, place scales."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..approximations import Plan, approximate, calibrate, plan_of, restore
from ..approximations.attention import MASKED
from ..approximations.pooling import MASKS
from ..errors import BlindformerError
from ..protocols.clear import ClearEngine
from ..protocols.ring import RangeError, Ring, narrowed
from .graph.graph import Node, order
from .graph.passes import optimise
from .graph.ranges import Range, measure, transferred
from .loading.accepted import TRACING, loaded_of, module_of
from .loading.adapters import added_to
from .loudness import AnswerOutOfRange, Level, calibrated_levels, check_levels, loudest
from .lowering.client_graph import behind, run_prelude
from .lowering.export import Traces, export, not_run, run_model
from .lowering.lower import Inputs, LoweredGraph, lower
from .lowering.structure import Structure, tensors_of
from .lowering.values import LoweringError
from .program.interpreter import interpret
from .program.program import PreludeStep, Program, ProgramError, constant_digest
from .program.scales import Precision, Scaled, place_scales
from .weight_owners import PRIVATE, Weights, weight_owners

if TYPE_CHECKING:
    from .loading.load import Loaded

Progress = Callable[[str, int, int], None]  # what is being done, and how much of all the work is: done, total
TOTAL = 1000
ROUNDING = 2.0**-10  # answers of 0 have roundings, too
CALIBRATED, TRACED = (
    0.5,
    0.3,
)  # about so much of the time goes to calibration until the graph is there; and to the graph


def part_of(progress: Progress | None, start: float, end: float, label: str = "") -> Progress:
    """The progress of a part of some work, which is all of it from `start` to `end` (of 1)."""

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(label + what, round(TOTAL * (start + (end - start) * done / max(total, 1))), TOTAL)

    return report


class Logged:
    """Progress for who gave none: a line of the log `blindformer` where something else begins."""

    def __init__(self) -> None:
        self._what = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what = what
            logging.getLogger("blindformer").info("%d%%  %s", 100 * done // max(total, 1), what)


@dataclass
class Compiled:
    """A program and each party's part of it.

    weights         the server's: ring integers by name
    constants       public ring integers by name
    client_tensors  what the client computes in the clear: the embedding block and public tables
    structure       of the model's output
    levels          sizes of the client's values in calibration
    """

    program: Program
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]
    client_tensors: dict[str, Tensor]
    client_scales: dict[str, int]
    plan: Plan
    structure: Structure
    nodes: list[Node] = field(default_factory=list, repr=False)
    placed: dict[int, tuple[int, int]] = field(default_factory=dict, repr=False)
    ranges: dict[int, Range] = field(default_factory=dict, repr=False)
    states: dict[str, int] = field(default_factory=dict)
    levels: dict[str, Level] = field(default_factory=dict)
    parts: dict[str, Compiled] = field(default_factory=dict, repr=False)

    def encode_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The client's inputs of one query as ring integers, after its computations in the clear."""
        return encode_client(self.program, self.client_tensors, self.client_scales, inputs, levels=self.levels)

    def encode_known(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What all parties know of one run, as public constants."""
        program = self.program
        return encode_client(program, self.client_tensors, self.client_scales, inputs, program.known)

    def decode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Float32 tensors by output name, from ring integers. Raises AnswerOutOfRange."""
        return decode_outputs(self.program, outputs)

    def answer(self, outputs: Mapping[str, Tensor]) -> Any:
        """Decoded outputs in the model's own output class."""
        return self.structure.fill(outputs)


class CalibrationWarning(UserWarning):
    """Calibration shows inputs that may be refused: values near what their bits hold, or outside a plan's ranges."""


def decode_outputs(program: Program, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ring results of a query -> tensors by output name: of real numbers float32, of others the model's own type.

    Fixed point wraps silently where an activation leaves its headroom, so an output far beyond the calibrated ones is
    an error and not an answer.
    """
    ring, decoded = Ring(program.ring), {}
    for name, value in outputs.items():
        item = program.instructions[program.outputs[name]]
        real = ring.decode(value, item.scale)
        # 4 to 8 times what was seen, as the bound is a power of two.
        if item.bound and real.numel() and float(real.abs().max()) > 4 * item.bound + ROUNDING:
            raise AnswerOutOfRange(
                f"{name}: the answer is far outside the calibrated range; calibrate on inputs like this one"
            )
        kind = getattr(torch, program.types.get(name, "float32"))
        decoded[name] = real.round().to(kind) if name in program.types else real.float()
    return decoded


def encode_client(
    program: Program,
    tensors: Mapping[str, Tensor],
    scales: Mapping[str, int],
    inputs: Mapping[str, Tensor],
    wanted: Collection[str] | None = None,
    levels: Mapping[str, Level] | None = None,
) -> dict[str, Tensor]:
    """The data owner's values in the ring. `wanted`: these alone: one owner's of several, or what all parties know.
    `levels`: of calibration (loudness.py). Errors: ProgramError, RangeError, InputOutOfRange."""
    values = run_prelude(program, tensors, inputs, wanted)
    ring, refs = Ring(program.ring), {**program.client, **program.known}
    names = program.client if wanted is None else wanted
    encoded = {name: ring.encode(values[refs[name]], scales[name], refs[name]) for name in names}
    check_levels(program, levels or {}, {name: values[refs[name]] for name in names})
    return encoded


def compile(
    model: nn.Module | Loaded | str | Path,
    example: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    plan: Plan | str = "faithful",
    *,
    outputs: list[str] | None = None,
    embedding: str = "client",
    weights: Weights | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
    name: str = "",
    inputs: Inputs | None = None,
    like: Compiled | None = None,
    states: Mapping[str, int] | None = None,
    traces: Traces | None = None,
) -> Compiled:
    """Compile a model for inputs of the example's shapes.

        compiled = bf.compile(model, batches, plan="faithful")

    model      a module, a result of `load`, or a folder's or model's name
    example    keyword arguments of the model's forward, or several batches of the same shapes, which all calibrate
    plan       a preset's name, which is calibrated here, or a calibrated plan
    outputs    names of outputs to compute and reveal (default: all); of a tuple, one element: "hidden_states.0"
    embedding  "client": every client gets the embedding block (default); "private": the server keeps it
    weights    "private": the server's (default); "public": every computing party's; or patterns of parameter names.
               An adapter that `load` added is private
    precision  of encrypted queries (default: measured)
    progress   called with (what, done, total)
    inputs     inputs that are public, or state that is kept between runs (default: all are the client's)
    like       the same model at other shapes, whose ranges and scales are reused; one batch is enough
    states     fractional bits of states that another program keeps, by name
    traces     traces of the model at other shapes, to reuse

    Raises LoweringError, ProgramError, PlanError, CalibrationError and WeightsError.
    """
    check_embedding(embedding)
    batches = [example] if isinstance(example, Mapping) else list(example)
    if not batches:
        raise ProgramError("compile: there is no example; give at least one batch of inputs")
    for name_of, value in batches[0].items():  # a number is part of the program
        if isinstance(value, int | float) and any(batch.get(name_of) != value for batch in batches):
            raise ProgramError(f"input {name_of}: is {value} and other numbers; give one, or a tensor")
    loaded = loaded_of(model)
    whose = weight_owners(weights or PRIVATE) if isinstance(loaded, nn.Module) else loaded.weights(weights)
    model = module_of(loaded)
    with TRACING:  # which replaces parameters in place: none may read them meanwhile
        public = whose.of(model)
        _check_weights(model)
        traced = part_of(progress, 0, TRACED)
        lowered, plan, structure = _traced(model, batches, plan, embedding, public, outputs, traced, inputs, traces)
    say = part_of(progress, TRACED, 1)
    say("optimise", 0, 1 + len(batches))
    nodes = optimise(lowered.outputs)
    steps, clients = _client_steps(nodes, lowered.prelude)
    shapes = {n: tuple(batches[0][n].shape) for n in lowered.inputs if isinstance(batches[0][n], Tensor)}
    draft = Program(inputs=shapes, prelude=tuple(steps))
    with TRACING:
        whose.check_released(model, _released(lowered, behind(steps, clients)), added_to(model))
    given = clients | (frozenset() if inputs is None else inputs.states)
    if like is not None:
        ranges = transferred(order(like.nodes), like.ranges, order(nodes))
    else:
        values = ({**b, **run_prelude(draft, lowered.released, b)} for b in batches)
        clients_own = ({n: v for n, v in batch.items() if n in given} for batch in values)
        total = 1 + len(batches)
        ranges = measure(order(nodes), clients_own, lambda done: say("measure", 1 + done, total))
    precision = precision or Precision(fraction=plan.fraction)
    scales = {**(states or {}), **({} if like is None else like.states)}
    scaled = place_scales(nodes, lowered.output_names, ranges, precision, scales)
    check_room(scaled.near)
    compiled = _assemble(scaled, draft, lowered, plan, name or type(model).__name__, structure, nodes)
    compiled.ranges, compiled.states = ranges, scaled.states
    if inputs is None:  # else a model that writes: its noise is drawn here, and features of a recording are levelled
        compiled.levels = calibrated_levels(compiled.program, compiled.client_tensors, batches)
    if like is not None:  # of which there were more
        seen = {like.program.client[value]: level for value, level in like.levels.items()}
        for value, level in compiled.levels.items():
            level[:] = map(max, level, seen.get(compiled.program.client[value], level))
    elif compiled.levels:
        batch = max(batches, key=_power)
        most = loudest(lambda factor: _error(model, compiled, batch, factor))
        compiled.levels = {value: [*level[:2], most] for value, level in compiled.levels.items()}
    return compiled


def _power(batch: Mapping[str, Any]) -> float:
    return sum(
        float(v.double().square().mean()) for v in batch.values() if isinstance(v, Tensor) and v.is_floating_point()
    )


def _error(model: nn.Module, compiled: Compiled, batch: Mapping[str, Any], factor: float) -> float:
    """Of a program's answers where real numbers are so many times as loud, relative to the model's largest answer."""
    loud = {n: v * factor if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in batch.items()}
    with TRACING:
        training = model.training
        expected = tensors_of(run_model(model.eval(), loud))
        model.train(training)
    try:
        sources = encode_client(compiled.program, compiled.client_tensors, compiled.client_scales, loud)
        engine = ClearEngine({**sources, **compiled.weights, **compiled.constants})
        answers = decode_outputs(compiled.program, interpret(compiled.program, engine).outputs)
    except (RangeError, AnswerOutOfRange):
        return math.inf
    pairs = [(answer.double(), expected[name].double()) for name, answer in answers.items()]
    return max(float((answer - wanted).abs().max() / wanted.abs().max()) for answer, wanted in pairs)


def check_embedding(embedding: str) -> None:
    """Errors: ProgramError."""
    if embedding not in ("client", "private"):
        raise ProgramError(f"embedding={embedding!r}: choose client or private")


def _traced(
    model: nn.Module,
    batches: list[Mapping[str, Any]],
    plan: Plan | str,
    embedding: str,
    public: frozenset[str] | None,
    outputs: list[str] | None,
    say: Progress,
    inputs: Inputs | None,
    traces: Traces | None,
) -> tuple[LoweredGraph, Plan, Structure]:
    """The lowered graph, the calibrated plan and the form of the model's output; the model is left as it was."""
    was_training, previous = model.training, plan_of(model)
    model.eval()
    try:
        structure = Structure.of(run_model(model, batches[0]))
        if isinstance(plan, str) or not plan.ranges:
            calibrating = part_of(say, 0, CALIBRATED)
            say = part_of(say, CALIBRATED, 1)
            count, chosen = lambda done, total: calibrating("calibrate", done, total), plan
            try:
                plan = calibrate(model, batches, chosen, count)
            except BlindformerError:
                raise
            except Exception as error:  # as above, on one of the other batches
                raise not_run(model, error) from error
        say("export", 0, 2)
        approximate(model, plan)
        if not plan.has_scores():
            _show_masks(model, batches[0])
        exported, names = export(model, batches[0]) if traces is None else traces.of(model, batches[0])
        wanted = structure.chosen(outputs)
        if lost := [name for name in wanted if name not in names]:
            raise LoweringError(
                f"output {lost[0]}: is not computed with plan {plan.name}; take another plan, or leave it out: "
                f"outputs={[name for name in wanted if name in names]}"
            )
        say("lower", 1, 2)
        return lower(exported, batches[0], names, wanted, embedding, inputs, public), plan, structure
    finally:
        model.train(was_training)
        if previous is None:
            restore(model)
        else:
            approximate(model, previous)


def _show_masks(model: nn.Module, batch: Mapping[str, Any]) -> None:
    """Run a model as it will be traced, with nothing masked that is not masked always: linear attention is traced only
    where this shows that all queries see the same keys. A mask of pairs that is an input may be another in a query."""
    run_model(model, {name: _all_shown(value) if _may_mask(name, value) else value for name, value in batch.items()})


def _may_mask(name: str, value: Any) -> bool:
    """Whether an input is a mask, or looks like one: yes and no, or 0 and minus infinity."""
    if not isinstance(value, Tensor) or name in MASKS or value.dtype == torch.bool:
        return isinstance(value, Tensor)
    factor = bool(((value == 0) | (value == 1)).all()) and bool((value == 1).any())
    return factor or (value.is_floating_point() and bool((value <= MASKED).any()))


def _all_shown(mask: Tensor) -> Tensor:
    """Nothing masked; but of pairs, as far as can be told, those that look ahead."""
    keep = torch.ones_like(mask, dtype=torch.bool)
    if mask.dim() > 1 and mask.shape[-1] == mask.shape[-2]:
        keep = keep.tril()
    if mask.is_floating_point() and not bool((mask > 0).any()):  # it is added
        return torch.zeros_like(mask).masked_fill(~keep, -math.inf)
    return keep.to(mask.dtype)


def _assemble(
    scaled: Scaled,
    draft: Program,
    lowered: LoweredGraph,
    plan: Plan,
    name: str,
    structure: Structure,
    nodes: list[Node],
) -> Compiled:
    ring = Ring()
    sources = {**scaled.clients, **scaled.known}
    used = behind(draft.prelude, (node.name for node, _ in sources.values()))
    tensors = {n: t for n, t in lowered.released.items() if n in used}
    constants = {n: ring.encode(value, scale, n) for n, (value, scale) in scaled.constants.items()}
    program = Program(
        model=name,
        plan=plan.content_hash(),
        inputs={n: s for n, s in draft.inputs.items() if n in used},
        prelude=tuple(step for step in draft.prelude if step.name in used),
        client={n: node.name for n, (node, _) in scaled.clients.items()},
        known={n: node.name for n, (node, _) in scaled.known.items()},
        instructions=tuple(scaled.instructions),
        outputs=scaled.outputs,
        types=lowered.types,  # pyright: ignore[reportArgumentType] - pydantic checks them
        released=tuple(sorted(_released(lowered, tensors))),
        constants={name: constant_digest(integers) for name, integers in constants.items()},
        public=tuple(sorted(lowered.public)),
    )
    program.check()  # as its parties will
    factors = program.factors()
    return Compiled(
        program,
        {n: ring.encode(value, scale, n) for n, (value, scale) in scaled.weights.items()},
        {n: narrowed(value) if n in factors else value for n, value in constants.items()},
        tensors,
        {n: scale for n, (_, scale) in sources.items()},
        plan,
        structure,
        nodes,
        scaled.placed,
    )


def _released(lowered: LoweredGraph, used: Collection[str]) -> frozenset[str]:
    """The parameters behind those values of the prelude that are used."""
    return frozenset().union(*(origins for name, origins in lowered.origins.items() if name in used))


def check_room(near: Mapping[str, float]) -> None:
    """Refuse a program whose values do not fit on the calibration inputs themselves; warn where they nearly do not."""
    for module, room in sorted(near.items(), key=lambda item: item[1]):
        advice = "calibrate on more inputs, or choose another plan for this module"
        if room < 1:
            raise ProgramError(f"{module}: values of the calibration inputs do not fit the ring; {advice}")
        text = f"{module}: inputs {room:.1f} times as large as those of calibration do not fit the ring; {advice}"
        warnings.warn(text, CalibrationWarning, stacklevel=3)


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise LoweringError(f"{name}: holds NaN or infinite weights; repair or retrain the model")


def _client_steps(outputs: list[Node], prelude: list[PreludeStep]) -> tuple[list[PreludeStep], set[str]]:
    """The prelude with the transposed masks that passes asked for, and the names that the graph reads."""
    steps, names = list(prelude), set()
    for node in order(outputs):
        if node.op == "client":
            names.add(node.name)
            source = node.attributes.get("transposed")
            if source and not any(step.name == node.name for step in steps):
                steps.append(PreludeStep(name=node.name, target="aten.transpose.int", args=[{"ref": source}, -1, -2]))
    return steps, names
