"""A compact text classifier: some layers of an encoder that everybody has, the last of them or adapters of all trained,
and a head.

Only what is trained travels, so a round is small. The word table and the layers below stay as they are; the digest of
what stays is compared, so that nobody trains the top of another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..models.data import Examples
from ..models.distillation.batches import by_private_length, tokenise
from ..models.distillation.student import layer_count, spread, stack_of, with_layers
from ..models.distillation.teacher import classifier_of, freeze_embeddings, is_classifier
from ..models.loading.calibration_texts import calibration_texts
from ..models.loading.load import Loaded
from . import adapters
from .settings import FederateError, FederateSettings

RATE, PRIVATE_RATE = 2e-4, 1.0  # of AdamW; of plain steps with noise
LONGEST = 128  # tokens of a text that ranges are measured on


def text_model(loaded: Loaded, labels: Sequence[str], settings: FederateSettings) -> nn.Module:
    """The model that training begins with. Errors: FederateError, DistillError, DataError."""
    if is_classifier(loaded):
        if len(loaded.labels) != len(labels):
            raise FederateError(
                f"{loaded.name}: has {len(loaded.labels)} classes, the data {len(labels)}; give another model"
            )
        model: nn.Module = loaded.model
    else:
        model = classifier_of(loaded, labels, settings.seed)
    count = layer_count(model)
    model = with_layers(model, spread(settings.layers or count, count))
    if settings.lora:
        _freeze_but_adapters(model, settings)
    else:
        freeze(model, settings.trained)
    return model.eval()


def calibration(loaded: Loaded, examples: Examples, length: int) -> list[dict[str, Tensor]]:
    """What the final plan's ranges are measured on: these texts and the built-in ones, longer than in training, padded
    as private runs pad them."""
    texts = examples.texts + calibration_texts()
    return by_private_length(tokenise(loaded, Examples(texts, [0] * len(texts)), max(length, LONGEST)))


def rate_of(settings: FederateSettings) -> float:
    """The learning rate, unless one is set."""
    if settings.dp == "example":
        return PRIVATE_RATE
    return adapters.RATE if settings.lora else RATE


def _freeze_but_adapters(model: nn.Module, settings: FederateSettings) -> None:
    """Adapters are trained, and the head."""
    base: Any = model.base_model
    adapters.adapt(model, stack_of(model, layer_count(model)), settings.lora, settings.seed)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_("pooler" in name or "lora_" in name)


def freeze(model: nn.Module, trained: int) -> None:
    """Leave the word table as it is, and all but the last `trained` layers (0: all are trained) and the head."""
    count = layer_count(model)
    if trained > count:
        raise FederateError(f"trained {trained}: the model has {count} layers; give a number up to {count}")
    model.requires_grad_(True)
    freeze_embeddings(model)
    if not trained:
        return
    stack = stack_of(model, count)
    base: Any = model.base_model
    for name, parameter in base.named_parameters(prefix=_prefix(model)):
        if "pooler" in name:
            continue  # part of the head: it begins from random weights
        inside = name.removeprefix(f"{stack}.")
        at = inside.split(".")[0]
        kept = inside != name and at.isdigit() and int(at) >= count - trained
        parameter.requires_grad_(kept)


def _prefix(model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is model.base_model)
