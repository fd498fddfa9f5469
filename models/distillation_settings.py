"""What a distillation may be told, with the defaults that the published figures were made with."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ..protocols.errors import BlindformerError


class DistillError(BlindformerError):
    """A distillation that cannot start, resume or be stored."""


COMPACT: dict[str, Any] = {"heads": 4, "hidden_epochs": 0, "logit_epochs": 12, "logit_rate": 2e-3, "augment": 2}
"""Defaults for a compact student: it shares no states with its teacher, and learns fast."""


EMBEDDINGS: dict[str, Any] = {"hidden_epochs": 1, "augment": 0, "batch": 64, "hidden_rate": 1e-3, "length": 128}
"""Defaults for a student of embeddings: its many texts need no variants and no second epoch, and its start is near."""


def check_used(given: Collection[str], images: bool, embeddings: bool) -> None:
    """Errors: DistillError for one of the `given` settings that would change nothing. `images`: of the teacher vit."""
    if images and embeddings:
        raise DistillError("embeddings: are of texts, and vit is a teacher of images; leave one of them out")
    needs = {
        "texts": (embeddings, "embeddings"),
        "transfer": (not (images or embeddings), "a classifier of texts"),
        "augment": (not images, "texts"),
        **dict.fromkeys(("hidden", "teacher_epochs", "logit_epochs"), (not embeddings, "a student for a task")),
    }
    for name, (used, needed) in needs.items():
        if name in given and not used:
            raise DistillError(f"{name}: needs {needed}; leave it out")


def _layers(value: Any) -> Any:
    words = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(int(word) for word in words)
    except (TypeError, ValueError):
        raise ValueError(f"{value!r} is not numbers of layers; give them as 1,3") from None


def wrong_setting(error: ValidationError, known: Iterable[str]) -> str:
    """What pydantic refuses, in one line."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {where!r}: use one of {', '.join(known)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"setting {where}: {message}" if where else message


class DistillSettings(BaseModel):
    """The text below a setting is shown by `blindformer distill --set help`. A stage ends early after
    `patience` epochs without a better validation result. Kept layers are spread evenly, the last one among them. A
    compact student starts from random layers and learns from answers alone: other defaults apply (COMPACT)."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    seed: int = 0
    layers: int | None = Field(default=None, ge=1)
    """Layers of the student (default: all of the teacher's, of a compact student 1)."""
    pool: Annotated[tuple[int, ...], BeforeValidator(_layers)] | None = None
    """Layers after which each pair of tokens becomes one, its mean, such as 1,3: later layers cost half, a quarter
    (default: the plan's own, none)."""
    texts: int | None = Field(default=None, ge=1)
    """The most texts to train on (default: all)."""
    hidden: int | None = Field(default=None, ge=8)
    """Features of a compact student: its teacher's words, random layers (default: it is not compact)."""
    heads: int | None = Field(default=None, ge=1)
    """Attention heads of the student, each joined of its teacher's (default: as many, of a compact student 4)."""
    intermediate: int | None = Field(default=None, ge=8)
    """Features between the two linear layers of the student's feed-forward (default: as many as its teacher's, of a
    compact student twice `hidden`)."""
    length: int = Field(default=64, ge=8)
    """Tokens that training texts are cut to (default: 64, with --embeddings 128)."""
    batch: int = Field(default=32, ge=1)
    """Texts or images of a step."""
    augment: int = Field(default=3, ge=0)
    """Variants of each text that the student learns from, too (default: 3, of a compact student 2, with --embeddings
    0)."""
    teacher_epochs: int = Field(default=3, ge=1)
    """The most epochs of fine-tuning the teacher (default: 3, of vit 40)."""
    hidden_epochs: int = Field(default=5, ge=0)
    """The most epochs of the first stage, of states and attention (default: 5, with --embeddings 1, of a compact
    student and vit 0)."""
    logit_epochs: int = Field(default=4, ge=1)
    """The most epochs of the second stage, of answers and labels (default: 4, of a compact student 12, of vit 40)."""
    teacher_rate: float = Field(default=5e-5, gt=0)
    """Learning rate of the teacher's fine-tuning."""
    hidden_rate: float = Field(default=4e-4, gt=0)
    """Learning rate of the first stage."""
    logit_rate: float = Field(default=5e-5, gt=0)
    """Learning rate of the second stage."""
    warm_up: float = Field(default=0.1, ge=0, lt=1)
    """The part of all steps in which the learning rate grows to its value."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """The norm that gradients are clipped to."""
    temperature: float = Field(default=2.0, gt=0)
    """Divides the logits of both models in the second stage."""
    soft_weight: float = Field(default=0.7, ge=0, le=1)
    """The share of the softened loss in the second stage."""
    attention_weight: float = Field(default=1.0, ge=0)
    """Weight of the attention's loss in the first stage."""
    range_weight: float = Field(default=0.01, ge=0)
    """Weight of the penalty on activations beyond the limits."""
    patience: int = Field(default=3, ge=1)
    """Epochs without a better validation result, after which a stage ends."""
    checkpoint_steps: int = Field(default=50, ge=1)
    """Steps after which a checkpoint is written; one is written after every epoch, too."""
    cache_mb: int = Field(default=2000, ge=0)
    """Memory for the teacher's states; if they need more, the teacher runs again in every step."""
    bfloat16: bool = False
    """Train with matrix products in bfloat16: nearly twice as fast where the processor has them."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**({**COMPACT, **fields} if fields.get("hidden") else fields))
        except ValidationError as error:
            raise DistillError(wrong_setting(error, type(self).model_fields)) from None
        if self.hidden is not None and self.hidden_epochs:
            raise DistillError(
                f"hidden_epochs {self.hidden_epochs}: {self.hidden} features have no teacher's states; leave it out"
            )

    def fingerprint(self, *more: str) -> str:
        """What a checkpoint belongs to: these settings, and digests of what else decides the result."""
        return hashlib.sha256("\n".join([self.model_dump_json(), *more]).encode()).hexdigest()[:16]
