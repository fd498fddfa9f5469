"""A language model compiled for conversations, on disk: written once for a model and its options, then found again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...approximations import Plan
from ..artifacts import save
from ..artifacts.writing import check_free
from ..building import compile_beside, compile_folder, own_plan
from ..cached import cached, cached_lengths, is_compiled, marks_of
from ..compile import Logged, Progress, part_of
from ..loading.huggingface import LoadError
from ..loading.load import KINDS, Loaded, load, locate
from ..loading.speech import windowed
from ..weight_owners import PUBLIC, Weights
from .chat import SLOTS, compile_chat
from .decoder import GenerationError
from .encoder_decoder import compile_seq2seq


def compile_chat_folder(
    model: str | Path | Loaded,
    folder: str | Path,
    *,
    plan: Plan | str | None = None,
    system: str | None = None,
    slots: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """Compile a language model into `folder`, to answer token by token: DIR/server for its owner, DIR/client for all.

    model, plan    as `compile_folder`
    system, slots, progress, options    as `compile_chat`

    Errors: LoadError, GenerationError, ArtifactError, and those of `compile`.
    """
    check_free(Path(folder))
    progress = progress or Logged()
    loaded = model if isinstance(model, Loaded) else load(model)
    plan = own_plan(loaded.folder) if plan is None else plan
    compiled, chat = compile_chat(loaded, plan=plan, system=system, slots=slots, progress=progress, **options)
    part_of(progress, 1, 1)("write", 1, 1)
    return save(compiled, folder, loaded, chat=chat)


def compile_seq2seq_folder(
    model: str | Path | Loaded,
    folder: str | Path,
    *,
    plan: Plan | str | None = None,
    seconds: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Path:
    """The same of an encoder-decoder model, to read a text or a recording and to write about it.

    seconds    of audio that are heard at once (default: 5, or what the model hears)
    options    as of `compile_seq2seq`

    Errors: as `compile_chat_folder`.
    """
    check_free(Path(folder))
    progress = progress or Logged()
    loaded = windowed(model if isinstance(model, Loaded) else load(model), seconds)
    compiled, chat = compile_seq2seq(
        loaded, plan=own_plan(loaded.folder) if plan is None else plan, progress=progress, **options
    )
    part_of(progress, 1, 1)("write", 1, 1)
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
    weights: Weights | None = None,
    adapter: Path | None = None,
    adapters: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    first: Callable[[Path], None] | None = None,
) -> Path:
    """A folder with this model compiled so: `model` itself if compile wrote it, one in `cache`, or a new one there.
    `adapter`: to put on the model, as of `load`; `adapters`: to compile beside it, by name.
    `first`: as of `cached`.

    Errors: as `compile_chat_folder`.
    """
    if is_compiled(model):
        chosen = {"--plan": plan, "--system": system, "--window": window, "--reveal": reveal, "--embedding": embedding}
        chosen |= {"--weights": weights, "--adapter": adapter or adapters or None}
        if option := next((name for name, value in chosen.items() if value is not None), None):
            raise GenerationError(f"{model}: is compiled already; leave {option} out, or give the model's own folder")
        return Path(model).expanduser()
    options: dict[str, Any] = {"system": system, "slots": slots or (None if window else SLOTS), "window": window}
    options |= {
        "reveal": reveal or "scores",
        "embedding": embedding or "client",
        "weights": _of_base(weights, adapters),
    }

    def make(folder: Path, plan: Plan | str) -> Path:
        write = partial(compile_chat_folder, plan=plan, **options)
        return compile_beside(model, load(model, adapter), adapters or {}, folder, write, progress)

    return cached(model, cache, make, plan, options | marks_of(adapter, adapters), progress, first=first)


def _of_base(weights: Weights | None, adapters: Mapping[str, Path] | None) -> Weights | None:
    """A base beside adapters is as open as it is below them."""
    return PUBLIC if adapters and weights is None else weights


def talks(model: str | Path) -> bool:
    """Whether a model that is not loaded is a language model, by its configuration. Errors: LoadError."""
    _, place = locate(model)
    if place.is_file():
        return True
    try:
        kinds = json.loads((place / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    causal = tuple(ending for ending, kind in KINDS.items() if kind == "causal")
    return any(str(kind).endswith(causal) for kind in kinds)


def found_or_compiled_as_it_is(
    model: str | Path,
    cache: Path,
    *,
    plan: Plan | str | None = None,
    lengths: Sequence[int] | None = None,
    slots: int | None = None,
    weights: Weights | None = None,
    adapters: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    first: Callable[[Path], None] | None = None,
    loaded: Loaded | None = None,
    within: bool = False,
) -> Path:
    """The same of a model of any kind: a language model for conversations, every other one for whole texts, which are
    padded to `lengths` (default: as `compile_folder`). `slots`: tokens of a conversation. `loaded`: the model, where it
    is loaded already. `within`: a folder of the default lengths will do, if these are among them.

    Errors: as `compile_chat_folder`; LoadError for a model that takes no texts, or not so long ones.
    """
    if is_compiled(model):
        given = {"--lengths": lengths, "--tokens": slots, "--weights": weights, "--adapter": adapters}
        if option := next((name for name, value in given.items() if value), None):
            raise LoadError(f"{model}: is compiled already; leave {option} out, or give the model's own folder")
        return Path(model).expanduser()
    if talks(model):
        common: dict[str, Any] = {"plan": plan, "weights": weights, "adapters": adapters, "progress": progress}
        common["first"] = first
        return found_or_compiled(model, cache, slots=slots, **common)
    whose = _of_base(weights, adapters)
    options: dict[str, Any] = {"lengths": list(lengths) if lengths else None, "weights": whose}
    marks = marks_of(None, adapters)
    if within and set(lengths or ()) <= {*cached_lengths(model, cache, plan, options | {"lengths": None} | marks)}:
        options["lengths"] = None

    def make(folder: Path, plan: Plan | str) -> Path:
        taken = load(model) if loaded is None else loaded
        if taken.task.writes and taken.kind != "speech":
            raise LoadError(f"{model}: writes about a text, which the gateway has no route for; use run or query")
        if taken.task.medium is not None and not taken.task.writes:
            raise LoadError(f"{model}: takes {taken.task.medium.plural}; give a model of texts")
        write = partial(compile_seq2seq_folder if taken.task.writes else compile_folder, plan=plan, **options)
        return compile_beside(model, taken, adapters or {}, folder, write, progress)

    return cached(model, cache, make, plan, options | marks, progress, first=first)
