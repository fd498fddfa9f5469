"""How near a student's sentence embeddings are to its teacher's, in fixed point, and what heads on both are worth.

    python -m bench.embeddings --model minilm-fast --teacher minilm --format json

Cosines of pairs of held-out texts: pairs drawn at random, and each text with the one that the teacher finds nearest.
The student computes through `clear`: the compiled Program, wraps included. docs/distillation.md says what is measured.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from blindformer.approximations import Plan
from blindformer.approximations.calibrate import in_force
from blindformer.models.data import DataError, Examples, load_data
from blindformer.models.distillation import train_head
from blindformer.models.distillation.batches import tokenise
from blindformer.models.distillation.teacher import cosines, embeddings_of, spearman
from blindformer.models.judging.evaluation import clear_answers, clear_outputs
from blindformer.models.loading.calibration_texts import calibration_texts
from blindformer.models.loading.load import Loaded, load
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .commands import Say, repeated, run_command
from .provenance import Measured, json_line, provenance, provenance_line

LONGEST = 128


@dataclass(frozen=True, slots=True)
class Likeness:
    """`random`, `nearest`: Spearman's correlation of the student's cosines with the teacher's; `cosine`: the mean
    cosine of both embeddings of a text; `refused`: texts whose answer a client refuses: their embedding counts as 0."""

    computed: str
    random: float
    nearest: float
    cosine: float
    refused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Heads:
    """Accuracies on the test texts of a linear head on the teacher's embeddings (float32) and on the student's
    (`clear`); `refused`: of the latter, counted as wrong."""

    data: str
    test: int
    teacher: float
    student: float
    refused: int


@dataclass(frozen=True, slots=True)
class Embeddings(Measured):
    model: str
    teacher: str
    plan: str
    data: str
    pairs: int
    seed: int
    likeness: list[Likeness]
    heads: list[Heads]
    command: str


def measure(chosen: argparse.Namespace, command: str, say: Say) -> Embeddings:
    """Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    about, student, teacher = provenance(), load(chosen.model), load(chosen.teacher)
    plan = student.plan() or Plan.preset("faithful")
    data = load_data(chosen.data, seed=chosen.seed, folder=chosen.data_folder)
    if len(data.test) < 2 * chosen.pairs:
        raise DataError(f"{chosen.data}: has {len(data.test)} held-out texts; give --pairs {len(data.test) // 2}")
    order = np.random.default_rng(chosen.seed).permutation(len(data.test))[: 2 * chosen.pairs]
    texts = [data.test.texts[i] for i in order]
    say("teacher")
    theirs = _in_torch(teacher, texts)
    nearest = _nearest(theirs)
    rows = []
    for computed in ("torch", "clear"):
        started, refused = time.perf_counter(), 0
        if computed == "torch":
            with in_force(student.model, plan):
                ours = _in_torch(student, texts)
        else:
            ours = torch.zeros_like(theirs)
            for done, (i, row, _) in enumerate(clear_outputs(student, texts, LONGEST, plan, calibration_texts())):
                say(f"clear {done + 1}/{len(texts)}")
                refused += row is None
                if row is not None:
                    ours[i] = row[0]
        took = (time.perf_counter() - started) / len(texts)
        rows.append(_likeness(computed, ours, theirs, nearest, refused, took))
    heads = [_heads(name, student, teacher, chosen.seed, say) for name in chosen.heads]
    return Embeddings(
        model=student.name,
        teacher=teacher.name,
        plan=plan.name,
        data=data.name,
        pairs=chosen.pairs,
        seed=chosen.seed,
        likeness=rows,
        heads=heads,
        command=command,
        **about,
    )


def _in_torch(loaded: Loaded, texts: list[str]) -> Tensor:
    return embeddings_of(loaded.model, tokenise(loaded, Examples(texts, [0] * len(texts)), LONGEST))


def _nearest(embeddings: Tensor) -> Tensor:
    """[texts]: which other text's embedding has the largest cosine."""
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    return (unit @ unit.T).fill_diagonal_(-1.0).argmax(-1)


def _likeness(computed: str, ours: Tensor, theirs: Tensor, nearest: Tensor, refused: int, seconds: float) -> Likeness:
    half = len(theirs) // 2
    random = [cosines(e[:half], e[half:]) for e in (ours, theirs)]
    near = [cosines(e[:half], e[nearest[:half]]) for e in (ours, theirs)]
    alike = float(cosines(ours, theirs).mean())
    return Likeness(computed, spearman(*random), spearman(*near), alike, refused, seconds)


def _heads(name: str, student: Loaded, teacher: Loaded, seed: int, say: Say) -> Heads:
    data = load_data(name, seed=seed)
    with tempfile.TemporaryDirectory() as work:
        say(f"heads on {name}")
        theirs = train_head(teacher, data, Path(work) / "teacher", seed=seed).report["accuracy"]["test"]
        trained = load(train_head(student, data, Path(work) / "student", seed=seed).folder)
        plan = trained.plan() or Plan.preset("faithful")
        answers = clear_answers(
            trained,
            data.test.texts,
            LONGEST,
            plan,
            calibration_texts(),
            progress=lambda done, total: say(f"{name}, clear {done}/{total}"),
        )
    predicted = [answers.predicted[i] for i in range(len(data.test))]
    right = sum(answer == label for answer, label in zip(predicted, data.test.labels, strict=True))
    return Heads(name, len(predicted), theirs, right / len(predicted), sum(answer < 0 for answer in predicted))


def tables(report: Embeddings) -> list[Table]:
    title = f"{report.model} beside {report.teacher}, plan {report.plan}"
    grid = Table(title=f"{title}, {report.pairs} pairs of {report.data}")
    for name in ("computed", "Spearman, random", "Spearman, nearest", "mean cosine", "refused", "seconds a text"):
        grid.add_column(name, justify="left" if name == "computed" else "right")
    for row in report.likeness:
        figures = (f"{value:.4f}" for value in (row.random, row.nearest, row.cosine))
        grid.add_row(row.computed, *figures, str(row.refused), f"{row.seconds:.3f}")
    heads = Table(title="accuracy of a head")
    for name in ("data", "texts", f"{report.teacher}, torch", f"{report.model}, clear", "refused"):
        heads.add_column(name, justify="left" if name == "data" else "right")
    for row in report.heads:
        heads.add_row(row.data, str(row.test), f"{row.teacher:.4f}", f"{row.student:.4f}", str(row.refused))
    return [grid, heads]


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser("python -m bench.embeddings", description="A student's embeddings, judged.")
    options.add_argument("--model", default="minilm-fast", help="the student (default minilm-fast)")
    options.add_argument("--teacher", default="minilm", help="its teacher (default minilm)")
    options.add_argument("--data", default="public_texts", help="whose test texts are embedded (default public_texts)")
    options.add_argument("--data-folder", default=None, help="where they lie, if not in the usual place")
    options.add_argument("--pairs", type=int, default=2000)
    options.add_argument("--heads", nargs="*", default=["uci", "rotten_tomatoes"], help="data sets for heads")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)
    command = repeated("bench.embeddings", arguments)

    def work(say: Say) -> None:
        report = measure(chosen, command, say)
        if chosen.format == "json":
            print(json_line(asdict(report)))
            return
        console = Console()
        for grid in tables(report):
            console.print(grid)
        console.print(provenance_line(report.commit, report.versions, report.machine), style="dim", soft_wrap=True)

    return run_command("bench.embeddings", work)


if __name__ == "__main__":
    raise SystemExit(main())
