"""What students of a sentence encoder cost and what they are worth: bytes, rounds, likeness to their teacher, heads.

    python -m bench.students minilm-fast minilm-fast-pooled --teacher minilm --heads uci --heads rotten_tomatoes

Cosines of pairs of held-out texts: pairs drawn at random, and each text with the one that the teacher finds nearest. A
head is a linear classifier on the embeddings. Students compute through `clear`: the compiled Program, wraps included;
the teacher in float32. Costs are exact; seconds are an estimate, on a LAN. Ratios are to the first student.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blindformer.approximations import Plan
from blindformer.models.data import Dataset, Examples, load_data
from blindformer.models.distillation import train_head
from blindformer.models.distillation.batches import tokenise
from blindformer.models.distillation.teacher import cosines, embeddings_of, spearman
from blindformer.models.judging.evaluation import clear_answers, clear_outputs, compile_bucket, torch_answers
from blindformer.models.loading.calibration_texts import calibration_texts
from blindformer.models.loading.load import Loaded, load
from blindformer.parties.reports.estimate import estimate, find_network
from rich.table import Table
from torch import Tensor

from .harness import BenchError, Report, Say, carry_out, columns, megabytes, parser, seconds

COMPARED = ("online_bytes", "offline_bytes", "rounds", "online_s", "offline_s")


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Errors: BlindformerError, one line."""
    torch.set_num_threads(1)
    teacher, data = load(chosen.teacher), load_data(chosen.data, seed=chosen.seed)
    texts = Examples(*zip(*_chosen_texts(data.test, teacher, chosen), strict=True))
    say("teacher")
    theirs = _embedded(teacher, texts, chosen.length)
    unit = torch.nn.functional.normalize(theirs, dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-1.0).argmax(-1)
    rows: list[Report] = []
    for name in chosen.students:
        student = load(name)
        plan = student.plan()
        if plan is None:
            raise BenchError(f"{name}: has no plan of its own; give a folder of distill")
        say(f"{name}, price")
        cost = _cost(student, plan, chosen.length)
        ours, refused = torch.zeros_like(theirs), 0
        outputs = clear_outputs(student, list(texts.texts), chosen.length, plan, calibration_texts())
        for done, (i, row, _) in enumerate(outputs):
            say(f"{name}, clear {done + 1}/{len(texts)}")
            refused += row is None
            if row is not None:
                ours[i] = row[0]
        half = len(theirs) // 2
        pairs = [cosines(e[:half], e[half : 2 * half]) for e in (ours, theirs)]
        near = [cosines(e, e[nearest]) for e in (ours, theirs)]
        rows.append(
            {
                "student": name,
                "pool": list(plan.pool),
                **cost,
                "spearman_random": spearman(*pairs),
                "spearman_nearest": spearman(*near),
                "cosine": float(cosines(ours, theirs).mean()),
                "refused": refused,
                "heads": {head: _head(head, student, teacher, chosen, say) for head in chosen.heads},
            }
        )
    for row in rows:
        row["over_first"] = {key: row[key] / rows[0][key] for key in COMPARED}
    named = {"teacher": teacher.name, "data": data.name, "texts": len(texts), "length": chosen.length}
    return {**named, "seed": chosen.seed, "students": rows}


def _chosen_texts(test: Examples, teacher: Loaded, chosen: argparse.Namespace) -> list[tuple[Any, int]]:
    """`--count` held-out texts, drawn with the seed, of at least `--least` tokens."""
    order = np.random.default_rng(chosen.seed).permutation(len(test))
    pairs = ((test.texts[i], test.labels[i]) for i in order)
    kept = [pair for pair in pairs if chosen.least < 2 or teacher.tokens(pair[0]) >= chosen.least][: chosen.count]
    if len(kept) < 20:
        raise BenchError(f"{chosen.data}: has {len(kept)} held-out texts of {chosen.least} tokens; ask for fewer")
    return kept


def _embedded(loaded: Loaded, texts: Examples, length: int) -> Tensor:
    return embeddings_of(loaded.model, tokenise(loaded, texts, length))


def _cost(student: Loaded, plan: Plan, length: int) -> Report:
    priced = estimate(compile_bucket(student, length, plan, calibration_texts()), find_network("lan"))
    return {key: getattr(priced, key) for key in COMPARED}


def _head(name: str, student: Loaded, teacher: Loaded, chosen: argparse.Namespace, say: Say) -> Report:
    """Accuracies on the test texts: of a head on the teacher's embeddings, and on the student's, through `clear`."""
    data: Dataset = load_data(name, seed=chosen.seed)
    if chosen.head_count is not None:
        parts = {"train": data.train, "validation": data.validation, "test": data.test}
        data = replace(data, **{part: texts.subset(chosen.head_count, chosen.seed) for part, texts in parts.items()})
    options: dict[str, Any] = {"seed": chosen.seed, "length": chosen.length}
    with tempfile.TemporaryDirectory() as work:
        say(f"{student.name}, head on {name}")
        exact = load(train_head(teacher, data, Path(work) / "teacher", **options).folder)
        own = load(train_head(student, data, Path(work) / "student", **options).folder)
        theirs = torch_answers(exact, data.test.texts, chosen.length)
        ours = clear_answers(
            own,
            data.test.texts,
            chosen.length,
            own.plan() or Plan.preset("faithful"),
            calibration_texts(),
            progress=lambda done, total: say(f"{student.name}, {name}, clear {done}/{total}"),
        )
    right = [
        sum(answers.predicted[i] == label for i, label in enumerate(data.test.labels)) / len(data.test)
        for answers in (theirs, ours)
    ]
    refused = sum(answer < 0 for answer in ours.predicted.values())
    return {"texts": len(data.test), "teacher": right[0], "student": right[1], "refused": refused}


def show(report: Report) -> list[Table | str]:
    title = f"students of {report['teacher']}, {report['texts']} texts of {report['data']}, length {report['length']}"
    costs = columns(title, "student", "online", "offline", "rounds", "LAN, estimated", "bytes over the first")
    names = ("student", "Spearman, random", "nearest", "cosine", "refused", "head", "teacher's", "its own")
    worth = columns("worth", *names)
    for row in report["students"]:
        ratios = " ".join(f"{row['over_first'][key]:.2f}" for key in ("online_bytes", "offline_bytes"))
        sizes = [megabytes(row[key]) for key in ("online_bytes", "offline_bytes")]
        spent = " + ".join(seconds(row[key]) for key in ("online_s", "offline_s"))
        costs.add_row(row["student"], *sizes, str(row["rounds"]), spent, ratios)
        figures = [f"{row[key]:.3f}" for key in ("spearman_random", "spearman_nearest", "cosine")]
        heads = row["heads"] or {"": {"teacher": float("nan"), "student": float("nan")}}
        for head, accuracy in heads.items():
            shares = [f"{100 * accuracy[who]:.1f} %" for who in ("teacher", "student")]
            worth.add_row(row["student"], *figures, str(row["refused"]), head, *shares)
    return [costs, worth]


def main(arguments: list[str] | None = None) -> int:
    options = parser("students", (__doc__ or "").splitlines()[0])
    options.add_argument("students", nargs="+", help="their names or folders; the others are compared with the first")
    options.add_argument("--teacher", default="minilm")
    options.add_argument("--data", default="public_texts", help="whose held-out texts are compared")
    options.add_argument("--count", type=int, default=4000, help="texts that are compared (default 4000)")
    options.add_argument("--least", type=int, default=1, help="tokens that each of them has at least (default 1)")
    options.add_argument("--heads", action="append", default=[], help="a data set to train a head on; once for each")
    options.add_argument("--head-count", type=int, help="texts of each part that heads are trained and tested on (all)")
    options.add_argument("--length", type=int, default=128, help="tokens that texts are cut at (default 128)")
    options.add_argument("--seed", type=int, default=0)
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
