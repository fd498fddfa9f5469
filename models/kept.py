"""Where compiled models are kept, so that each is compiled once for its files, its options and our versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..approximations import Plan
from ..versions import versions
from .artifacts import ArtifactError, load_client
from .artifacts.layout import VERSIONS
from .building import own_plan
from .loading.load import locate


def compiled_already(model: str | Path) -> Path | None:
    """The folder itself, if compile wrote it."""
    given = Path(model).expanduser()
    return given if (given / "client").is_dir() or (given / VERSIONS).is_file() else None


def kept_folder(
    model: str | Path, cache: Path, plan: Plan | str | None, options: Mapping[str, Any]
) -> tuple[Path, Plan | str]:
    """The folder in `cache` for a model compiled so, there or not, and the plan: the model's own unless one is given.

    Errors: LoadError, PlanError.
    """
    name, place = locate(model)
    plan = own_plan(place) if plan is None else plan
    files = [place] if place.is_file() else sorted(place.glob("*.*"))
    marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    chosen = (Plan.preset(plan) if isinstance(plan, str) else plan).content_hash()  # what a preset is may change
    made = json.dumps([str(place), marks, chosen, options, versions("transformers", "torch")])
    return cache / "compiled" / f"{name.replace('/', '--')}-{hashlib.sha256(made.encode()).hexdigest()[:16]}", plan


def is_whole(folder: Path) -> bool:
    try:
        load_client(folder)
    except ArtifactError:
        return False
    return True
