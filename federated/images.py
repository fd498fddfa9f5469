"""A compact Transformer for small grey images: patches by a convolution, a class token, a few narrow layers.

It begins from random weights, with the plan's functions in place from the first step: what is trained is what runs on
secrets. As a ViT of transformers it saves, loads and compiles like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..models.data import DataError, Examples
from ..models.distillation.batches import in_order, pixels
from ..models.distillation.teacher import pixel_processor, vit_of
from .settings import FederateError, FederateSettings

LAYERS = 1
HEADS = 4
RATE, PRIVATE_RATE = 4e-3, 2.0  # of AdamW; of plain steps with noise


def vision_model(labels: Sequence[str], side: int, settings: FederateSettings) -> nn.Module:
    """A model for square images of `side` pixels, with weights drawn from the seed."""
    if settings.hidden % HEADS:
        raise FederateError(f"hidden {settings.hidden}: the model has {HEADS} heads; give a multiple of {HEADS}")
    return vit_of(
        labels,
        settings.seed,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers or LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * settings.hidden,
        image_size=side,
        patch_size=_patch(side),
        initializer_range=0.1,  # narrow layers; 0.02 takes epochs to leave the start
    )


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
    """Of image files. Errors: FederateError."""
    if (reader := pixel_processor(side)) is None:
        raise FederateError("images need Pillow; run: pip install 'blindformer[federated]'")
    return reader


def calibration(examples: Examples) -> list[dict[str, Tensor]]:
    """What the final plan's ranges are measured on."""
    rows = pixels(examples)
    return [rows.batch(some) for some in in_order(rows.lengths, 32)]


def side_of(examples: Examples) -> int:
    """Pixels a side. Errors: DataError."""
    if not isinstance(examples.inputs, Tensor) or examples.inputs.shape[1] != examples.inputs.shape[2]:
        raise DataError("the model takes square grey images; crop or resize these")
    return int(examples.inputs.shape[1])
