"""Steps that several commands take: set up, read a plan, load a model, compile it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ...errors import BlindformerError
from ...levels import slow
from ..launch.fork_server import shared
from .items import read_lines
from .options import PRIVATE_PLANS
from .output import note
from .progress import Phases


@contextmanager
def loading(threads: int | None = None, notes: int = 2, parties: bool = False) -> Iterator[Phases]:
    """The progress of a command, in its phase `load`: libraries come now, to compute on so many threads.

    More threads than cores that are free make torch many times slower. `parties`: some will be started on this machine,
    whose libraries come beside the command's own.
    """
    forks = shared() if parties else None
    with Phases() as phases:
        phases.begin("load", notes)
        if notes > 1:
            phases.note("load", "libraries")
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
            _note_slow()
        yield phases
    del forks  # held until here


@contextmanager
def compiling(phases: Phases) -> Iterator[Callable[[str, int, int], None]]:
    """The phase `compile`, which is told how much of it is done. Ctrl-C and SIGTERM end it, and the process, in a line:
    what was measured is kept (models/unfinished.py)."""
    phases.begin("compile")
    try:
        yield phases.of("compile")
    except (KeyboardInterrupt, SystemExit) as stop:
        note("stopped; the same command goes on from what is compiled so far")
        raise SystemExit(stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT) from None
    phases.end("compile")


@cache
def _note_slow() -> None:
    """Once a process."""
    if why := slow():
        note("; ".join(why))


def load_model(phases: Phases, model: str, plan: str | None = None) -> tuple[Any, Any]:
    """The model, and the plan: as named, else the model's own, else faithful. Ends the phase's part on the model.

    Errors: PlanError, LoadError.
    """
    from ...models.building import own_plan
    from ...models.loading.load import load

    chosen = read_plan(plan) if plan else None
    phases.note("load", "the model")
    loaded = load(model)
    return loaded, own_plan(loaded.folder) if chosen is None else chosen


def compiler(
    phases: Phases, model: str, loaded: Any, length: int, plan: Any, calibrate: Path | None, **options: Any
) -> Callable[[int], Any]:
    """`make(rows)` compiles `model`, which is loaded, for so many texts or images of one query; for texts once, and
    takes it from the user's cache afterwards.

    Errors: BlindformerError for unreadable texts.
    """
    from ...models.artifacts import ArtifactError, save
    from ...models.artifacts.compiled import load_compiled
    from ...models.building import compile_files
    from ...models.cached import cached
    from ..config import load_settings
    from ..local.compare import compile_text

    progress = phases.of("compile")
    if loaded.task.medium is not None:
        files = [calibrate] if calibrate else None
        return lambda rows: compile_files(loaded, files, plan, rows=rows, samples=length, progress=progress, **options)
    texts, cache = read_texts(calibrate), load_settings().client.cache

    def make(rows: int) -> Any:
        made: list[Any] = []

        def write(folder: Path, plan: Any, kept: Any) -> Path:
            given = {"texts": texts, "rows": rows, "progress": progress, "kept": kept, **options}
            made.append(compile_text(loaded, length, plan, **given))
            return save(made[0], folder, loaded)

        named = {"length": length, "rows": rows, "texts": texts, **options}
        try:
            return load_compiled(cached(model, cache, write, plan, named))
        except ArtifactError:
            if not made:
                raise
            return made[0]  # a cache that cannot be written is no reason to answer nothing

    return make


def refuse(given: Mapping[str, object], why: str) -> None:
    """Errors: BlindformerError if one of these options was given (None: it was not)."""
    if found := [name for name, value in given.items() if value is not None]:
        raise BlindformerError(f"{found[0]}: {why}")


def read_plan(name: str, private: bool = True) -> Any:
    """A preset's name as it is, or the plan in a JSON file. `private`: one that runs on secrets. Errors: PlanError."""
    from ...approximations import Plan
    from ...approximations.errors import PlanError

    path = Path(name)
    if path.suffix != ".json":
        Plan.preset(name)  # a miss names the presets, before anything slow happens
        if private and name not in PRIVATE_PLANS:
            raise PlanError(
                f"plan {name}: is torch's own functions, which do not run on secrets; choose one of "
                f"{', '.join(PRIVATE_PLANS)}"
            )
        return name
    try:
        return Plan.model_validate_json(path.read_text())
    except OSError as error:
        raise PlanError(f"{name}: cannot be read ({error.strerror}); give a preset or a plan's JSON file") from None
    except ValueError as error:
        raise PlanError(f"{name}: is no plan ({str(error).splitlines()[0]}); write it with Plan.save") from None


def warn_untrained(plan: Any, own: Any = None) -> None:
    """Say, on stderr, when a plan's answers mean nothing for a model that was not trained with its functions.

    own: the plan in the model's folder, which `distill` and `federate` leave there: the one it was trained with.
    """
    if plan.needs_distillation() and not (own is not None and own.same_functions(plan)):
        note(
            f"plan {plan.name} is for models trained with it (distill, federate); with other weights its answers are "
            "far off"
        )


def read_system(path: Path) -> str:
    """A system prompt. Errors: BlindformerError."""
    return read_whole("--system", path).strip()


def read_whole(option: str, path: Path, encoding: str = "utf-8") -> str:
    """The text of a file that an option names. Errors: BlindformerError."""
    try:
        return path.read_text(encoding=encoding).removeprefix("\ufeff")
    except LookupError:
        raise BlindformerError(f"--encoding {encoding}: is not known; give one such as utf-8 or latin-1") from None
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or f"is not {encoding}"
        raise BlindformerError(f"{option} {path}: cannot be read ({reason}); give a text file") from None


def read_texts(path: Path | None) -> list[str] | None:
    """One text a line; None if there is no file."""
    return None if path is None else [line for line in read_lines(path) if line]


def listed(names: str | None) -> list[str] | None:
    """Names with commas between them; None if none are given."""
    return [name.strip() for name in names.split(",") if name.strip()] if names else None
