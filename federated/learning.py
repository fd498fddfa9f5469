"""A client's share of a round: some epochs over its own examples, from the weights that all begin the round with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.distillation.batches import epoch_batches
from .rows import EncodedRows
from .settings import FederateError, FederateSettings
from .subject import Subject

CLIP = 1.0  # of a step's gradient
DECAY = 0.01
LAST_RATE = 0.1  # share of the rate that the last round has


def rate_at(settings: FederateSettings, rate: float, number: int) -> float:
    """The learning rate of round `number` (from 1): down in a line, so that the rounds settle."""
    past = (number - 1) / max(1, settings.rounds - 1)
    return rate * (1 - (1 - LAST_RATE) * past)


def learn(
    subject: Subject, rows: EncodedRows, settings: FederateSettings, *, rate: float, proximal: float, draw: int
) -> float:
    """Train in place; the mean loss of a batch. `draw`: seeds the order of the examples.

    proximal   adds proximal / 2 |w - w0|^2 to the loss (T. Li et al., FedProx, arXiv:1812.06127, section 3.2)
    Errors: FederateError if the loss or a weight is not finite.
    """
    parameters = subject.trained()
    start = subject.state() if proximal else {}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters.values() if p.dim() > 1], "weight_decay": DECAY},
            {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=rate,
    )
    losses = []
    for epoch in range(settings.epochs):
        for indices in epoch_batches(rows.lengths, settings.batch, draw, epoch):
            logits = subject.model(**rows.batch(indices)).logits
            loss = F.cross_entropy(logits, rows.labels[torch.as_tensor(indices)])
            losses.append(float(loss.detach()))
            if proximal:
                loss = loss + proximal / 2 * _distance(parameters, start)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    if not (math.isfinite(sum(losses)) and all(bool(p.isfinite().all()) for p in parameters.values())):
        raise FederateError("its weights are not finite after training; lower the rate")
    return sum(losses) / len(losses)


def _distance(parameters: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([((p - start[name]) ** 2).sum() for name, p in parameters.items()]).sum()
