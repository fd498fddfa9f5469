"""What federated training costs in accuracy: the same model with all examples, with clients alike, with unlike ones.

    python -m bench.federated --data digits --work runs --format json
    python -m bench.federated --data digits --secagg --epsilons 2 8 --rate 3 --work runs     single examples protected

Trains what is not in --work yet (a run that was cut off goes on). docs/federated.md says what each row means.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from blindformer.federated.examples import PARTITION
from blindformer.federated.federate import REPORT, WORK, federate
from blindformer.federated.privacy import noise_for
from blindformer.federated.rounds import Round
from blindformer.federated.settings import FederateSettings
from blindformer.federated.subject import begin
from blindformer.models.data import Dataset, load_data
from blindformer.models.distillation.teacher import judged
from rich.table import Table

from .harness import PLANS, Report, Say, carry_out, columns, parser

CENTRAL = "one client with all examples"
COMMON = ("data", "plan", "rounds", "lora", "model")
EXAMPLES = ("clients", "alpha", "sample", "clip", "rate", "hidden", "secagg")
PrivateRun = tuple[int, float, int, float, float, int]  # clients, fraction, width, clip, rate, rounds
PRIVATE_EPOCHS = 3  # every release costs, so clients do more between two


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Train what is missing. Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    protected = bool(chosen.epsilons)
    chosen.alpha = chosen.alpha if chosen.alpha is not None else 0.0 if protected else 0.5
    chosen.rounds = chosen.rounds or (200 if protected else 60)
    report = measure_budgets(chosen, say) if protected else measure_shares(chosen, say)
    return {"data": load_data(chosen.data, seed=chosen.seeds[0]).name, "seeds": chosen.seeds, **report}


def trained(folder: Path, data: Dataset, say: Say, name: str, settings: dict[str, Any]) -> Report:
    """The report of the run in `folder`, trained if it is not there yet."""

    def progress(round_: Round, total: int) -> None:
        say(f"{name}: round {round_.number}/{total}, accuracy {round_.accuracy:.3f}")

    if not (folder / REPORT).exists() or (folder / WORK).exists():
        federate(folder, data, progress=progress, **settings)
    return json.loads((folder / REPORT).read_text())


def _folder(chosen: argparse.Namespace, seed: int) -> Path:
    return Path(chosen.work) / f"{Path(chosen.data).stem}-{seed}"


def _settings(chosen: argparse.Namespace, seed: int, *more: str) -> dict[str, Any]:
    return {name: getattr(chosen, name) for name in (*COMMON, *more)} | {"seed": seed}


def _over_seeds(reports: list[Report]) -> Report:
    accuracies = [report["test_accuracy"] for report in reports]
    return {"accuracy": statistics.mean(accuracies), "accuracies": accuracies}


# Clients whose examples are alike or not, beside one client with all of them.


def measure_shares(chosen: argparse.Namespace, say: Say) -> Report:
    runs = {
        CENTRAL: ("central", 1, 0.0),
        f"{chosen.clients} clients, alike": ("alike", chosen.clients, 0.0),
        f"{chosen.clients} clients, Dirichlet {chosen.alpha:g}": ("dirichlet", chosen.clients, chosen.alpha),
    }
    reports: dict[str, list[Report]] = {name: [] for name in runs}
    untrained: list[float] = []
    for seed in chosen.seeds:
        data, common = load_data(chosen.data, seed=seed), _settings(chosen, seed, "epochs")
        for name, (place, clients, alpha) in runs.items():
            settings = {**common, "clients": clients, "alpha": alpha}
            reports[name].append(trained(_folder(chosen, seed) / place, data, say, f"seed {seed}, {name}", settings))
        if data.kind == "text":
            subject, _, _ = begin(data, FederateSettings(**common))
            test: Any = subject.encode(data.test)
            with torch.no_grad():
                untrained.append(judged(subject.model, test)["accuracy"])
    data = load_data(chosen.data, seed=chosen.seeds[0])
    best, timed = reports[CENTRAL], (("plain", False), ("secure aggregation", True)) if chosen.timed else ()
    return {
        "test": len(data.test),
        "plan": chosen.plan,
        "weights_that_travel": best[0]["weights_that_travel"],
        "untrained": statistics.mean(untrained) if untrained else None,
        "rows": [_row(name, clients, alpha, reports[name], best) for name, (_, clients, alpha) in runs.items()],
        "private": [_private(chosen, data, say, run) for run in chosen.private],
        "round_s": {name: _round_seconds(chosen, data, say, name, secure) for name, secure in timed},
        "settings": best[0]["settings"],
    }


def _row(name: str, clients: int, alpha: float, reports: list[Report], best: list[Report]) -> Report:
    """`below`: mean points below the one client of the same seed; `curves`: validation accuracy by seed and round."""
    row = {"name": name, "clients": clients, "alpha": alpha, **_over_seeds(reports)}
    below = [b["test_accuracy"] - a for a, b in zip(row["accuracies"], best, strict=True)]
    curves = [[r["accuracy"] for r in report["rounds"]] for report in reports]
    return row | {"below": 100 * statistics.mean(below), "curves": curves}


def _private(chosen: argparse.Namespace, data: Dataset, say: Say, run: PrivateRun) -> Report:
    """A run with central differential privacy. Each round of `curve`: number, validation accuracy, epsilon."""
    clients, fraction, hidden, clip, rate, rounds = run
    settings = {**_settings(chosen, chosen.seeds[0]), "clients": clients, "fraction": fraction, "hidden": hidden}
    settings |= {"dp": "central", "clip": clip, "rate": rate, "rounds": rounds, "epochs": PRIVATE_EPOCHS}
    name = f"private-{clients}-{fraction:g}-{hidden}-{clip:g}-{rate:g}-{rounds}"
    report = trained(_folder(chosen, chosen.seeds[0]) / name, data, say, name, settings)
    return {
        "clients": clients,
        "fraction": fraction,
        "hidden": hidden,
        "noise": noise_for(FederateSettings.of(report["settings"])),
        "accuracy": report["test_accuracy"],
        "epsilon": report["epsilon"],
        "curve": [(r["number"], r["accuracy"], r["epsilon"]) for r in report["rounds"]],
    }


def _round_seconds(chosen: argparse.Namespace, data: Dataset, say: Say, name: str, secure: bool) -> float:
    """Median seconds of a round of one epoch."""
    say(f"a round, {name}")
    settings = {**_settings(chosen, chosen.seeds[0]), "clients": chosen.clients, "secagg": secure}
    with tempfile.TemporaryDirectory() as folder:
        result = federate(Path(folder) / "out", data, **{**settings, "rounds": chosen.timed, "epochs": 1})
    return round(statistics.median(r.seconds for r in result.rounds), 2)


# Single examples protected, for several budgets: one private step a round.


def measure_budgets(chosen: argparse.Namespace, say: Say) -> Report:
    rows, last = [], dict[str, Any]()
    # Clients that trust each other share the noise, where a secure sum lets them.
    trusting = {"trusted-others": chosen.clients - 1} if chosen.secagg else {}
    nodes = {n + 1: {PARTITION: n, **trusting} for n in range(chosen.clients)}
    for budget in chosen.epsilons:
        reports, place = [], f"examples-{'shared-' if chosen.secagg else ''}{budget:g}"
        for seed in chosen.seeds:
            data = load_data(chosen.data, seed=seed)
            settings = {**_settings(chosen, seed, *EXAMPLES), "dp": "example", "epsilon": budget, "nodes": nodes}
            name = f"epsilon {budget:g}, seed {seed}"
            reports.append(trained(_folder(chosen, seed) / place, data, say, name, settings))
        last = reports[-1]
        rows.append(
            {
                "epsilon": max(report["epsilon"] for report in reports),  # by the accountant, at the settings' delta
                "noise": noise_for(FederateSettings.of(reports[0]["settings"])),  # of a step, in clipping norms
                **_over_seeds(reports),
                "curves": [[(r["accuracy"], r["epsilon"]) for r in report["rounds"]] for report in reports],
            }
        )
    sizes = {part: last["data"][part] for part in ("train", "test")}
    return {**sizes, **{key: last[key] for key in ("weights_that_travel", "settings")}, "rows": rows}


# The command line.


def show(report: Report) -> list[Table | str]:
    settings, seeds = report["settings"], ", ".join(map(str, report["seeds"]))
    title = f"{report['data']}, seeds {seeds}, plan {settings['plan']}, {report['test']} test examples"
    by_seed = [" ".join(f"{value:.3f}" for value in row["accuracies"]) for row in report["rows"]]
    if "round_s" not in report:
        table = columns(title, "epsilon of an example", "noise", "test accuracy", "by seed")
        for row, seed in zip(report["rows"], by_seed, strict=True):
            table.add_row(f"{row['epsilon']:.2f}", f"{row['noise']:.2f}", f"{row['accuracy']:.4f}", seed)
        return [table]
    table = columns(title, "trained by", "test accuracy", "by seed", "points below")
    for row, seed in zip(report["rows"], by_seed, strict=True):
        table.add_row(row["name"], f"{row['accuracy']:.4f}", seed, f"{row['below']:.1f}")
    for run in report["private"]:
        name = f"{run['clients']} clients, {run['fraction']:.0%} a round, width {run['hidden']}"
        table.add_row(f"{name}, epsilon {run['epsilon']:.2f}", f"{run['accuracy']:.4f}", "", "")
    timed = ", ".join(f"{name} {value:.2f} s" for name, value in report["round_s"].items())
    return [table, *([f"a round of one epoch: {timed}"] if timed else [])]


def private_run(text: str) -> PrivateRun:
    """CLIENTS,FRACTION,WIDTH,CLIP,RATE,ROUNDS."""
    clients, fraction, hidden, clip, rate, rounds = text.split(",")
    return int(clients), float(fraction), int(hidden), float(clip), float(rate), int(rounds)


def main(arguments: list[str] | None = None) -> int:
    options = parser("federated", "Accuracy of federated training.")
    options.add_argument("--data", default="digits", help="a data set's name (default digits)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="each splits anew (default 0 1 2)")
    options.add_argument("--plan", choices=[*PLANS, "he"], default="fast")
    options.add_argument("--clients", type=int, default=10)
    options.add_argument("--alpha", type=float, help="of the Dirichlet shares (default 0.5; with --epsilons: 0, alike)")
    options.add_argument("--rounds", type=int, help="of training (default 60; with --epsilons: 200)")
    options.add_argument("--model", default="minilm", help="for texts: what training begins with (default minilm)")
    options.add_argument("--lora", type=int, default=0, help="for texts: rank of the adapters (default none)")
    options.add_argument("--work", default="runs", help="where trained models are kept (default runs)")
    options.add_argument("--epochs", type=int, default=1)
    options.add_argument(
        "--private", type=private_run, nargs="*", default=[], metavar="CLIENTS,FRACTION,WIDTH,CLIP,RATE,ROUNDS",
        help="runs with differential privacy of clients at epsilon 8, for the first seed",
    )  # fmt: skip
    options.add_argument("--timed", type=int, default=3, help="rounds to time, plain and with secure sums (default 3)")
    examples = options.add_argument_group("single examples protected, a step in each round")
    examples.add_argument("--epsilons", type=float, nargs="+", default=[], help="budgets")
    examples.add_argument("--sample", type=float, default=0.25, help="share of the examples in a step (default 0.25)")
    examples.add_argument("--clip", type=float, default=1.0, help="norm of an example's gradient (default 1)")
    examples.add_argument("--rate", type=float, default=0.0, help="of a step (default: by the kind)")
    examples.add_argument("--hidden", type=int, default=64, help="for images: width of the model (default 64)")
    examples.add_argument("--secagg", action="store_true", help="clients that trust each other share the noise")
    return carry_out(options, arguments, measure, show, packages=["flwr", "opacus", "peft"])


if __name__ == "__main__":
    raise SystemExit(main())
