"""What federated training costs in accuracy: the same model with all examples, with clients alike, with unlike ones.

    python -m bench.federated --data digits --work runs --format json

Trains what is not in --work yet (a run that was cut off goes on). docs/federated.md says what each row means.
"""

# pyright: reportMissingImports=false

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blindformer.federated.federate import REPORT, WORK, federate
from blindformer.federated.privacy import noise_for
from blindformer.federated.rounds import Round
from blindformer.federated.settings import FederateSettings
from blindformer.federated.subject import begin
from blindformer.models.data import Dataset, load_data
from blindformer.models.distillation.teacher import judged
from rich.table import Table

from .commands import Say, federation_parser, publish, repeated, run_command
from .provenance import Measured, provenance

CENTRAL = "one client with all examples"
PrivateRun = tuple[int, float, int, float, float, int]  # clients, fraction, width, clip, rate, rounds
PRIVATE_EPOCHS = 3  # every release costs, so clients do more between two


@dataclass(frozen=True, slots=True)
class SeedsRow:
    """The same run for several seeds, each with a split of its own.

    accuracy  mean test accuracy; accuracies: by seed
    below     mean points below the one client of the same seed
    curves    validation accuracy by seed and round
    """

    name: str
    clients: int
    alpha: float
    accuracy: float
    accuracies: list[float]
    below: float
    curves: list[list[float]]


@dataclass(frozen=True, slots=True)
class CentralRun:
    """A run with central differential privacy. Each round of `curve`: number, validation accuracy, epsilon."""

    clients: int
    fraction: float
    hidden: int
    noise: float
    accuracy: float
    epsilon: float
    curve: list[tuple[int, float, float]]


@dataclass(frozen=True, slots=True)
class Federations(Measured):
    """round_s: median seconds of a round of one epoch, plain and with secure aggregation, one after the other.

    untrained   mean test accuracy of the model that training began with; None for images, which begin from nothing
    """

    data: str
    seeds: list[int]
    test: int
    plan: str
    weights_that_travel: int
    untrained: float | None
    rows: list[SeedsRow]
    private: list[CentralRun]
    round_s: dict[str, float]
    settings: dict[str, Any]
    command: str


def measure(chosen: argparse.Namespace, command: str, say: Say) -> Federations:
    """Train what is missing. Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    about = provenance("flwr", "peft") if chosen.lora else provenance("flwr")
    runs = {
        CENTRAL: ("central", 1, 0.0),
        f"{chosen.clients} clients, alike": ("alike", chosen.clients, 0.0),
        f"{chosen.clients} clients, Dirichlet {chosen.alpha:g}": ("dirichlet", chosen.clients, chosen.alpha),
    }
    reports: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    untrained: list[float] = []
    for seed in chosen.seeds:
        data = load_data(chosen.data, seed=seed)
        for name, (place, clients, alpha) in runs.items():
            folder = _folder(chosen, seed) / place
            settings = {**_common(chosen, seed), "clients": clients, "alpha": alpha}
            reports[name].append(trained(folder, data, say, f"seed {seed}, {name}", settings))
        if data.kind == "text":
            untrained.append(_untrained(chosen, seed, data))
    seed = chosen.seeds[0]
    data = load_data(chosen.data, seed=seed)
    best = [report["test_accuracy"] for report in reports[CENTRAL]]
    return Federations(
        data=data.name,
        seeds=chosen.seeds,
        test=len(data.test),
        plan=chosen.plan,
        weights_that_travel=reports[CENTRAL][0]["weights_that_travel"],
        untrained=statistics.mean(untrained) if untrained else None,
        rows=[_row(name, clients, alpha, reports[name], best) for name, (_, clients, alpha) in runs.items()],
        private=[_private(chosen, data, say, given) for given in chosen.private],
        round_s={
            name: _seconds(
                data, say, name, {**_common(chosen, seed), "clients": chosen.clients, "secagg": secure}, chosen.timed
            )
            for name, secure in (("plain", False), ("secure aggregation", True))
            if chosen.timed
        },
        settings=reports[CENTRAL][0]["settings"],
        command=command,
        **about,
    )


def _folder(chosen: argparse.Namespace, seed: int) -> Path:
    return Path(chosen.work) / f"{Path(chosen.data).stem}-{seed}"


def _common(chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    names = ("data", "plan", "rounds", "epochs", "lora", "model")
    return {name: getattr(chosen, name) for name in names} | {"seed": seed}


def _row(name: str, clients: int, alpha: float, reports: list[dict[str, Any]], best: list[float]) -> SeedsRow:
    accuracies = [report["test_accuracy"] for report in reports]
    curves = [[r["accuracy"] for r in report["rounds"]] for report in reports]
    below = 100 * statistics.mean(b - a for a, b in zip(accuracies, best, strict=True))
    return SeedsRow(name, clients, alpha, statistics.mean(accuracies), accuracies, below, curves)


def _private(chosen: argparse.Namespace, data: Dataset, say: Say, given: PrivateRun) -> CentralRun:
    clients, fraction, hidden, clip, rate, rounds = given
    settings = {**_common(chosen, chosen.seeds[0]), "clients": clients, "fraction": fraction, "hidden": hidden}
    settings |= {"dp": "central", "clip": clip, "rate": rate, "rounds": rounds, "epochs": PRIVATE_EPOCHS}
    name = f"private-{clients}-{fraction:g}-{hidden}-{clip:g}-{rate:g}-{rounds}"
    report = trained(_folder(chosen, chosen.seeds[0]) / name, data, say, name, settings)
    curve = [(r["number"], r["accuracy"], r["epsilon"]) for r in report["rounds"]]
    noise = noise_for(FederateSettings.of(report["settings"]))
    return CentralRun(clients, fraction, hidden, noise, report["test_accuracy"], report["epsilon"], curve)


def _untrained(chosen: argparse.Namespace, seed: int, data: Dataset) -> float:
    subject, _, _ = begin(data, FederateSettings(**_common(chosen, seed)))
    test: Any = subject.encode(data.test)
    with torch.no_grad():
        return judged(subject.model, test)["accuracy"]


def trained(folder: Path, data: Dataset, say: Say, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The report of the run in `folder`, trained if it is not there yet."""

    def show(round_: Round, total: int) -> None:
        say(f"{name}: round {round_.number}/{total}, accuracy {round_.accuracy:.3f}")

    if not (folder / REPORT).exists() or (folder / WORK).exists():
        federate(folder, data, progress=show, **settings)
    return json.loads((folder / REPORT).read_text())


def _seconds(data: Dataset, say: Say, name: str, settings: dict[str, Any], rounds: int) -> float:
    say(f"a round, {name}")
    with tempfile.TemporaryDirectory() as folder:
        result = federate(Path(folder) / "out", data, **{**settings, "rounds": rounds, "epochs": 1})
    return round(statistics.median(r.seconds for r in result.rounds), 2)


# The command line.


def table(report: Federations) -> Table:
    seeds = ", ".join(map(str, report.seeds))
    grid = Table(title=f"{report.data}, seeds {seeds}, plan {report.plan}, {report.test} test examples")
    for name in ("trained by", "test accuracy", "by seed", "points below"):
        grid.add_column(name, justify="left" if name == "trained by" else "right")
    for row in report.rows:
        by_seed = " ".join(f"{value:.3f}" for value in row.accuracies)
        grid.add_row(row.name, f"{row.accuracy:.4f}", by_seed, f"{row.below:.1f}")
    for run in report.private:
        name = f"{run.clients} clients, {run.fraction:.0%} a round, width {run.hidden}, epsilon {run.epsilon:.2f}"
        grid.add_row(name, f"{run.accuracy:.4f}", "", "")
    return grid


def private_run(text: str) -> PrivateRun:
    """CLIENTS,FRACTION,WIDTH,CLIP,RATE,ROUNDS."""
    clients, fraction, hidden, clip, rate, rounds = text.split(",")
    return int(clients), float(fraction), int(hidden), float(clip), float(rate), int(rounds)


def main(arguments: list[str] | None = None) -> int:
    options = federation_parser("python -m bench.federated", "Accuracy of federated training.", alpha=0.5, rounds=60)
    options.add_argument("--epochs", type=int, default=1)
    options.add_argument(
        "--private", type=private_run, nargs="*", default=[], metavar="CLIENTS,FRACTION,WIDTH,CLIP,RATE,ROUNDS",
        help="runs with differential privacy at epsilon 8, for the first seed",
    )  # fmt: skip
    options.add_argument(
        "--timed", type=int, default=3, help="rounds to time, with and without secure sums (default 3)"
    )
    chosen = options.parse_args(arguments)
    command = repeated("bench.federated", arguments)

    def work(say: Say) -> None:
        report = measure(chosen, command, say)
        seconds = ", ".join(f"{name} {value:.2f} s" for name, value in report.round_s.items())
        publish(report, chosen.format, table, *([f"a round of one epoch: {seconds}"] if seconds else []))

    return run_command("bench.federated", work)


if __name__ == "__main__":
    raise SystemExit(main())
