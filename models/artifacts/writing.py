"""Writing a compiled folder: a part is finished aside and then moved into place, so none is ever seen half-written."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ...errors import first_line
from ...files import sync
from ...versions import versions
from ..compile import Compiled
from ..data.dataset import columns_of
from ..encrypted import Chosen
from ..loading.task import Task
from ..program.program import Program
from .circuits import FILE, described, layouts
from .layout import (
    COMPILED,
    FORMAT,
    OF_PROGRAMS,
    PARTS,
    SECRET,
    VERSIONS,
    ArtifactError,
    contents_of,
    describe_files,
    length_folder,
)
from .tensors import Tensors, part_names

if TYPE_CHECKING:  # importing it takes seconds and memory that a server has no need of
    from ..generation.chat import Chat
    from ..loading.load import Loaded

_DRAFT = ".compiling-"


def save(
    compiled: Compiled | Mapping[int, Compiled],
    folder: str | Path,
    model: Loaded | None = None,
    circuits: Mapping[int, Chosen] | None = None,
    chat: Chat | None = None,
    parts: Collection[str] = OF_PROGRAMS,
) -> Path:
    """Write all parts into `folder`, a new or empty one; or one of an earlier compilation, whose parts are replaced.

    compiled   one, or several by length (`building.compile_lengths`)
    model      whose tokenizer or image processor, kind and labels the client gets; without it, it takes tensors only
    chat       of a model that answers token by token: what its client needs for that
    circuits   for encrypted queries: each length's circuit and parameters (models/encrypted.py)
    parts      those to write: the helper's alone has the programs, and so their price

    Errors: ArtifactError, after which the folder holds what it held before.
    """
    items = {text_length(compiled.program): compiled} if isinstance(compiled, Compiled) else dict(compiled)
    root = Path(folder)
    draft: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        check_free(root)
        for stale in root.glob(f"{_DRAFT}*"):  # of a compilation that was killed
            shutil.rmtree(stale, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=_DRAFT, dir=root))
        if "server" in parts:
            _write_server(items, draft / "server", model)
        if "client" in parts:
            _write_client(items, draft / "client", model, circuits or {})
            if chat is not None:
                chat.save(draft / "client")
        for number, chosen in (circuits or {}).items():
            for name in {"server", "client"}.intersection(parts):
                _write_json(length_folder(draft / name, number) / FILE, described(items[number].program, chosen))
        if "helper" in parts:
            _write_tensors(items, draft / "helper", lambda tensors, number: {})  # it is in the client's place
        for name in parts:
            _finish(items, draft / name, name)
        _swap(draft, root)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{getattr(error, 'filename', None) or root}: cannot be written ({first_line(error)}); "
            "free space or choose another folder"
        ) from None
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return root


def text_length(program: Program) -> int:
    """Tokens that a program takes; 0 if it does not take token ids."""
    shape = program.inputs.get("input_ids", ())
    return shape[-1] if len(shape) == 2 else 0


def _write_tensors(
    items: Mapping[int, Compiled], part: Path, own: Callable[[Tensors, int], dict[str, Any]], known: bool = True
) -> list[Path]:
    """Tensors, and each length's tensors.json: public constants, and what is a party's `own`. Returns the files of
    tensors. `known`: of a program's parts, only what all parties may have."""
    part.mkdir()
    tensors = Tensors()
    for number, compiled in items.items():
        names = {
            "constants": tensors.add(compiled.constants, ring=True),
            "parts": part_names(tensors, compiled, known),
            **own(tensors, number),
        }
        _write_json(length_folder(part, number) / "tensors.json", names)
    return tensors.write(part)


def _write_server(items: Mapping[int, Compiled], part: Path, model: Loaded | None) -> None:
    _write_tensors(items, part, lambda tensors, number: {"weights": tensors.add(items[number].weights, ring=True)})
    first = next(iter(items.values()))
    first.plan.save(part / "plan.json")
    about = {
        "name": first.program.model,
        "kind": model.kind if model else "",
        "parameters": model.parameters if model else None,
    }
    _write_json(part / "model.json", about)


def _write_client(
    items: Mapping[int, Compiled], part: Path, model: Loaded | None, circuits: Mapping[int, Chosen]
) -> None:
    """The released block, public constants, and what feeds the model. Nothing of the server's goes in here."""

    def released(tensors: Tensors, number: int) -> dict[str, Any]:
        return {
            "released": tensors.add(items[number].client_tensors, ring=False),
            "scales": items[number].client_scales,
            "levels": items[number].levels,
            "circuit": tensors.add(layouts(circuits[number][0]), ring=True) if number in circuits else {},
        }

    for file in _write_tensors(items, part, released, known=False):
        shutil.copymode(length_folder(part, next(iter(items))) / "tensors.json", file)  # nothing to hide in it
    first = next(iter(items.values()))
    task = model.task if model else Task(first.program.model, "tensors")
    about = {
        "name": task.name,
        "kind": task.kind,
        "pipeline": task.pipeline,
        "positions": task.positions,
        "labels": task.labels,
        "scores": task.scores,
        "plan": first.plan.name,
        "lengths": list(items),
        "columns": columns_of(model.folder) if model else None,
    }
    _write_json(part / "client.json", about)
    if task.processor is not None:
        task.processor.save_pretrained(part)


def _finish(items: Mapping[int, Compiled], part: Path, name: str) -> None:
    """Programs, and last of all versions.json, without which a part is none."""
    for number, compiled in items.items():
        length_folder(part, number).mkdir(parents=True, exist_ok=True)
        compiled.program.save(length_folder(part, number) / "program.json")
    about = {
        "format": FORMAT,
        "part": name,
        "versions": versions(),
        "programs": {str(number): compiled.program.hash() for number, compiled in items.items()},
        "files": describe_files(part),
    }
    for file in about["files"]:
        sync(part / file)  # a machine that goes down must not leave an empty file in its place
    _write_json(part / VERSIONS, about)
    sync(part / VERSIONS)


def check_free(root: Path) -> None:
    """Errors: ArtifactError unless a compiled model may be written into `root`: a new or empty folder, or that of an
    earlier compilation, without folders of somebody's own that are called as its parts."""
    if root.is_file():
        raise ArtifactError(f"{root}: is a file; give compile a new folder")
    if (contents := contents_of(root)) not in ("", COMPILED):
        raise ArtifactError(f"{root}: holds {contents}; give compile a new folder, such as {root}-compiled")
    for name in PARTS:
        part = root / name
        if part.exists() and not (part / VERSIONS).exists() and (not part.is_dir() or any(part.iterdir())):
            raise ArtifactError(f"{part}: is there already and is no compiled model; choose another folder")


def _swap(draft: Path, root: Path) -> None:
    """Move the finished parts into place. The server's secret stays, so that clients keep their masked weights."""
    with suppress(FileNotFoundError):
        os.link(root / "server" / SECRET, draft / "server" / SECRET)
    replaced = draft / "replaced"
    replaced.mkdir()
    for name in PARTS:
        if (root / name).exists():
            (root / name).rename(replaced / name)
        if (draft / name).exists():
            (draft / name).rename(root / name)
    sync(root)


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
