"""The student: the teacher with a plan's approximations in place, or a narrower model that keeps its embeddings."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations import Choice, Plan, PlanError, calibrate, find, find_kind, kinds, pooling
from ...approximations.registry import EXACT
from ..distillation_settings import DistillError, DistillSettings
from ..loading.huggingface import huggingface


def in_training(plan: Plan) -> Plan:
    """The plan as a student is trained with it: divisions are exact, unless they are to be got used to.

    Goldschmidt's iteration is within 2^-14 of them on the range it is fitted to, so there is nothing to get used to;
    and the ranges move with the weights. They are calibrated when the student is done. What is far from a division
    (a polynomial, a constant) is trained with, constants and all.
    """

    def close(kind: str, choice: Choice) -> bool:
        return find_kind(kind).is_division and not find(kind, choice.name).needs_distillation

    exact = {kind: EXACT for kind in kinds() if close(kind, getattr(plan, kind))}
    overrides = {
        pattern: {
            kind: Choice(name=EXACT) if close(kind, choice) else choice
            for kind, choice in by_kind.items()
            if not (kind in exact and close(kind, choice))
        }
        for pattern, by_kind in plan.overrides.items()
    }
    return plan.replace(**exact, overrides=overrides, ranges={}, fits=plan.trained_fits())


def settled(model: nn.Module, batches: list[dict[str, Tensor]], plan: Plan) -> Plan:
    """The plan with the constants that a student is to be trained with, fitted to the untrained one; others' later."""
    if not plan.needs_distillation():
        return plan
    return plan.replace(ranges={}, fits=calibrate(model, batches, plan).trained_fits())


def check_modules(model: nn.Module, plan: Plan) -> None:
    """Raise PlanError if the plan speaks of modules or layers that the model does not have."""
    pooling.check_pooling(model, plan.pool, plan.name)
    paths = [path for path, _ in model.named_modules()]
    for pattern in plan.overrides:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise PlanError(
                f"plan {plan.name}: the model has no module {pattern!r}; it has {', '.join(paths[1:4])} ..."
            )


# A compact student: the teacher's embeddings, made narrower by a learned projection, and a few layers of that width.
#
# The words stay the teacher's, and with the projection they are the client's part (models/lowering/lower.py): what an
# encrypted query costs is decided by the width behind it. The architecture is ELECTRA's, which has such a projection
# (K. Clark et al., arXiv:2003.10555, with ALBERT's factorised embedding, arXiv:1909.11942), and a head of a linear map,
# GELU and another: two products on ciphertexts less than BERT's pooler, whose tanh is a cubic.

EMBEDDINGS = "electra.embeddings.*"
_DIRECTIONS = 4096  # tokens that the projection's first directions are found from


def compact_student(
    teacher: nn.Module, settings: DistillSettings, labels: dict[int, str], batches: list[dict[str, Tensor]]
) -> nn.Module:
    """A student of `settings.hidden` features with random layers, drawn with the seed. The projection begins as the
    directions in which the embeddings of the batches vary most.

    Errors: DistillError for a teacher without BERT's embeddings, or a width that is none.
    """
    given, hidden, heads = _embeddings(teacher), settings.hidden, settings.heads
    words = given["word_embeddings.weight"]
    if hidden is None or heads is None or hidden > words.shape[1] or hidden % heads:
        raise DistillError(
            f"hidden {hidden}, heads {heads}: give a multiple of the heads, at most the teacher's {words.shape[1]}"
        )
    config: Any = teacher.config
    with huggingface() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        student: Any = transformers.ElectraForSequenceClassification._from_config(
            transformers.ElectraConfig(
                vocab_size=words.shape[0],
                embedding_size=words.shape[1],
                hidden_size=hidden,
                num_hidden_layers=settings.layers or 1,
                num_attention_heads=heads,
                intermediate_size=settings.intermediate or 2 * hidden,
                max_position_embeddings=len(given["position_embeddings.weight"]),
                type_vocab_size=len(given["token_type_embeddings.weight"]),
                layer_norm_eps=config.layer_norm_eps,
                pad_token_id=config.pad_token_id,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                id2label=labels,
                label2id={name: i for i, name in labels.items()},
            ),
            attn_implementation="sdpa",
        )
        student.electra.embeddings.load_state_dict(given, strict=False)
        if hasattr(student.electra, "embeddings_project"):
            _begin(student.electra, batches)
    return student.eval()


def in_clear(plan: Plan) -> Plan:
    """The plan with the embeddings' norm as it is: the client computes it, in the clear."""
    return plan.replace(overrides={**plan.overrides, EMBEDDINGS: {"layer_norm": EXACT}})


def freeze(student: nn.Module) -> None:
    """Leave the teacher's embeddings as they are; all behind them learns."""
    student.electra.embeddings.requires_grad_(False)  # type: ignore[operator, union-attr]


def _embeddings(teacher: nn.Module) -> dict[str, Tensor]:
    module = getattr(getattr(teacher, "base_model", teacher), "embeddings", None)
    weights = module.state_dict() if isinstance(module, nn.Module) else {}
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm")
    missing = [name for name in names if f"{name}.weight" not in weights]
    padded = getattr(getattr(module, "position_embeddings", None), "padding_idx", None) is not None
    if missing or padded:
        what = f"has no {missing[0]}" if missing else "counts positions from its padding's index"
        raise DistillError(
            f"{type(teacher).__name__}: {what}; leave hidden out, or give a teacher with BERT's embeddings"
        )
    return weights


def _begin(electra: Any, batches: list[dict[str, Tensor]]) -> None:
    """Principal components, scaled to unit variance on average."""
    with torch.no_grad():
        tokens = torch.cat(
            [electra.embeddings(input_ids=batch["input_ids"])[batch["attention_mask"].bool()] for batch in batches]
        )[:_DIRECTIONS]
        mean = tokens.mean(0)
        _, sizes, directions = torch.linalg.svd(tokens - mean, full_matrices=False)
        width = len(electra.embeddings_project.weight)
        scale = sizes[:width].mean() / len(tokens) ** 0.5
        weight = directions[:width] / scale.clamp_min(1e-6)
        electra.embeddings_project.weight[: len(weight)] = weight
        electra.embeddings_project.bias[: len(weight)] = -weight @ mean
