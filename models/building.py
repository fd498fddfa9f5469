"""From a model to a compiled folder: calibrated once, then one program for each length, all with the same plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..approximations import Plan, calibrate
from ..approximations.plan import FILE_NAME
from .artifacts import save
from .calibration_texts import calibration_texts
from .compile import Compiled, compile
from .loading import Loaded, LoadError, load
from .task import image_files

LENGTHS = (32, 64, 128)
MOST_IMAGES = 64  # to calibrate on
Stage = Callable[[str], None]
Batches = list[dict[str, Tensor]]


def compile_folder(
    model: str | Path | Loaded,
    folder: str | Path,
    *,
    lengths: Sequence[int] | None = None,
    plan: Plan | str | None = None,
    calibration: Sequence[Any] | None = None,
    embedding: str = "client",
    outputs: list[str] | None = None,
    stage: Stage | None = None,
) -> Path:
    """Compile a model into `folder`: DIR/server for its owner, DIR/client for everyone who may ask it.

    model        a folder that save_pretrained wrote, a Hugging Face id, or what `load` returned
    lengths      numbers of tokens; a text is padded to the least that fits (default: those of 32, 64, 128 that the
                 model takes). A model of images has none
    plan         a preset's name, or a plan (calibrated or not); default: `own_plan`
    calibration  typical texts (default: built-in ones), or images: files, folders or PIL images. Never a user's
    embedding    "client": the embedding block is released to the client; "private": it stays with the server
    outputs      names of the model's outputs to compute and reveal (default: all)
    stage        is told what is being done

    Errors: LoadError, ArtifactError, and those of `compile`.
    """
    loaded = model if isinstance(model, Loaded) else load(model)
    plan = own_plan(loaded) if plan is None else plan
    options: dict[str, Any] = {"embedding": embedding, "outputs": outputs, "stage": stage}
    if loaded.kind == "image":
        if lengths:
            raise LoadError(f"{loaded.name}: takes images, which have no lengths; leave --lengths out")
        found = {0: compile_images(loaded, calibration, plan, **options)}
    else:
        found = compile_lengths(loaded, lengths or default_lengths(loaded), plan, texts=calibration, **options)
    if stage:
        stage("write")
    return save(found, folder, loaded)


def own_plan(loaded: Loaded) -> Plan | str:
    """The plan beside a model's weights, because it was trained with it; else `faithful`. Errors: PlanError."""
    return Plan.load(loaded.folder) if (loaded.folder / FILE_NAME).is_file() else "faithful"


def default_lengths(loaded: Loaded) -> list[int]:
    most = loaded.positions
    return [length for length in LENGTHS if most is None or length <= most] or [most or LENGTHS[0]]


def compile_lengths(
    loaded: Loaded,
    lengths: Iterable[int],
    plan: Plan | str = "faithful",
    *,
    texts: Sequence[str] | None = None,
    embedding: str = "client",
    outputs: list[str] | None = None,
    stage: Stage | None = None,
) -> dict[int, Compiled]:
    """A text model's program for each length, the shortest first. `texts` calibrate them all, cut to each length.

    One plan serves all lengths, so that a text's answer hardly depends on what it is padded to, and weights that are
    encoded alike are stored and sent once.
    """
    wanted = sorted(set(lengths))
    for length in wanted:
        if length < 1:
            raise LoadError(f"length {length}: give numbers of tokens, 1 or more")
        if loaded.positions is not None and length > loaded.positions:
            raise LoadError(f"length {length}: the model takes {loaded.positions} tokens; choose a lower one")
    batches = {length: _texts(loaded, length, texts) for length in wanted}
    plan = _calibrated(loaded, plan, [batch for some in batches.values() for batch in _together(some)], stage)
    found = {}
    for length in wanted:
        say = _labelled(stage, f"{length} tokens: " if len(wanted) > 1 else "")
        found[length] = compile(
            loaded.model, batches[length], plan, embedding=embedding, outputs=outputs, progress=say, name=loaded.name
        )
    return found


def compile_images(
    loaded: Loaded,
    images: Sequence[Any] | None,
    plan: Plan | str = "faithful",
    *,
    embedding: str = "client",
    outputs: list[str] | None = None,
    stage: Stage | None = None,
) -> Compiled:
    """A model of images, calibrated on `images`: files, folders of them, or PIL images."""
    chosen: list[Any] = []
    for item in images or ():
        chosen += image_files([Path(item)]) if isinstance(item, str | Path) else [item]
    if not chosen:
        raise LoadError(f"{loaded.name}: takes images; give some typical ones to calibrate on (--calibrate FOLDER)")
    step = max(1, len(chosen) / MOST_IMAGES)
    chosen = [chosen[int(i * step)] for i in range(min(MOST_IMAGES, len(chosen)))]
    batches = [loaded.encode_image(image) for image in chosen]
    plan = _calibrated(loaded, plan, _together(batches), stage)
    return compile(loaded.model, batches, plan, embedding=embedding, outputs=outputs, progress=stage, name=loaded.name)


def _texts(loaded: Loaded, length: int, texts: Sequence[str] | None) -> Batches:
    most = 60 if length <= 32 else 40 if length <= 128 else 20
    chosen = list(texts) if texts else calibration_texts(most)
    return [loaded.encode(text, length, truncate=True) for text in chosen]


def _calibrated(loaded: Loaded, plan: Plan | str, batches: Batches, stage: Stage | None) -> Plan:
    if isinstance(plan, Plan) and plan.ranges:
        return plan
    if stage:
        stage("calibrate")
    return calibrate(loaded.model, batches, plan)


def _together(batches: Sequence[Mapping[str, Tensor]], rows: int = 16) -> Batches:
    """The same inputs in fewer batches of several rows: quicker, and the ranges are the same."""
    groups = [batches[start : start + rows] for start in range(0, len(batches), rows)]
    return [{name: torch.cat([item[name] for item in group]) for name in group[0]} for group in groups]


def _labelled(stage: Stage | None, label: str) -> Stage | None:
    return None if stage is None else lambda name: stage(label + name)
