"""What students of a sentence encoder cost and what they are worth: bytes, rounds, likeness to their teacher, heads.

    python -m bench.students minilm-fast minilm-fast-pooled --teacher minilm --heads uci --heads rotten_tomatoes

Cosines of texts: of all pairs, and of each text with the one that the teacher finds nearest; how often the student
finds the same one. Texts are held-out ones of the kind that students are trained on, and those of another kind, which
nothing is trained on. A head is a linear classifier on the embeddings. Students compute through `clear`: the compiled
Program, wraps included; the teacher in float32. Costs are exact; seconds are an estimate, on a LAN. Ratios are to the
first student.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from blindformer.approximations import Plan
from blindformer.models.data import Dataset, Examples, judging_texts, load_data
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
    sets = {"own_kind": _TextSet(data.test.texts, teacher, chosen, say)}
    if chosen.other:
        sets["other_kind"] = _TextSet(judging_texts(chosen.other), teacher, chosen, say)
    rows: list[Report] = []
    for name in chosen.students:
        student = load(name)
        plan = student.plan()
        if plan is None:
            raise BenchError(f"{name}: has no plan of its own; give a folder of distill")
        say(f"{name}, price")
        rows.append(
            {
                "student": name,
                "pool": list(plan.pool),
                **_cost(student, plan, chosen.length),
                **{kind: judge.worth(student, plan) for kind, judge in sets.items()},
                "heads": {head: _head(head, student, teacher, chosen, say) for head in chosen.heads},
            }
        )
    for row in rows:
        row["over_first"] = {key: row[key] / rows[0][key] for key in COMPARED}
    named = {"teacher": teacher.name, "data": data.name, "other": chosen.other, "length": chosen.length}
    return {**named, "texts": len(sets["own_kind"].texts), "seed": chosen.seed, "students": rows}


class _TextSet:
    """Texts, and the teacher's cosines of their pairs."""

    def __init__(self, texts: Sequence[str], teacher: Loaded, chosen: argparse.Namespace, say: Say) -> None:
        """`--count` of these texts, drawn with the seed, of at least `--least` tokens."""
        say("teacher")
        order = np.random.default_rng(chosen.seed).permutation(len(texts))
        fit = (i for i in order if chosen.least < 2 or teacher.tokens(texts[int(i)]) >= chosen.least)
        self.texts, self.length, self.say = [texts[int(i)] for i in islice(fit, chosen.count)], chosen.length, say
        if len(self.texts) < 20:
            raise BenchError(f"{len(self.texts)} texts have {chosen.least} tokens; ask for fewer with --least")
        examples = Examples(self.texts, [0] * len(self.texts))
        self.theirs = embeddings_of(teacher.model, tokenise(teacher, examples, self.length))
        self.cosines, self.nearest = self._of(self.theirs)

    def worth(self, student: Loaded, plan: Plan) -> Report:
        ours, refused = torch.zeros_like(self.theirs), 0
        outputs = clear_outputs(student, self.texts, self.length, plan, calibration_texts())
        for done, (i, row, _) in enumerate(outputs):
            self.say(f"{student.name}, clear {done + 1}/{len(self.texts)}")
            refused += row is None
            if row is not None:
                ours[i] = row[0]
        own, nearest = self._of(ours)
        above, each = torch.ones_like(own, dtype=torch.bool).triu(1), torch.arange(len(own))
        return {
            "spearman_random": spearman(own[above], self.cosines[above]),
            "spearman_nearest": spearman(own[each, self.nearest], self.cosines[each, self.nearest]),
            "same_nearest": float((nearest == self.nearest).double().mean()),
            "cosine": float(cosines(ours, self.theirs).mean()),
            "refused": refused,
        }

    @staticmethod
    def _of(embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of all pairs, and for each text the place of the nearest."""
        unit = torch.nn.functional.normalize(embeddings, dim=-1)
        all_pairs = (unit @ unit.T).fill_diagonal_(-1.0)
        return all_pairs, all_pairs.argmax(-1)


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
    names = ("student", "texts", "Spearman, all pairs", "nearest pairs", "same nearest", "cosine", "refused")
    worth, heads = (
        columns("worth", *names, left=("texts",)),
        columns("heads", "student", "head", "teacher's", "its own"),
    )
    for row in report["students"]:
        ratios = " ".join(f"{row['over_first'][key]:.2f}" for key in ("online_bytes", "offline_bytes"))
        sizes = [megabytes(row[key]) for key in ("online_bytes", "offline_bytes")]
        spent = " + ".join(seconds(row[key]) for key in ("online_s", "offline_s"))
        costs.add_row(row["student"], *sizes, str(row["rounds"]), spent, ratios)
        for kind, texts in (("own_kind", report["data"]), ("other_kind", report["other"])):
            if figures := row.get(kind):
                shown = [f"{figures[key]:.3f}" for key in ("spearman_random", "spearman_nearest")]
                nearest = f"{100 * figures['same_nearest']:.0f} %"
                worth.add_row(
                    row["student"], texts, *shown, nearest, f"{figures['cosine']:.3f}", str(figures["refused"])
                )
        for head, accuracy in row["heads"].items():
            heads.add_row(row["student"], head, *(f"{100 * accuracy[who]:.1f} %" for who in ("teacher", "student")))
    return [costs, worth, *([heads] if heads.rows else [])]


def main(arguments: list[str] | None = None) -> int:
    options = parser("students", (__doc__ or "").splitlines()[0])
    options.add_argument("students", nargs="+", help="their names or folders; the others are compared with the first")
    options.add_argument("--teacher", default="minilm")
    options.add_argument(
        "--data", default="public_texts", help="a set of the students' kind, of which held-out texts are taken"
    )
    options.add_argument("--other", default="imdb", help="a set of another kind, kept for judging; empty: none")
    options.add_argument("--count", type=int, default=4000, help="texts of each kind that are compared (default 4000)")
    options.add_argument("--least", type=int, default=1, help="tokens that each of them has at least (default 1)")
    options.add_argument("--heads", action="append", default=[], help="a data set to train a head on; once for each")
    options.add_argument("--head-count", type=int, help="texts of each part that heads are trained and tested on (all)")
    options.add_argument("--length", type=int, default=128, help="tokens that texts are cut at (default 128)")
    options.add_argument("--seed", type=int, default=0)
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
