"""A compact text classifier: some layers of an encoder that everybody has, the last of them or adapters of all trained,
and a head.

Only what is trained travels, so a round is small. The word table and the layers below stay as they are; the digest of
what stays is compared, so that nobody trains the top of another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.data import Examples
from ..models.distillation.batches import by_private_length, tokenise
from ..models.distillation.teacher import classifier_of, freeze_embeddings, is_classifier
from ..models.loading.adapters import peft_library
from ..models.loading.calibration_texts import calibration_texts
from ..models.loading.layers import layer_count, spread, stack_of, with_layers
from ..models.loading.load import Loaded
from .settings import FederateError, FederateSettings

RATE, PRIVATE_RATE = 2e-4, 1.0  # of AdamW; of plain steps with noise
ADAPTER_RATE = 1e-3  # adapters want more than the weights themselves
GAIN = 2.0  # of B A, as lora_alpha / rank
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
    return ADAPTER_RATE if settings.lora else RATE


def _freeze_but_adapters(model: nn.Module, settings: FederateSettings) -> None:
    """Adapters are trained, and the head."""
    base: Any = model.base_model
    adapt(model, stack_of(model, layer_count(model)), settings.lora, settings.seed)
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


# --- adapters --------------------------------------------------------------------------------------------------------
# Low-rank adapters, LoRA: a small update of every linear layer travels in place of the layer.
#
# E. Hu et al., arXiv:2106.09685, section 4.1: a linear layer W that stays as it is gets B A beside it, of `rank` rows
# and columns, and these alone are trained. At the end W + B A takes W's place, and the model is what it was before: any
# tool loads it, and private runs cost no more. The server averages A and B each, which is not quite the mean of the
# products; with a small rate and frequent rounds it is close.


def adapt(model: nn.Module, stack: str, rank: int, seed: int) -> None:
    """Give every linear layer of `stack` an adapter, in place. Errors: FederateError; LoadError without peft."""
    peft = peft_library()
    linear = [n for n, m in model.named_modules() if n.startswith(f"{stack}.") and isinstance(m, nn.Linear)]
    if not linear:
        raise FederateError(f"lora: {type(model).__name__} has no linear layers in {stack}; set lora to 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=rank, lora_alpha=round(GAIN * rank), target_modules=linear)
        peft.inject_adapter_in_model(config, model)


def merge(model: nn.Module) -> None:
    """Put W + B A in the place of every W that has an adapter, in place."""
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if hasattr(m, "get_base_layer")]
    for name, layer in adapted:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
