"""A student of a packaged model, stored as what differs from it: weights of 8 bits as integers.

A folder holds student.safetensors, plan.json and config.json. Its tensors are named as the loaded model's parameters. A
weight W [outputs, inputs] of few bits is diag(1 / gain) n 2^e: integers n (int8), exponents e [outputs, 1] (int8) and,
where a norm's gain is folded into it on secrets, that gain [inputs]: so it is stored as it is computed with, exactly.
Its config.json says how many tokens the student takes, which may be fewer than the packaged model does: a plan's
approximations hold near the lengths that the student was trained with. The students that come with this package are the
folders of models/students.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...approximations import Plan
from ...approximations.calibrate import in_force
from ...approximations.linear import AffineParameters, quantise, unfold
from ...approximations.pooling import layer_count
from ..distillation_settings import DistillError
from .huggingface import LoadError
from .layers import narrowed, widths, with_layers
from .packaged import STUDENT

REPORT = "distillation.json"
_EXPONENTS, _GAIN = ".exponents", ".gain"
_LAYERS, _WIDTHS = "layers", "widths"


def is_student(folder: Path) -> bool:
    return (folder / STUDENT).is_file()


def save_student(
    folder: Path,
    model: nn.Module,
    base: str,
    exact: nn.Module,
    plan: Plan,
    example: dict[str, Tensor],
    layers: list[int],
) -> None:
    """Write what differs between a model that computes with a plan and the packaged one, `exact`, that `base` names.

    example: a batch of the model's inputs, to see which norm each linear layer reads.
    layers: which of the packaged model's layers the student's are.
    """
    exact = narrowed(with_layers(exact, layers), *widths(model))
    theirs, ours = dict(exact.named_parameters()), {n: p.detach().clone() for n, p in model.named_parameters()}
    kept, tensors = [name for name, value in ours.items() if not torch.equal(value, theirs[name])], {}
    for path, norm in _weights_read(model, plan, example).items():
        name, bias = f"{path}.weight", f"{path}.bias"
        if name not in kept or bias not in kept:
            continue
        weight, gain = ours.pop(name), None if norm is None else norm.gain.detach()
        integers, exponents = quantise(weight if gain is None else weight * gain, 8)
        tensors |= {name: integers.to(torch.int8), name + _EXPONENTS: exponents.to(torch.int8)}
        if gain is not None:
            tensors[name + _GAIN] = gain.float().clone()  # one of several layers that read a norm
        if norm is not None and norm.shift is not None:  # computed with the weight as it was before it was rounded
            ours[bias] += (weight - _weight(tensors, name)) @ norm.shift.detach()
    tensors |= {name: ours[name].float().contiguous() for name in kept if name in ours}
    shape = {_LAYERS: json.dumps(layers), _WIDTHS: json.dumps(widths(model))}
    about = {"base": base, "digest": _digest(exact, kept), **shape}
    save_file(tensors, folder / STUDENT, about)


def read_student(folder: Path, load: Callable[[str], Any]) -> Any:
    """What `load` makes of the packaged model, with the student's weights in it.

    Errors: LoadError for a damaged file, or if the package holds other weights than the student's teacher had.
    """
    file = folder / STUDENT
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
        base, digest, kept = about["base"], about["digest"], _layers(about.get(_LAYERS))
        heads, intermediate = _widths(about.get(_WIDTHS))
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise LoadError(f"{file}: is damaged ({error}); copy it again, or install blindformer again") from None
    loaded = load(base)
    count = layer_count(loaded.model) or 0
    if kept and kept != list(range(count)) and kept[-1] < count:
        loaded = replace(loaded, model=with_layers(loaded.model, kept))
    try:
        loaded = replace(loaded, model=narrowed(loaded.model, heads, intermediate))
    except DistillError as error:
        raise LoadError(f"{file}: is damaged ({error}); copy it again, or install blindformer again") from None
    parameters = dict(loaded.model.named_parameters())
    names = [name for name in tensors if not name.endswith((_EXPONENTS, _GAIN))]
    if _digest(loaded.model, names) != digest or not set(names) <= set(parameters):
        raise LoadError(
            f"{folder.name}: the package of {base} has other weights than its teacher; install the version "
            "of blindformer[demo]"
        )
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(_weight(tensors, name))
    limits = (loaded.positions, _positions(folder / "config.json"))
    positions = min((limit for limit in limits if limit is not None), default=None)
    if positions is not None:
        loaded.processor.model_max_length = positions  # of what is trained on it, too
    return replace(loaded, positions=positions)


def trained_length(folder: Path) -> int:
    """Tokens that a student's texts were cut to in training; 0 of any other model, and of one that does not say it."""
    try:
        return int(json.loads((folder / REPORT).read_text(encoding="utf-8"))["settings"]["length"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _layers(text: str | None) -> list[int]:
    """Which of the packaged model's layers a student's are; none: all. Errors: ValueError."""
    kept = json.loads(text or "[]")
    if not isinstance(kept, list) or any(type(n) is not int or n < 0 for n in kept) or kept != sorted(set(kept)):
        raise ValueError(f"layers {text}")
    return kept


def _widths(text: str | None) -> tuple[int | None, int | None]:
    """A student's attention heads and features of its feed-forward; None: the packaged model's. Errors: ValueError."""
    heads, intermediate = json.loads(text or "[null, null]")
    if any(width is not None and (type(width) is not int or width < 1) for width in (heads, intermediate)):
        raise ValueError(f"widths {text}")
    return heads, intermediate


def _positions(file: Path) -> int | None:
    """Errors: LoadError."""
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("max_position_embeddings")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise LoadError(f"{file}: is damaged ({error}); copy it again, or install blindformer again") from None


def _weight(tensors: dict[str, Tensor], name: str) -> Tensor:
    value = tensors[name]
    if name + _EXPONENTS not in tensors:
        return value
    folded = value * torch.exp2(tensors[name + _EXPONENTS].float())
    gain = tensors.get(name + _GAIN)
    return folded if gain is None else unfold(folded, gain)


def _weights_read(model: nn.Module, plan: Plan, example: dict[str, Tensor]) -> dict[str, AffineParameters | None]:
    """The layers whose weights the plan gives 8 bits, by path, with the norm that they read."""
    norms: dict[str, AffineParameters | None] = {}

    def keep(path: str, x: Tensor, weight: Tensor, axis: int, norm: AffineParameters | None, bits: int) -> None:
        if bits == 8 and axis == 0:
            norms[path] = norm

    with in_force(model, plan) as overrides, torch.no_grad():
        overrides.reader = keep
        try:
            model(**example)
        finally:
            overrides.reader = None
    return norms


def _digest(model: nn.Module, without: Collection[str]) -> str:
    """Of the weights that the student has from the packaged model."""
    return weights_digest((name, value) for name, value in model.named_parameters() if name not in without)


def weights_digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of tensors and their names, in their order."""
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(name.encode())
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
