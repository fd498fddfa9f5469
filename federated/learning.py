"""A client's share of a round: some epochs over its own examples, from the weights that all begin the round with."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.distillation.batches import EncodedRows, epoch_batches
from ..models.distillation.training import decayed
from .privacy import gaussian
from .settings import FederateError, FederateSettings
from .subject import Subject

# Updates as one vector: what clients add up, in a fixed order of names.

EXTRA = 2
"""Numbers after the weights: the client's weight in the mean, and its loss times that. With differential privacy they
are the same whatever the client's examples are."""


def flat(values: Mapping[str, Tensor]) -> Tensor:
    """All values in one float64 vector, by name."""
    return torch.cat([values[name].reshape(-1).double() for name in sorted(values)])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, with the shapes and types of `like`."""
    tensors, at = {}, 0
    for name in sorted(like):
        size = like[name].numel()
        tensors[name] = vector[at : at + size].reshape(like[name].shape).to(like[name].dtype)
        at += size
    return tensors


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """The update, as one vector."""
    return flat(after) - flat(before)


def clipped(update: Tensor, norm: float) -> Tensor:
    """The update, shortened to a Euclidean norm if it is longer. One that is not finite counts as none: a refusal would
    tell of the examples behind it."""
    length = float(update.norm())
    if not math.isfinite(length):
        return torch.zeros_like(update)
    return update * (norm / length) if length > norm else update


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
    optimizer = torch.optim.AdamW(decayed(parameters, DECAY), lr=rate)
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


# A step that protects each example: gradients of one example each, clipped, and Gaussian noise on their sum.
#
# M. Abadi et al., Deep Learning with Differential Privacy, arXiv:1607.00133, algorithm 1. An example is in a step with
# probability q, by itself and unpredictably; its gradient is clipped to norm C, the sum gets noise of deviation z C and
# is divided by q N. N is public, the same for every client: how many examples a client has is in the noised sum alone.
# Clients' steps are averaged before the next one, and most of the noise with them: several steps on a client's own
# noise lead further astray. Neither the update nor any model made of it says more of an example than epsilon, whoever
# looks: the server, other clients, users of the result.
#
# Under secure aggregation only sums are seen, so the noise needs only to be in the sum. A client whose terms name
# others that it trusts to add theirs (`trusted-others`) adds deviation z C / sqrt(k), where k of these are in any sum
# at least, whatever the server tells each: who is in the sum can take its own noise out, and z C is left. Without that
# term a client adds all of the noise: the server writes who is in the sum, and could invent others. Rounding to fixed
# point is a millionth of it.


def summed(subject: Subject, rows: EncodedRows, *, share: float, clip: float) -> Tensor:
    """The clipped gradients of the examples that are drawn, added up. No noise is on it yet: it may not leave.

    share  the probability q; clip: the norm C of an example's gradient
    """
    total = torch.zeros(sum(p.numel() for p in subject.trained().values()), dtype=torch.float64)
    for index in drawn(len(rows), share):
        total += clipped(gradient(subject, rows, index), clip)
    return total


def private_step(subject: Subject, total: Tensor, *, rate: float, expected: float, clip: float, noise: float) -> None:
    """One step with what `summed` gave, in place. The server's strategy may add momentum, which costs no privacy.

    expected  the examples of a step, q N; noise: the multiplier z of the norm
    """
    now = subject.state()
    subject.set(unflat(flat(now) - rate / expected * (total + noise * clip * gaussian(len(total))), now))


def gradient(subject: Subject, rows: EncodedRows, index: int) -> Tensor:
    """Of one example's loss, as one vector (see `flat`).

    One after the other: a plan's functions are operators of their own, which torch.func cannot map over examples.
    """
    parameters = subject.trained()
    logits = subject.model(**rows.batch([index])).logits
    loss = F.cross_entropy(logits, rows.labels[index : index + 1])
    return flat(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))


def drawn(count: int, share: float) -> list[int]:
    """Each of so many by itself with this probability, from the system's randomness: the accountant counts on it."""
    if share == 1:
        return list(range(count))
    chance = secrets.SystemRandom()
    return [index for index in range(count) if chance.random() < share]
