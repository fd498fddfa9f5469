"""A language model compiled for conversations, on disk: written once for a model and its options, then found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...approximations import Plan
from ...versions import versions
from ..artifacts import ArtifactError, load_client, save
from ..artifacts.layout import VERSIONS
from ..building import own_plan
from ..loading.load import Loaded, load, locate
from ..program.program import ProgramError
from .chat import SLOTS, compile_chat
from .decoder import GenerationError

Stage = Callable[[str], None]


def compile_chat_folder(
    model: str | Path | Loaded,
    folder: str | Path,
    *,
    plan: Plan | str | None = None,
    system: str | None = None,
    slots: int | None = None,
    stage: Stage | None = None,
    **options: Any,
) -> Path:
    """Compile a language model into `folder`, to answer token by token: DIR/server for its owner, DIR/client for all.

    model, plan    as `compile_folder`
    system, slots, options    as `compile_chat`

    Errors: LoadError, GenerationError, ArtifactError, and those of `compile`.
    """
    loaded = model if isinstance(model, Loaded) else load(model)
    plan = own_plan(loaded.folder) if plan is None else plan
    compiled, chat = compile_chat(loaded, plan=plan, system=system, slots=slots, stage=stage, **options)
    if stage:
        stage("write")
    return save(compiled, folder, loaded, chat=chat)


def found_or_compiled(
    model: str | Path,
    cache: Path,
    *,
    plan: Plan | str | None = None,
    system: str | None = None,
    slots: int | None = None,
    window: int | None = None,
    reveal: str | None = None,
    embedding: str | None = None,
    stage: Stage | None = None,
) -> Path:
    """A folder with this model compiled so: `model` itself if compile wrote it, one in `cache`, or a new one there.

    Errors: as `compile_chat_folder`.
    """
    given = Path(model).expanduser()
    if (given / "client").is_dir() or (given / VERSIONS).is_file():
        chosen = {"--plan": plan, "--system": system, "--window": window, "--reveal": reveal, "--embedding": embedding}
        if found := next((name for name, value in chosen.items() if value is not None), None):
            raise GenerationError(f"{model}: is compiled already; leave {found} out, or give the model's own folder")
        return given
    if stage:
        stage("the model")
    name, place = locate(model)
    plan = own_plan(place) if plan is None else plan
    options = {"system": system, "slots": slots or (None if window else SLOTS), "window": window}
    options |= {"reveal": reveal or "scores", "embedding": embedding or "client"}
    folder = cache / "compiled" / _key(name, place, plan, options)
    try:
        load_client(folder)
        return folder
    except (ArtifactError, ProgramError):  # none, or of another version
        return compile_chat_folder(load(model), folder, plan=plan, stage=stage, **options)


def _key(name: str, place: Path, plan: Plan | str, options: dict[str, Any]) -> str:
    """Names the model's files, the options, and the versions that they were compiled with."""
    files = [place] if place.is_file() else sorted(place.glob("*.*"))
    marks = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    chosen = (Plan.preset(plan) if isinstance(plan, str) else plan).content_hash()  # what a preset is may change
    made = json.dumps([str(place), marks, chosen, options, versions("transformers", "torch")])
    return f"{name}-{hashlib.sha256(made.encode()).hexdigest()[:16]}"
