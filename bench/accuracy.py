"""What distillation wins back: the accuracy of a teacher and its students, in torch, in fixed point, and in private.

    python -m bench.accuracy --data uci --seed 0 --work runs --format json

Trains what is not in --work yet (a run that was cut off goes on), then judges on test texts that training never saw.
docs/distillation.md says what each row means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from blindformer.models.data import Dataset, load_data
from blindformer.models.distillation import TrainingStep, distill
from blindformer.models.judging.evaluation import Score
from blindformer.models.loading.load import Loaded, load
from blindformer.parties.client.evaluation import APPROXIMATED, TEACHER, evaluate
from rich.console import Console
from rich.table import Table

from .commands import PLANS, Say, repeated, run_command
from .provenance import Measured, json_line, provenance, provenance_line

DISTILLED = "distilled"


@dataclass(frozen=True, slots=True)
class Accuracy(Measured):
    """One table. `rows`: the teacher's and the students', by student and then as `evaluate` orders them.

    points_lost  accuracy of the student in fixed point (`clear`) below its teacher's in float32, in points
    training_s   of this process alone: 0 for what was trained before; what was cut off counts from where it went on
    command      repeats it
    """

    data: str
    seed: int
    train: int
    validation: int
    test: int
    plan: str
    linear_bits: int
    points_lost: dict[str, float]
    rows: list[tuple[str, Score]]
    training_s: dict[str, float]
    settings: dict[str, Any]
    kept_layers: dict[str, list[int]]
    sites_out_of_range: dict[str, int]
    command: str


def measure(chosen: argparse.Namespace, command: str, say: Say) -> Accuracy:
    """Train what is missing and judge. Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    about, data = provenance(), load_data(chosen.data, seed=chosen.seed)
    folder = Path(chosen.work) / f"{Path(chosen.data).stem}-{chosen.seed}"
    settings = {"seed": chosen.seed, **dict(chosen.set)}
    seconds: dict[str, float] = {}
    student = _student(chosen.teacher, data, folder, chosen.plan, settings, DISTILLED, say, seconds)
    own = student.folder / "teacher"
    teacher = load(own if own.is_dir() else chosen.teacher)
    students = {DISTILLED: student}
    if chosen.layers:
        name = f"{chosen.layers} layers"
        compact = folder.with_name(f"{folder.name}-layers-{chosen.layers}")
        settings["layers"] = chosen.layers
        students[name] = _student(teacher.folder, data, compact, chosen.plan, settings, name, say, seconds)
    judged = data if chosen.limit is None else replace(data, test=data.test.subset(chosen.limit, chosen.seed))
    rows, lost = [], {}
    for name, loaded in students.items():
        evaluation = evaluate(
            loaded,
            judged,
            teacher=teacher,
            protocols=("torch", "clear", "beaver") if chosen.beaver and name == DISTILLED else ("torch", "clear"),
            private=chosen.beaver,
            seed=chosen.seed,
            timeout=chosen.timeout,
            progress=lambda what, done, total, name=name: say(f"{name}: {what} {done}/{total}"),
        )
        rows += [(name, row) for row in evaluation.rows if name == DISTILLED or row.name == APPROXIMATED]
        theirs, ours = evaluation.row(TEACHER, "torch"), evaluation.row(APPROXIMATED, "clear")
        assert theirs is not None
        assert ours is not None
        lost[name] = 100 * (theirs.accuracy.value - ours.accuracy.value)
    plan = student.plan()
    assert plan is not None
    reports = {name: json.loads((s.folder / "distillation.json").read_text()) for name, s in students.items()}
    return Accuracy(
        data=data.name,
        seed=chosen.seed,
        train=len(data.train),
        validation=len(data.validation),
        test=len(judged.test),
        plan=plan.name,
        linear_bits=plan.linear_bits,
        points_lost=lost,
        rows=rows,
        training_s=seconds,
        settings=reports[DISTILLED]["settings"],
        kept_layers={name: report["kept_layers"] for name, report in reports.items()},
        sites_out_of_range={name: len(report["sites_out_of_range"]) for name, report in reports.items()},
        command=command,
        **about,
    )


def _student(
    teacher: str | Path,
    data: Dataset,
    folder: Path,
    plan: str,
    settings: dict[str, Any],
    name: str,
    say: Say,
    seconds: dict[str, float],
) -> Loaded:
    """The student in `folder`, trained if it is not there yet."""

    def show(step: TrainingStep) -> None:
        best = "" if step.metric is None else f", best {step.metric:.4f}"
        say(f"{name}: {step.stage} {step.step}/{step.steps}, loss {step.loss:.3f}{best}")

    seconds[name] = 0.0
    if not (folder / "distillation.json").exists() or (folder / ".distillation").exists():
        started = time.perf_counter()
        distill(teacher, data, folder, plan, progress=show, **settings)
        seconds[name] = round(time.perf_counter() - started, 1)
    return load(folder)


# The command line.


def table(report: Accuracy) -> Table:
    grid = Table(title=f"{report.data}, seed {report.seed}, plan {report.plan}, {report.linear_bits}-bit linears")
    for name in ("student", "computed", "texts", "accuracy", "95% interval", "F1", "agrees with", "seconds a text"):
        grid.add_column(name, justify="left" if name in ("student", "computed", "agrees with") else "right")
    for student, row in report.rows:
        grid.add_row(
            student,
            f"{row.name}, {row.protocol}",
            str(row.count),
            f"{row.accuracy.value:.4f}",
            f"{row.accuracy.low:.3f} to {row.accuracy.high:.3f}",
            f"{row.f1.value:.4f}",
            ", ".join(f"{name} {interval.value:.1%}" for name, interval in row.agreement.items()),
            f"{sum(row.seconds.values()):.3f}",
        )
    return grid


def _setting(text: str) -> tuple[str, float | int | bool]:
    name, _, value = text.partition("=")
    if value in ("true", "false"):
        return name, value == "true"
    return name, float(value) if "." in value or "e" in value else int(value)


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser("python -m bench.accuracy", description="Accuracy, in torch and in private.")
    options.add_argument("--data", default="uci", help="a data set's name, or a file (default uci)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--teacher", default="minilm", help="a classifier, or an encoder to fine-tune (minilm)")
    options.add_argument("--plan", choices=PLANS, default="fast")
    options.add_argument("--work", default="runs", help="where trained models are kept (default runs)")
    options.add_argument("--layers", type=int, default=3, help="of the compact student; 0: none (default 3)")
    options.add_argument("--beaver", type=int, default=300, help="test texts asked in private; 0: none (default 300)")
    options.add_argument("--limit", type=int, default=None, help="judge on so many test texts only")
    options.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="a setting of the distillation"
    )
    options.add_argument("--timeout", type=float, default=600, help="seconds that a party may be silent (default 600)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)
    command = repeated("bench.accuracy", arguments)

    def work(say: Say) -> None:
        report = measure(chosen, command, say)
        if chosen.format == "json":
            print(json_line({**asdict(report), "rows": [{"student": s, **row.to_dict()} for s, row in report.rows]}))
            return
        console = Console()
        console.print(table(report))
        console.print(provenance_line(report.commit, report.versions, report.machine), style="dim", soft_wrap=True)

    return run_command("bench.accuracy", work)


if __name__ == "__main__":
    raise SystemExit(main())
