"""Sentence encoders on disk, in the form of sentence-transformers: modules.json, 1_Pooling, and perhaps a linear head.

A head is a module Dense without an activation, with as many outputs as config.json has labels: it makes a classifier.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import LoadError
from .heads import SentenceClassifier, SentenceEncoder

_COMPUTED = (".Transformer", ".Pooling", ".Normalize")  # the modules of a sentence encoder that are computed here
_POOLING, _HEAD = "1_Pooling", "2_Dense"
_MODES = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens"}
_IDENTITY = "torch.nn.modules.linear.Identity"


def is_sentence_encoder(folder: Path) -> bool:
    return (folder / _POOLING).is_dir() or (folder / "modules.json").is_file()


def pooling_of(folder: Path) -> str:
    """mean or cls. Errors: LoadError for any other, or a module that is not computed here."""
    for module in _modules(folder):
        if not module.endswith(_COMPUTED) and not (module.endswith(".Dense") and (folder / _HEAD).is_dir()):
            raise LoadError(
                f"{folder}: ends with a module {module}, which is not supported; give an encoder without it"
            )
    try:
        settings: Mapping[str, Any] = json.loads((folder / _POOLING / "config.json").read_text())
    except (OSError, ValueError):
        return "mean"
    modes = [mode for mode, on in settings.items() if mode.startswith("pooling_mode_") and on is True]
    if modes == [_MODES["cls"]]:
        return "cls"
    if modes in ([], [_MODES["mean"]]):
        return "mean"
    raise LoadError(f"{folder}: pools with {', '.join(modes)}; only the mean and the first token are supported")


def head_of(folder: Path, labels: int) -> nn.Linear | None:
    """The linear head, None where there is none. `labels`: of config.json.

    Errors: LoadError for a head with an activation, other outputs than labels, or a damaged file.
    """
    if not (folder / _HEAD).is_dir():
        return None
    try:
        settings = json.loads((folder / _HEAD / "config.json").read_text())
        weights = load_file(folder / _HEAD / "model.safetensors")
        head = nn.Linear(weights["linear.weight"].shape[1], weights["linear.weight"].shape[0])
        head.load_state_dict({name.removeprefix("linear."): value for name, value in weights.items()})
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise LoadError(f"{folder / _HEAD}: cannot be read ({error}); copy it again, or train the head again") from None
    if settings.get("activation_function") != _IDENTITY or head.out_features != labels:
        raise LoadError(
            f"{folder / _HEAD}: is no linear head of {labels} labels; give an encoder without it, or train one: "
            "blindformer head"
        )
    return head


def save_sentence_encoder(model: SentenceEncoder, folder: Path) -> None:
    """Write the encoder, its pooling and its head, if it has one, as sentence-transformers reads them."""
    model.model.save_pretrained(folder)  # type: ignore[operator]
    width = getattr(model.config, "hidden_size")  # noqa: B009 (a config of any class)
    modules = [("", "Transformer"), (_POOLING, "Pooling")]
    (folder / _POOLING).mkdir(exist_ok=True)
    _write(
        folder / _POOLING / "config.json",
        {"word_embedding_dimension": width, **{mode: name == model.pooling for name, mode in _MODES.items()}},
    )
    if isinstance(model, SentenceClassifier):
        head = model.classifier
        modules.append((_HEAD, "Dense"))
        (folder / _HEAD).mkdir(exist_ok=True)
        sizes = {"in_features": width, "out_features": head.out_features, "bias": True}
        _write(folder / _HEAD / "config.json", {**sizes, "activation_function": _IDENTITY})
        weights = {f"linear.{name}": value.detach().contiguous() for name, value in head.named_parameters()}
        save_file(weights, folder / _HEAD / "model.safetensors", {"format": "pt"})
    rows = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", rows)


def _modules(folder: Path) -> list[str]:
    """The classes that a sentence encoder is made of."""
    try:
        return [str(module["type"]) for module in json.loads((folder / "modules.json").read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError):
        raise LoadError(f"{folder / 'modules.json'}: cannot be read; copy it again, or remove it") from None


def _write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
