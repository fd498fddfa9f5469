"""A classifier from a sentence encoder and labelled texts: a linear head on embeddings that stay as they are.

Logistic regression on the pooled vectors as the model's plan computes them, each feature made of mean 0 and variance 1
(less if it hardly varies); that is folded into the head's weights afterwards. Of several penalties the one with the
least cross entropy on validation texts counts.
"""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...approximations.calibrate import in_force
from ...approximations.plan import FULL_BITS
from ..data import Dataset, Examples, keep_reading, load_data
from ..distillation_settings import DistillError
from ..loading.heads import SentenceClassifier, SentenceEncoder, save_model
from ..loading.huggingface import huggingface
from ..loading.load import Loaded, load
from .batches import tokenise
from .checkpoints import check_new, locked, storing
from .teacher import embeddings_of

REPORT = "head.json"
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)  # of the squared weights of standardised features
LONGEST = 128
_LEAST = 0.1  # of the mean standard deviation: a feature that hardly varies would get a weight that has no fixed point


@dataclass
class TrainedHead:
    """The result. `report`: what is in head.json: counts of texts, accuracy by part, the penalty chosen."""

    folder: Path
    report: dict[str, Any]


def train_head(
    model: str | Path | Loaded, data: str | Path | Dataset, out: str | Path, *, seed: int = 0, length: int = LONGEST
) -> TrainedHead:
    """Train a linear classifier on a sentence encoder's embeddings, and write its folder.

        bf.train_head("minilm-fast", "tickets.csv", "tickets")

    model   a sentence encoder's name or folder, or a result of `load`; it does not change
    data    a data set, or an argument of `load_data`
    out     a new folder, with the encoder's plan if there is one
    seed    of the data's split
    length  tokens at which texts are cut

    Raises DistillError, DataError, LoadError and PlanError.
    """
    loaded, out = model if isinstance(model, Loaded) else load(model), Path(out)
    encoder = loaded.model
    if type(encoder) is not SentenceEncoder:
        raise DistillError(f"{loaded.name}: is no sentence encoder, whose embeddings a head reads; give minilm-fast")
    dataset = data if isinstance(data, Dataset) else load_data(data, seed=seed)
    with locked(out, "writes"):
        check_new(out, out / "unfinished")
        plan = loaded.plan()
        with nullcontext() if plan is None else in_force(encoder, plan):
            parts = {
                name: _features(loaded, examples, length)
                for name, examples in (("train", dataset.train), ("validation", dataset.validation))
            }
            judged = _features(loaded, dataset.test, length)
        head, penalty = _chosen(parts["train"], parts["validation"], len(dataset.labels))
        report = {
            "model": loaded.name,
            "plan": None if plan is None else plan.name,
            "data": {"name": dataset.name, "labels": list(dataset.labels)},
            "texts": {"train": len(dataset.train), "validation": len(dataset.validation), "test": len(dataset.test)},
            "accuracy": {name: _accuracy(head, *pair) for name, pair in {**parts, "test": judged}.items()},
            "penalty": penalty,
            "seed": seed,
            "length": length,
        }
        with storing(str(out)), huggingface():
            _save(loaded, encoder, head, dataset.labels, out)
            if plan is not None:
                plan.replace(bits={**plan.bits, "classifier": FULL_BITS}).save(out)
            keep_reading(dataset, out)
            (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return TrainedHead(out, report)


def _features(loaded: Loaded, examples: Examples, length: int) -> tuple[Tensor, Tensor]:
    """(embeddings [texts, H], labels [texts])."""
    tokens = tokenise(loaded, examples, length)
    return embeddings_of(loaded.model, tokens), tokens.labels


def _chosen(train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], classes: int) -> tuple[nn.Linear, float]:
    x, y = validation
    heads = {penalty: logistic(*train, classes, penalty) for penalty in PENALTIES}
    with torch.no_grad():
        losses = {penalty: float(F.cross_entropy(head(x), y)) for penalty, head in heads.items()}
    best = min(losses, key=lambda penalty: losses[penalty])
    return heads[best], best


def logistic(x: Tensor, y: Tensor, classes: int, penalty: float) -> nn.Linear:
    """The linear map [H] -> [classes] of least cross entropy plus `penalty` times the sum of its squared weights, for
    standardised features. x [texts, H], y [texts]."""
    mean, spread = x.mean(0), x.std(0)
    spread = spread.clamp_min(_LEAST * spread.mean())
    scaled = (x - mean) / spread
    weight = torch.zeros(classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(scaled, weight, bias), y) + penalty * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    head = nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(weight / spread)
        head.bias.copy_(bias - head.weight @ mean)
    return head.requires_grad_(False)


def _accuracy(head: nn.Linear, x: Tensor, y: Tensor) -> float:
    return float((head(x).argmax(-1) == y).float().mean())


def _save(loaded: Loaded, encoder: SentenceEncoder, head: nn.Linear, labels: tuple[str, ...], out: Path) -> None:
    model: Any = SentenceClassifier(copy.deepcopy(encoder), head)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: number for number, name in enumerate(labels)}
    loaded.processor.save_pretrained(out)
    save_model(model, out)
