"""A step that protects each example: gradients of one example each, clipped, and Gaussian noise on their sum.

M. Abadi et al., Deep Learning with Differential Privacy, arXiv:1607.00133, algorithm 1. An example is in a step with
probability q, by itself and unpredictably; its gradient is clipped to norm C, the sum gets noise of deviation z C and
is divided by q N. N is public, the same for every client: how many examples a client has is in the noised sum alone.
Clients' steps are averaged before the next one, and most of the noise with them: several steps on a client's own noise
lead further astray. Neither the update nor any model made of it says more of an example than epsilon, whoever looks:
the server, other clients, users of the result.

Under secure aggregation only sums are seen, so the noise needs only to be in the sum. A client whose terms name others
that it trusts to add theirs (`trusted-others`) adds deviation z C / sqrt(k), where k of these are in any sum at least,
whatever the server tells each: who is in the sum can take its own noise out, and z C is left. Without that term a
client adds all of the noise: the server writes who is in the sum, and could invent others. Rounding to fixed point is a
millionth of it.
"""

from __future__ import annotations

import secrets

import torch
import torch.nn.functional as F
from torch import Tensor

from .privacy import gaussian
from .rows import EncodedRows
from .subject import Subject
from .updates import clipped, flat, unflat


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
    """Of one example's loss, as one vector (see updates.flat).

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
