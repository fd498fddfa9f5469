"""What federated training costs in accuracy: the same model with all examples, with clients alike, with unlike ones.

    python -m bench.federated --data digits --work runs --format json

Trains what is not in --work yet (a run that was cut off goes on). docs/federated.md says what each row means.
"""

# pyright: reportMissingImports=false

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blindformer.federated.federate import REPORT, WORK, federate
from blindformer.federated.rounds import Round
from blindformer.models.data import Dataset, load_data
from blindformer.models.evaluation import Interval, wilson
from rich.console import Console
from rich.table import Table

from .latency import PLANS, Say, provenance_line, run_command
from .provenance import commit, json_line, machine, versions

CENTRAL = "one client with all examples"
TIMED_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One run. `below`: points of test accuracy below the one client's. `curve`: validation accuracy by round."""

    name: str
    clients: int
    alpha: float
    accuracy: Interval
    below: float
    curve: list[float]


@dataclass(frozen=True, slots=True)
class Federations:
    """round_s: median seconds of a round of one epoch, plain and with secure aggregation, one after the other."""

    data: str
    seed: int
    test: int
    plan: str
    weights_that_travel: int
    rows: list[Row]
    round_s: dict[str, float]
    settings: dict[str, Any]
    command: str
    versions: dict[str, str]
    commit: str | None
    machine: dict[str, Any]


def measure(chosen: argparse.Namespace, command: str, say: Say) -> Federations:
    """Train what is missing. Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    computer, data = machine(), load_data(chosen.data, seed=chosen.seed)
    folder = Path(chosen.work) / f"{Path(chosen.data).stem}-{chosen.seed}"
    common = {"data": chosen.data, "seed": chosen.seed, "plan": chosen.plan, "rounds": chosen.rounds}
    runs = {
        CENTRAL: ("central", 1, 0.0),
        f"{chosen.clients} clients, alike": ("alike", chosen.clients, 0.0),
        f"{chosen.clients} clients, Dirichlet {chosen.alpha:g}": ("dirichlet", chosen.clients, chosen.alpha),
    }
    reports = {
        name: _trained(folder / place, data, say, name, {**common, "clients": clients, "alpha": alpha})
        for name, (place, clients, alpha) in runs.items()
    }
    best = reports[CENTRAL]["test_accuracy"]
    rows = [
        Row(
            name,
            clients,
            alpha,
            wilson(round(reports[name]["test_accuracy"] * len(data.test)), len(data.test)),
            100 * (best - reports[name]["test_accuracy"]),
            [r["accuracy"] for r in reports[name]["rounds"]],
        )
        for name, (_, clients, alpha) in runs.items()
    ]
    return Federations(
        data=data.name,
        seed=chosen.seed,
        test=len(data.test),
        plan=chosen.plan,
        weights_that_travel=reports[CENTRAL]["weights_that_travel"],
        rows=rows,
        round_s={
            name: _seconds(data, say, name, {**common, "clients": chosen.clients, "secagg": secure})
            for name, secure in (("plain", False), ("secure aggregation", True))
        },
        settings=reports[CENTRAL]["settings"],
        command=command,
        versions=versions("flwr"),
        commit=commit(),
        machine=computer,
    )


def _trained(folder: Path, data: Dataset, say: Say, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of the run in `folder`, trained if it is not there yet."""

    def show(made: Round, total: int) -> None:
        say(f"{name}: round {made.number}/{total}, accuracy {made.accuracy:.3f}")

    if not (folder / REPORT).exists() or (folder / WORK).exists():
        federate(folder, data, progress=show, **settings)
    return json.loads((folder / REPORT).read_text())


def _seconds(data: Dataset, say: Say, name: str, settings: dict[str, Any]) -> float:
    say(f"a round, {name}")
    with tempfile.TemporaryDirectory() as folder:
        found = federate(Path(folder) / "out", data, **{**settings, "rounds": TIMED_ROUNDS, "epochs": 1})
    return round(statistics.median(r.seconds for r in found.rounds), 2)


# The command line.


def table(found: Federations) -> Table:
    grid = Table(title=f"{found.data}, seed {found.seed}, plan {found.plan}, {found.test} test examples")
    for name in ("trained by", "test accuracy", "95% interval", "points below"):
        grid.add_column(name, justify="left" if name == "trained by" else "right")
    for row in found.rows:
        interval = f"{row.accuracy.low:.3f} to {row.accuracy.high:.3f}"
        grid.add_row(row.name, f"{row.accuracy.value:.4f}", interval, f"{row.below:.1f}")
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser("python -m bench.federated", description="Accuracy of federated training.")
    options.add_argument("--data", default="digits", help="a data set's name (default digits)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--plan", choices=[*PLANS, "he"], default="fast")
    options.add_argument("--clients", type=int, default=10)
    options.add_argument("--alpha", type=float, default=0.5, help="of the Dirichlet shares (default 0.5)")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--work", default="runs", help="where trained models are kept (default runs)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)
    command = shlex.join(["python", "-m", "bench.federated", *(sys.argv[1:] if arguments is None else arguments)])

    def work(say: Say) -> None:
        found = measure(chosen, command, say)
        if chosen.format == "json":
            print(json_line(asdict(found)))
            return
        console = Console()
        console.print(table(found))
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in found.round_s.items())
        console.print(f"a round of one epoch: {seconds}")
        console.print(provenance_line(found.commit, found.versions, found.machine), style="dim", soft_wrap=True)

    return run_command("bench.federated", work)


if __name__ == "__main__":
    raise SystemExit(main())
