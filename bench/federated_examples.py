"""What it costs in accuracy to protect single examples in federated training, for several budgets.

    python -m bench.federated_examples --data digits --secagg --epsilons 2 8 --rate 3 --work runs --format json

Trains what is not in --work yet (a run that was cut off goes on). docs/federated.md says what each row means.
"""

# pyright: reportMissingImports=false

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blindformer.federated.examples import PARTITION
from blindformer.federated.privacy import noise_for
from blindformer.federated.settings import FederateSettings
from blindformer.models.data import load_data
from rich.table import Table

from .commands import Say, federation_parser, publish, repeated, run_command
from .federated import trained
from .provenance import Measured, provenance

SETTINGS = ("data", "plan", "clients", "alpha", "rounds", "sample", "clip", "rate", "hidden", "lora", "model", "secagg")


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One budget, for several seeds, each with a split of its own.

    epsilon     spent, by the accountant, at the settings' delta
    noise       deviation of a step's noise in clipping norms
    accuracy    mean test accuracy; accuracies: by seed
    curves      by seed: validation accuracy and epsilon after each round
    """

    epsilon: float
    noise: float
    accuracy: float
    accuracies: list[float]
    curves: list[list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Protected(Measured):
    data: str
    seeds: list[int]
    train: int
    test: int
    weights_that_travel: int
    rows: list[BudgetRow]
    settings: dict[str, Any]
    command: str


def measure(chosen: argparse.Namespace, command: str, say: Say) -> Protected:
    """Train what is missing. Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    about, rows = provenance("flwr", "opacus"), []
    common = {name: getattr(chosen, name) for name in SETTINGS} | {"dp": "example"}
    report: dict[str, Any] = {}
    for budget in chosen.epsilons:
        reports = []
        for seed in chosen.seeds:
            data = load_data(chosen.data, seed=seed)
            shared = "shared-" if chosen.secagg else ""
            place = Path(chosen.work) / f"{data.name}-{seed}" / f"examples-{shared}{budget:g}"
            settings = {**common, "seed": seed, "epsilon": budget}
            nodes = {n + 1: {PARTITION: n, **trusting(chosen)} for n in range(chosen.clients)}
            report = trained(place, data, say, f"epsilon {budget:g}, seed {seed}", {**settings, "nodes": nodes})
            reports.append(report)
        rows.append(_row(reports))
    return Protected(
        data=report["data"]["name"],
        seeds=chosen.seeds,
        train=report["data"]["train"],
        test=report["data"]["test"],
        weights_that_travel=report["weights_that_travel"],
        rows=rows,
        settings=report["settings"],
        command=command,
        **about,
    )


def trusting(chosen: argparse.Namespace) -> dict[str, int]:
    """Terms of clients that share the noise with all others, where a secure sum lets them."""
    return {"trusted-others": chosen.clients - 1} if chosen.secagg else {}


def _row(reports: list[dict[str, Any]]) -> BudgetRow:
    accuracies = [report["test_accuracy"] for report in reports]
    curves = [[(r["accuracy"], r["epsilon"]) for r in report["rounds"]] for report in reports]
    noise = noise_for(FederateSettings.of(reports[0]["settings"]))
    return BudgetRow(
        max(report["epsilon"] for report in reports), noise, statistics.mean(accuracies), accuracies, curves
    )


# The command line.


def table(report: Protected) -> Table:
    seeds, settings = ", ".join(map(str, report.seeds)), report.settings
    title = f"{report.data}, {settings['clients']} clients, seeds {seeds}, plan {settings['plan']}"
    grid = Table(title=f"{title}, {report.test} to test")
    for name in ("epsilon of an example", "noise", "test accuracy", "by seed"):
        grid.add_column(name, justify="right")
    for row in report.rows:
        by_seed = " ".join(f"{value:.3f}" for value in row.accuracies)
        grid.add_row(f"{row.epsilon:.2f}", f"{row.noise:.2f}", f"{row.accuracy:.4f}", by_seed)
    return grid


def main(arguments: list[str] | None = None) -> int:
    program, about = "python -m bench.federated_examples", "Accuracy of private steps: one in each round."
    options = federation_parser(program, about, alpha=0.0, rounds=200)
    options.add_argument("--epsilons", type=float, nargs="+", default=[8.0], help="budgets (default 8)")
    options.add_argument("--sample", type=float, default=0.25, help="share of the examples in a step (default 0.25)")
    options.add_argument("--clip", type=float, default=1.0, help="norm of an example's gradient (default 1)")
    options.add_argument("--rate", type=float, default=0.0, help="of a step (default: by the kind)")
    options.add_argument("--hidden", type=int, default=64, help="for images: width of the model (default 64)")
    options.add_argument(
        "--secagg", action="store_true", help="secure aggregation: clients that trust each other share the noise"
    )
    chosen = options.parse_args(arguments)
    command = repeated("bench.federated_examples", arguments)

    def work(say: Say) -> None:
        report = measure(chosen, command, say)
        publish(report, chosen.format, table)

    return run_command("bench.federated_examples", work)


if __name__ == "__main__":
    raise SystemExit(main())
