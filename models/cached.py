"""Models that were compiled before: found again by their files, the options, and the versions that compiled them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..approximations import Plan
from ..versions import versions
from .artifacts import ArtifactError, load_client
from .artifacts.layout import VERSIONS, parts_of, read_json, read_programs
from .artifacts.layout import versions as versions_of
from .building import own_plan
from .compile import Progress, part_of
from .delegated import is_delegated
from .generation.rows import room
from .loading.ctranslate2 import parts_beside
from .loading.huggingface import GGUF_PACKAGES, LoadError
from .loading.load import locate
from .loading.packaged import PACKAGED, packaged_students
from .loading.students import REPORT
from .loading.task import WRITTEN
from .program.program import ProgramError

PRICE = "price alone"  # of a model that was priced, and is not compiled yet
COMPILED = "compiled"  # the folder of the cache


def is_compiled(model: str | Path) -> bool:
    """Whether `model` names what compile wrote, DIR or DIR/client."""
    given = Path(model).expanduser()
    return (given / "client").is_dir() or (given / VERSIONS).is_file()


def cached(
    model: str | Path,
    cache: Path,
    make: Callable[[Path, Plan | str], Path],
    plan: Plan | str | None,
    options: Mapping[str, Any],
    progress: Progress | None = None,
    read: Callable[[Path], object] = load_client,
    first: Callable[[Path], None] | None = None,
) -> Path:
    """The folder in `cache` with this model compiled so, which `make(folder, plan)` writes if it is not there, or to
    another folder, whose path it returns. `options`: whatever else makes a difference. `plan` None: the
    model's own, else faithful. `read`: the part that has to be there. `first`: called with the model's folder or file
    before it is compiled. The folder's own time is that of its last use.

    Errors: LoadError, and those of `make`.
    """
    part_of(progress, 0, 0)("the model", 0, 1)
    folder, place, plan = _named(model, cache, plan, options)
    try:
        read(folder)
        with suppress(OSError):  # of somebody else
            os.utime(folder)
    except (ArtifactError, ProgramError):  # none, a damaged one, or one of another version
        if first is not None:
            first(place)
        return make(folder, plan)
    return folder


def cached_lengths(model: str | Path, cache: Path, plan: Plan | str | None, options: Mapping[str, Any]) -> list[int]:
    """What the folder of `cached` with these is compiled for; empty: there is none yet. Errors: LoadError."""
    try:
        return list(read_json(_named(model, cache, plan, options)[0] / "client" / "client.json")["lengths"])
    except (ArtifactError, KeyError):
        return []


def _named(
    model: str | Path, cache: Path, plan: Plan | str | None, options: Mapping[str, Any]
) -> tuple[Path, Path, Plan | str]:
    """(The folder in `cache`, that or the file of the model itself, its plan.) Errors: LoadError."""
    name, place = locate(model)
    plan = own_plan(place) if plan is None else plan
    return cache / COMPILED / _key(name, place, plan, options), place, plan


def _key(name: str, place: Path, plan: Plan | str, options: Mapping[str, Any]) -> str:
    marks = _marks(place)
    chosen = (Plan.preset(plan) if isinstance(plan, str) else plan).content_hash()  # what a preset is may change
    description = json.dumps(
        [str(place), marks, chosen, dict(sorted(options.items())), versions("transformers", "torch"), _code()]
    )
    return f"{name.replace('/', '--')}-{hashlib.sha256(description.encode()).hexdigest()[:16]}"


def _marks(place: Path) -> list[tuple[str, int, int]]:
    files = (
        [place] if place.is_file() else [file for folder in parts_beside(place) for file in sorted(folder.glob("*.*"))]
    )
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def marks_of(adapter: Path | None, beside: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Among the options of `cached`: that this adapter is on and those are beside the model, as they are now."""
    folders = ({} if adapter is None else {"": adapter}) | dict(beside or {})
    marks = {name: [str(folder.absolute()), _marks(folder.expanduser())] for name, folder in folders.items()}
    return {"adapters": marks} if marks else {}


def _code() -> int:
    """When the compiler was changed last, which its developers do within a version."""
    rooms = [Path(__file__).parents[1] / room for room in ("approximations", "models", "protocols")]
    return max(file.stat().st_mtime_ns for room in rooms for file in room.rglob("*.py"))


@dataclass(frozen=True)
class KnownModel:
    """A model on this machine. `lengths`: tokens of a text that it is compiled for, or of a conversation; empty: it is
    not compiled yet, or takes images or recordings. `task`: what it answers, or `PRICE`. `used`: seconds since 1970, of
    what was compiled. `problem`: why it cannot be used, and the remedy. `likeness`: of a packaged student's embeddings
    to its teacher's, on texts of its own kind and of another."""

    name: str
    task: str = ""
    plan: str = ""
    lengths: tuple[int, ...] = ()
    bytes: int = 0
    where: str = ""
    used: float | None = None
    problem: str = ""
    likeness: str = ""


def known_models(cache: Path) -> list[KnownModel]:
    """What packages bring, and what was compiled into `cache`. Sizes and names are as written: nothing is checked."""
    return [*(_packaged(name, task) for name, task in PACKAGED.items()), *compiled_models(cache)]


def compiled_models(cache: Path) -> list[KnownModel]:
    """What was compiled into `cache`."""
    folders = sorted((cache / COMPILED).glob("[!.]*")) if (cache / COMPILED).is_dir() else []
    changed = _code()
    return [_compiled(folder, changed) for folder in folders]


def _packaged(name: str, task: str) -> KnownModel:
    try:
        _, place = locate(name, join=False)
    except LoadError as error:
        return KnownModel(name, task, problem=str(error).removeprefix(f"{name}: "))
    in_folders = (file for part in parts_beside(place) for file in part.rglob("*"))
    files = GGUF_PACKAGES[name]() if name in GGUF_PACKAGES else in_folders
    plan = own_plan(place)
    chosen = "" if isinstance(plan, str) else plan.name
    size = sum(file.stat().st_size for file in files if file.is_file())
    return KnownModel(name, task, chosen, bytes=size, where=str(place), likeness=_likeness(name))


def _likeness(name: str) -> str:
    """As it was measured when the student was packaged, with all pairs of texts."""
    if (folder := packaged_students().get(name)) is None:
        return ""
    own, other = json.loads((folder / REPORT).read_text(encoding="utf-8"))["likeness"].items()
    shown = [f"{figures['spearman']:.2f} on {texts}" for texts, figures in (own, other)]
    return f"Spearman with its teacher {shown[0]}, the kind it is trained on; {shown[1]}, another kind"


def _compiled(folder: Path, changed: int) -> KnownModel:
    used = folder.lstat().st_mtime
    try:
        parts = parts_of(folder)
        size = sum(file["bytes"] for part in parts.values() for file in versions_of(part)["files"].values())
        part = parts.get("client", next(iter(parts.values())))
        if is_delegated(part):
            about = read_json(part / "client.json")
            lengths = tuple(filter(None, about["lengths"]))
            problem = _outdated(part, changed)
            return KnownModel(about["name"], about["pipeline"], "", lengths, size, str(folder), used, problem)
        programs, problem = read_programs(part), _outdated(part, changed)
        if "client" not in parts:
            name = next(iter(programs.values())).model
            return KnownModel(name, PRICE, "", tuple(filter(None, programs)), size, str(folder), used, problem)
        about = read_json(part / "client.json")
        rooms = {room(program) for program in programs.values() if program.parts}
        lengths = tuple(rooms or (length for length in about["lengths"] if length))
        task = "text-generation" if rooms and about["pipeline"] not in WRITTEN else about["pipeline"]
        return KnownModel(about["name"], task, about["plan"], lengths, size, str(folder), used, problem)
    except (ArtifactError, ProgramError, KeyError, StopIteration) as error:
        problem = str(error).partition(": ")[2] or "is damaged; compile again"
        return KnownModel(name_of(folder), where=str(folder), used=used, problem=problem)


def name_of(folder: Path) -> str:
    """The name that a folder of the cache begins with."""
    return folder.name.rpartition("-")[0] or folder.name


def is_found_again(folder: Path) -> bool:
    """Whether `folder` of the cache has a name that `cached` gives."""
    return re.fullmatch(r".+-[0-9a-f]{16}", folder.name) is not None


def _outdated(part: Path, changed: int) -> str:
    """Why `cached` finds this part no more, if its name is of those that it gives."""
    now, compiled = versions(), versions_of(part).get("versions", {})
    if not is_found_again(part.parent):
        return ""
    if others := [f"{name} {number}" for name, number in compiled.items() if now.get(name) != number]:
        return f"was compiled with {', '.join(others)}; it is compiled again when it is used"
    if (part / VERSIONS).stat().st_mtime_ns < changed:
        return "was compiled before Blindformer was installed anew; it is compiled again when it is used"
    return ""
