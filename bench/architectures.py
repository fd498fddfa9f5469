"""Which architectures run in private, and how close to float32: one row each of architectures.toml.

    python -m bench.architectures --format json > bench/results/architectures.json
    python -m bench.architectures --only Llama --plan fast
    python -m bench.architectures --plan delegated

Tiny models with random weights. Each is compiled, asked with all its inputs on `clear` and with one on `beaver`, and
held against the model itself: the least cosine similarity of an output, and the largest error of an element. With
plans that a student has to be trained with (fast, he), the model that it is held against computes with the plan.
Plan `delegated` is protocol `delegated` with public weights, asked with all inputs through its real parties.
"""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from blindformer.approximations import Plan, approximate, restore
from blindformer.models.compile import Compiled, compile
from blindformer.models.delegated.manifest import prepare
from blindformer.models.delegated.running import DelegatedRunner
from blindformer.models.lowering.structure import tensors_of
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.parties.session.online import Answer
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.shared.threads import DelegatedThreads, ThreadParties
from torch import Tensor, nn

from .architecture_models import Architecture, Batch, architectures
from .harness import BenchError, Say, json_line, parser, provenance, run_command

DELEGATED = "delegated"
LEAST = 0.9995  # cosine similarity below which an answer of `faithful` is wrong


@dataclass
class Row:
    """`refused`: why it does not run, in one line. Bytes: of one query, online, both ways, and offline."""

    name: str
    model: str
    library: str
    plan: str
    compile_s: float = 0.0
    cosine: float = 0.0
    error: float = 0.0
    beaver_cosine: float = 0.0
    beaver_error: float = 0.0
    largest: float = 0.0
    rounds: int = 0
    online_bytes: int = 0
    offline_bytes: int = 0
    refused: str = ""

    @property
    def wrong(self) -> bool:
        return not self.refused and min(self.cosine, self.beaver_cosine) < LEAST


def measure(architecture: Architecture, plan: str) -> Row:
    """One architecture under one plan, or delegated."""
    row = Row(architecture.name, architecture.model, architecture.library, plan)
    try:
        model, batches = architecture.build(), architecture.batches()
    except ModuleNotFoundError as error:
        row.refused = f"{error}: install it"
        return row
    if plan == DELEGATED:
        return _delegated(row, model, batches)
    started = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = compile(model, batches, plan, name=architecture.name)
    except BlindformerError as error:
        row.refused = str(error)
        return row
    row.compile_s = time.monotonic() - started
    declared = price(compiled.program)
    row.rounds, row.online_bytes = declared.rounds, declared.up + declared.down
    row.offline_bytes = declared.offline_bytes
    wanted = [_in_float(model, batch, compiled.plan) for batch in batches]
    row.largest = max(float(tensor.abs().max()) for outputs in wanted for tensor in outputs.values())
    try:
        row.cosine, row.error = _distance(wanted, [_clear(compiled, batch) for batch in batches])
        row.beaver_cosine, row.beaver_error = _distance(wanted[:1], [_beaver(compiled, batches[0])])
    except BlindformerError as error:
        row.refused = str(error)
    return row


def _delegated(row: Row, model: nn.Module, batches: list[Batch]) -> Row:
    """Rounds and bytes are those of the first inputs."""
    wanted = [_in_float(model, batch, Plan.preset("faithful")) for batch in batches]
    row.largest = max(float(tensor.abs().max()) for outputs in wanted for tensor in outputs.values())
    started, spent = time.monotonic(), list[Answer]()
    try:
        prepared = prepare(model, lambda: model(**batches[0]), row.name)
        row.compile_s = time.monotonic() - started
        for name in prepared.manifest.parameters:
            model.get_parameter(name).data.fill_(torch.nan)  # nothing reads them
        runner, threads = DelegatedRunner(model, prepared), DelegatedThreads(prepared)
        try:
            client = threads.client(on_pass=lambda name, answer: spent.append(answer))
            outputs = [tensors_of(runner.run(client, model, **batch)) for batch in batches]
            client.close()
        finally:
            threads.close()
    except BlindformerError as error:
        row.refused = str(error)
        return row
    first = spent[0].timings
    row.rounds, row.online_bytes = first.rounds, first.online.sent + first.online.received
    row.offline_bytes = first.offline_bytes
    row.cosine, row.error = _distance(wanted, outputs)
    row.beaver_cosine, row.beaver_error = row.cosine, row.error
    return row


def _in_float(model: nn.Module, batch: Batch, plan: Plan) -> dict[str, Tensor]:
    """What the model gives; with a plan that is not close to it, what it gives under that plan."""
    if plan.needs_distillation():
        approximate(model, plan)
    try:
        with torch.no_grad():
            return {name: tensor.double() for name, tensor in tensors_of(model(**batch)).items()}
    finally:
        restore(model)


def _clear(compiled: Compiled, batch: Batch) -> dict[str, Tensor]:
    sources = {**compiled.encode_inputs(batch), **compiled.weights, **compiled.constants}
    return compiled.decode(interpret(compiled.program, ClearEngine(sources)).outputs)


def _beaver(compiled: Compiled, batch: Batch) -> dict[str, Tensor]:
    parties = ThreadParties(compiled)
    try:
        return parties.query(batch).outputs
    finally:
        parties.close()


def _distance(wanted: list[dict[str, Tensor]], got: list[dict[str, Tensor]]) -> tuple[float, float]:
    """(least cosine similarity of an output, largest error of an element)."""
    cosine, error = 1.0, 0.0
    for expected, outputs in zip(wanted, got, strict=True):
        for name, tensor in outputs.items():
            one, other = expected[name].flatten(), tensor.double().flatten()
            error = max(error, float((one - other).abs().max()))
            if bool(one.any()) or bool(other.any()):
                cosine = min(cosine, float(torch.nn.functional.cosine_similarity(one, other, dim=0)))
    return cosine, error


def measured(names: list[str], plans: list[str], say: Say) -> Iterator[Row]:
    """Row by row, as they come. Errors: BlindformerError for a name that is not in the table."""
    table = architectures()
    for name in names:
        if name not in table:
            raise BenchError(f"architecture {name!r}: is not in bench/architectures.toml; see --list")
    cases = [(table[name], plan) for name in names or table for plan in plans]
    for number, (architecture, plan) in enumerate(cases):
        say(f"{number * 100 // len(cases)}%  {architecture.name}, {plan}")
        yield measure(architecture, plan)


def page_table(rows: Sequence[Mapping[str, object]]) -> str:
    """Markdown: the names of architectures, by the plans that run on them, and the least cosine of `faithful`."""
    plans: dict[str, dict[str, Row]] = {}
    for result in rows:
        row = Row(**{name: result[name] for name in Row.__dataclass_fields__})  # pyright: ignore[reportArgumentType]
        plans.setdefault(row.name, {})[row.plan] = row
    by_plans: dict[str, list[str]] = {}
    for name, own in plans.items():
        answered = [f"`{plan}`" for plan, row in own.items() if not (row.refused or row.wrong)]
        by_plans.setdefault(", ".join(answered) or "none", []).append(name)
    cosines = {name: min(own["faithful"].cosine, own["faithful"].beaver_cosine) for name, own in plans.items()}
    least = min(cosines, key=lambda name: cosines[name])
    lines = [f"- {answered} ({len(names)}): {'; '.join(names)}." for answered, names in by_plans.items()]
    return "\n".join([*lines, "", f"Least cosine: {cosines[least]:.6f} ({least}).", ""])


def main(arguments: list[str] | None = None) -> int:
    options = parser("architectures", "Which architectures run in private.")
    plans = ["faithful", "fast", "he", DELEGATED]
    options.add_argument("--plan", action="append", choices=plans, help="default: faithful")
    options.add_argument("--only", action="append", default=[], metavar="NAME", help="one row; may be repeated")
    options.add_argument("--list", action="store_true", help="names alone")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        if chosen.list:
            print("\n".join(architectures()))
            return
        torch.set_num_threads(1)
        about, wrong = provenance(), 0
        for row in measured(chosen.only, chosen.plan or ["faithful"], say):
            wrong += row.wrong
            if chosen.format == "json":
                print(json_line({**asdict(row), **about}), flush=True)
            else:
                print(f"{row.name:36} {row.plan:9} {_summary(row)}", flush=True)
        if wrong:
            raise BenchError(f"{wrong} wrong: cosine similarity below {LEAST}")

    return run_command(options.prog, work)


def _summary(row: Row) -> str:
    if row.refused:
        return f"refused: {row.refused}"
    accuracy = f"cosine {row.cosine:.6f}, beaver {row.beaver_cosine:.6f}, error {row.error:.4f} of {row.largest:.2f}"
    return f"{accuracy}, {row.rounds} rounds, {row.online_bytes / 1e6:.2f} MB, compiled in {row.compile_s:.1f} s"


if __name__ == "__main__":
    raise SystemExit(main())
