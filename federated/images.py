"""A compact Transformer for small grey images: patches by a convolution, a class token, a few narrow layers.

It begins from random weights, with the plan's functions in place from the first step: what is trained is what runs on
secrets. As a ViT of transformers it saves, loads and compiles like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.data import DataError, Examples
from ..models.distillation.batches import in_order, pixels
from ..models.loading.huggingface import huggingface
from .settings import FederateError, FederateSettings

LAYERS = 1
HEADS = 4
SCALE = (0.5, 0.5)  # mean and deviation that pixels from 0 to 1 are scaled with
RATE, PRIVATE_RATE = 4e-3, 2.0  # of AdamW; of plain steps with noise


def vision_model(labels: Sequence[str], side: int, settings: FederateSettings) -> nn.Module:
    """A model for square images of `side` pixels, with weights drawn from the seed."""
    if settings.hidden % HEADS:
        raise FederateError(f"hidden {settings.hidden}: the model has {HEADS} heads; give a multiple of {HEADS}")
    with huggingface() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = transformers.ViTConfig(
            hidden_size=settings.hidden,
            num_hidden_layers=settings.layers or LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=2 * settings.hidden,
            image_size=side,
            patch_size=_patch(side),
            num_channels=3,  # image files are read as RGB
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,  # narrow layers; 0.02 takes epochs to leave the start
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
        )
        return transformers.ViTForImageClassification(config).eval()


def rate_of(settings: FederateSettings) -> float:
    """The learning rate, unless one is set."""
    return PRIVATE_RATE if settings.dp == "example" else RATE


def _patch(side: int) -> int:
    """Some 16 to 49 patches: the least width that leaves no more than 7 in a row."""
    for width in range(2, side):
        if side % width == 0 and side // width <= 7:
            return width
    raise FederateError(f"images of {side} pixels a side cannot be cut into at most 7 patches a row; resize them")


def processor(side: int) -> Any:
    """What makes a model's input of an image file, the same numbers as `pixels`. Errors: FederateError."""
    mean, deviation = SCALE
    sides = {"height": side, "width": side}
    with huggingface() as transformers:
        try:
            return transformers.ViTImageProcessorPil(
                size=sides, image_mean=[mean] * 3, image_std=[deviation] * 3, do_convert_rgb=True
            )
        except ImportError:  # in many lines
            raise FederateError("images need Pillow; run: pip install 'blindformer[federated]'") from None


def calibration(examples: Examples) -> list[dict[str, Tensor]]:
    """What the final plan's ranges are measured on."""
    rows = pixels(examples)
    return [rows.batch(some) for some in in_order(rows.lengths, 32)]


def side_of(examples: Examples) -> int:
    """Pixels a side. Errors: DataError."""
    if not isinstance(examples.inputs, Tensor) or examples.inputs.shape[1] != examples.inputs.shape[2]:
        raise DataError("the model takes square grey images; crop or resize these")
    return int(examples.inputs.shape[1])
