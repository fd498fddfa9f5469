"""The teacher: a classifier that is given, or an encoder that is fine-tuned to be one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import DataError, Dataset
from ..distillation_settings import DistillError, DistillSettings
from ..loading.huggingface import FILES_ALONE, NO_CODE, huggingface
from ..loading.load import Loaded
from .batches import Tokens, in_order
from .training import Stage, accuracy


def is_classifier(loaded: Loaded) -> bool:
    """Whether a model can be a teacher as it is."""
    return loaded.kind == "classifier"


def check_teaches(loaded: Loaded) -> None:
    """Errors: DistillError for a student, whose weights give other answers with torch's own functions."""
    own = loaded.plan()
    if own is not None and own.needs_distillation():
        raise DistillError(
            f"{loaded.name}: was trained for plan {own.name}; give its teacher, which computes with "
            "torch's own functions"
        )


def classifier_of(loaded: Loaded, labels: Sequence[str], seed: int) -> nn.Module:
    """The encoder of a loaded model with a new head for these labels, drawn with the seed.

    Errors: DistillError if transformers has no classifier of this architecture; DataError for an image model.
    """
    if loaded.kind == "image":
        raise DataError(f"{loaded.name}: is an image model; give a model of texts")
    with huggingface() as transformers, torch.random.fork_rng(devices=[]):
        try:
            config = transformers.AutoConfig.from_pretrained(loaded.folder, **FILES_ALONE)
        except OSError:  # such as a GGUF file
            raise DistillError(f"{loaded.name}: is no folder with a config.json; give another teacher") from None
        config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
        if (
            getattr(config, "pad_token_id", None) is None
        ):  # a causal model's: its classifier reads the last token before the padding
            config.pad_token_id = getattr(loaded.processor, "pad_token_id", None)
        torch.manual_seed(seed)
        try:
            of_kind = transformers.AutoModelForSequenceClassification
            model = of_kind.from_config(config, dtype=torch.float32, **NO_CODE)
        except ValueError:
            raise DistillError(
                f"{loaded.name}: transformers has no text classifier of this kind ({config.model_type}); give another"
            ) from None
    encoder: Any = getattr(loaded.model, "model", loaded.model)  # a sentence encoder or causal model is wrapped
    encoder = getattr(encoder, "base_model", encoder)
    missing, _ = model.base_model.load_state_dict(encoder.state_dict(), strict=False)
    unset = [name for name in missing if not name.startswith("pooler.")]
    if unset:
        raise DistillError(f"{loaded.name}: lacks weights of a classifier, first {unset[0]}; give another teacher")
    return model.eval()


def freeze_embeddings(model: nn.Module) -> None:
    """Leave the word table as it is: it is half of a small model, few rows are seen, and clients hold it anyway."""
    model.get_input_embeddings().weight.requires_grad_(False)  # type: ignore[operator, union-attr]


def freeze_tables(model: nn.Module) -> None:
    """Leave all tables of embeddings as they are."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)


def teacher_stage(model: nn.Module, tokens: Tokens, validation: Tokens, settings: DistillSettings) -> Stage:
    """Plain fine-tuning with cross entropy; the epoch of the best validation accuracy counts."""

    def loss(indices: Sequence[int], length: int) -> tuple[Tensor, dict[str, float]]:
        logits = model(**tokens.batch(indices, length)).logits
        return F.cross_entropy(logits, tokens.labels_of(indices)), {}

    return Stage(
        "teacher", settings.teacher_epochs, settings.teacher_rate, loss, lambda: judged(model, validation), dropout=True
    )


def judged(model: nn.Module, tokens: Tokens) -> dict[str, float]:
    """accuracy, and score: the same with the mean cross entropy to tell equal accuracies apart."""
    pairs = [
        (model(**tokens.batch(indices)).logits, tokens.labels_of(indices)) for indices in in_order(tokens.lengths, 64)
    ]
    share = accuracy(pairs)
    entropy = float(F.cross_entropy(torch.cat([p for p, _ in pairs]), torch.cat([y for _, y in pairs])))
    return {"accuracy": share, "entropy": entropy, "score": share - 1e-3 * min(entropy, 1.0)}


# A compact Transformer of patches, to be trained on a data set of small images from nothing: it is its own teacher.
#
# With torch's own softmax, GELU and LayerNorm first; a copy of it then learns to answer alike with a plan's functions.

VIT = "vit"
IMAGES: dict[str, Any] = {
    "teacher_epochs": 40, "teacher_rate": 3e-3, "hidden_epochs": 0, "logit_epochs": 40, "logit_rate": 1e-3,
    "augment": 0, "patience": 10, "heads": 4,
}  # fmt: skip
"""Defaults for images: small models from nothing learn fast, and long."""

_ACROSS = 4  # patches in a row
_HIDDEN = 32  # features, unless `hidden` is given


def new_vit(data: Dataset, settings: DistillSettings) -> Loaded:
    """A ViT of 4 x 4 patches with random weights, drawn with the seed, and the processor that feeds it.

    Errors: DistillError for texts, or images that 4 x 4 patches do not cover.
    """
    images = data.train.inputs
    if not isinstance(images, Tensor) or images.shape[1] != images.shape[2] or images.shape[1] % _ACROSS:
        what = f"images of {images.shape[1]} x {images.shape[2]}" if isinstance(images, Tensor) else "texts"
        raise DistillError(f"{data.name}: holds {what}; the teacher vit takes square images of a multiple of {_ACROSS}")
    size, hidden = images.shape[1], settings.hidden or _HIDDEN
    model = vit_of(
        data.labels,
        settings.seed,
        image_size=size,
        patch_size=size // _ACROSS,
        hidden_size=hidden,
        num_hidden_layers=settings.layers or 1,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate or 2 * hidden,
    )
    return Loaded(
        f"{VIT} for {data.name}", Path(VIT), model, "image", pixel_processor(size), labels=dict(enumerate(data.labels))
    )


def vit_of(labels: Sequence[str], seed: int, **config: Any) -> nn.Module:
    """A ViT of transformers without dropout, with weights drawn from the seed. `config`: of its ViTConfig."""
    with huggingface() as transformers, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        chosen = transformers.ViTConfig(
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            id2label=dict(enumerate(labels)),
            label2id={name: i for i, name in enumerate(labels)},
            **config,
        )
        return transformers.ViTForImageClassification._from_config(chosen, attn_implementation="sdpa").eval()


def pixel_processor(side: int) -> Any:
    """What makes a model's input of an image file, the same numbers as `pixels`. None where the libraries for images
    are missing: the model then takes tensors only."""
    sides = {"height": side, "width": side}
    with huggingface() as transformers:
        try:
            return transformers.ViTImageProcessorPil(
                size=sides, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
            )
        except ImportError:
            return None


# Sentence embeddings of many texts, and how alike two models find pairs of them.


def embeddings_of(model: nn.Module, tokens: Tokens) -> Tensor:
    """A sentence encoder's embeddings [texts, H], as it pools them, in the order of the texts."""
    embeddings: list[Tensor] = [torch.empty(0)] * len(tokens)
    with torch.no_grad():
        for indices in in_order(tokens.lengths, 64):
            rows = model(**tokens.batch(indices)).sentence_embedding
            for i, row in zip(indices, rows, strict=True):
                embeddings[i] = row
    return torch.stack(embeddings)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """[pairs] of embeddings [pairs, H]."""
    return F.cosine_similarity(left, right, dim=-1)


def spearman(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation of two lists of numbers without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (left, right)])
    return float(torch.corrcoef(ranks)[0, 1])
