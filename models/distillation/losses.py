"""What a student is trained on: the teacher's states, its softened answers, and the labels.

The recipe is the field's: X. Jiao et al., TinyBERT, arXiv:1909.10351 (states first, answers second); G. Hinton et al.,
arXiv:1503.02531 (temperature); D. Li et al., MPCFormer, arXiv:2211.01452 (both, with approximations in place).
N tokens of a batch that are not padding, H hidden size, A heads, C classes. Of several processes each gives its part of
the whole batch's loss.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .processes import ALONE, Processes
from .states import States


def state_loss(
    student: States, teacher: States, attention_weight: float, processes: Processes = ALONE
) -> tuple[Tensor, dict[str, float]]:
    """Mean squared errors of embeddings, hidden states and attention, each layer's divided by its teacher's variance.

    Layers differ in scale by orders of magnitude: without the division, the largest would be all that is learned.
    """
    relative = partial(_mean_relative, processes=processes)
    hidden = relative(student.hidden, teacher.hidden)
    parts = {"hidden": hidden.item()}
    total = hidden
    if attention_weight and student.attention and teacher.attention:
        attention = relative(student.attention, teacher.attention)
        parts["attention"] = attention.item()
        total = total + attention_weight * attention
    return total, parts


def embedding_loss(student: Tensor, teacher: Tensor, processes: Processes = ALONE) -> tuple[Tensor, dict[str, float]]:
    """The squared error of sentence embeddings [texts, H], relative to the teacher's variance."""
    found = _relative(student, teacher, processes)
    return found, {"embedding": found.item()}


def _mean_relative(student: list[Tensor], teacher: list[Tensor], processes: Processes) -> Tensor:
    return torch.stack([_relative(s, t, processes) for s, t in zip(student, teacher, strict=True)]).mean()


def _relative(student: Tensor, teacher: Tensor, processes: Processes) -> Tensor:
    student, teacher = student.float(), teacher.float()
    variance, share = _of_all(teacher, processes)
    return F.mse_loss(student, teacher) / variance.clamp_min(1e-8) * share


def _of_all(x: Tensor, processes: Processes) -> tuple[Tensor, float]:
    """The variance of the whole batch's elements, and the share of them that this process has."""
    if processes.count == 1:
        return x.var(), 1.0
    own = x.double()
    count, total, squares = processes.total(torch.stack([own.new_tensor(x.numel()), own.sum(), own.square().sum()]))
    variance = (squares - total * total / count) / (count - processes.copies)
    return variance.float(), x.numel() / count.item()


def answer_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    soft_weight: float,
    processes: Processes = ALONE,
) -> tuple[Tensor, dict[str, float]]:
    """soft T^2 KL(teacher || student at temperature T) + (1 - soft) cross entropy; logits [texts, C].

    A label below 0 is unknown: such a text counts in the first part only.
    """
    student = student.float()
    texts, known = processes.totals(len(labels), int((labels >= 0).sum()))
    soft = (
        F.kl_div(
            F.log_softmax(student / temperature, -1),
            F.log_softmax(teacher.float() / temperature, -1),
            log_target=True,
            reduction="sum",
        )
        / texts
        * (temperature * temperature)
    )
    total, parts = soft_weight * soft, {"soft": soft.item()}
    if known:
        hard = F.cross_entropy(student, labels, ignore_index=-1, reduction="sum") / known
        total, parts["hard"] = total + (1 - soft_weight) * hard, hard.item()
    return total, parts
