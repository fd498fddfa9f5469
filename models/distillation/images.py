"""A compact Transformer of patches, to be trained on a data set of small images from nothing: it is its own teacher.

With torch's own softmax, GELU and LayerNorm first; a copy of it then learns to answer alike with a plan's functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset
from ..loading.huggingface import huggingface
from ..loading.load import Loaded
from .settings import DistillError, DistillSettings

VIT = "vit"
IMAGES: dict[str, Any] = {
    "hidden": 32, "teacher_epochs": 40, "teacher_rate": 3e-3, "hidden_epochs": 0, "logit_epochs": 40,
    "logit_rate": 1e-3, "augment": 0, "patience": 10,
}  # fmt: skip
"""Defaults for images: small models from nothing learn fast, and long."""

_ACROSS = 4  # patches in a row


def new_vit(data: Dataset, settings: DistillSettings) -> Loaded:
    """A ViT of 4 x 4 patches with random weights, drawn with the seed, and the processor that feeds it.

    Errors: DistillError for texts, or images that 4 x 4 patches do not cover.
    """
    images = data.train.inputs
    if not isinstance(images, Tensor) or images.shape[1] != images.shape[2] or images.shape[1] % _ACROSS:
        what = f"images of {images.shape[1]} x {images.shape[2]}" if isinstance(images, Tensor) else "texts"
        raise DistillError(f"{data.name}: holds {what}; the teacher vit takes square images of a multiple of {_ACROSS}")
    size, hidden = images.shape[1], settings.hidden or IMAGES["hidden"]
    with huggingface() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        config = transformers.ViTConfig(
            image_size=size,
            patch_size=size // _ACROSS,
            hidden_size=hidden,
            num_hidden_layers=settings.layers or 1,
            num_attention_heads=settings.heads,
            intermediate_size=settings.inner or 2 * hidden,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(data.labels)),
            label2id={name: i for i, name in enumerate(data.labels)},
        )
        model = transformers.ViTForImageClassification._from_config(config, attn_implementation="sdpa").eval()
    labels = dict(enumerate(data.labels))
    return Loaded(f"{VIT} for {data.name}", Path(VIT), model, "image", _processor(size), labels=labels)


def _processor(size: int) -> Any:
    """None where the libraries for images are missing: the model then takes tensors alone."""
    sides = {"height": size, "width": size}
    with huggingface() as transformers:
        try:
            return transformers.ViTImageProcessorPil(size=sides, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        except ImportError:
            return None
