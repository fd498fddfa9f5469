"""Where things are in a compiled folder, and how a part is checked before anything in it is believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ...protocols.errors import BlindformerError
from ..program.program import Program

FORMAT = 4  # of the folder; a Program has a format of its own. 4: whole digests of tensors
OF_PROGRAMS = ("server", "client", "helper")
PARTS = (*OF_PROGRAMS, "dealer")  # the dealer has one of a delegated model alone
VERSIONS = "versions.json"
TENSORS = "tensors.safetensors"
ADAPTERS = "adapters"  # the folder of those beside a base (adapters.py)
APART = "tensors"  # the folder of the large tensors, each in a file of its own
LARGE = 2**16  # bytes from which on it is
SECRET = "secret.key"  # made by the server at first use (session/masked_weights.py): not in versions.json
MODEL_FILE = "config.json"
COMPILED = "a compiled model"
_CHUNK = 2**20

T = TypeVar("T")


class ArtifactError(BlindformerError):
    """A compiled folder that cannot be written or read."""


def find_part(folder: str | Path, name: str, checked: str | None = None) -> Path:
    """The part `name` of a compiled folder, given as DIR or as DIR/name, whole and of this format. `checked`: files
    whose names end so have their sizes, and the caller checks what they hold.

    Errors: ArtifactError.
    """
    path = part_place(folder, name)
    about = versions(path)
    if about.get("part") != name:
        raise ArtifactError(f"{path}: is the {about.get('part')}'s part; give the {name}'s")
    for file, expected in about["files"].items():
        _check_file(path / file, expected, checked is not None and file.endswith(checked))
    return path


def part_place(folder: str | Path, name: str) -> Path:
    """Where the part `name` of DIR is: DIR/name, or DIR itself. DIR/adapters/NAME stands for an adapter."""
    path = Path(folder)
    if (path / name).is_dir() and not (path / VERSIONS).exists():
        return path / name
    if path.parent.name == ADAPTERS and not path.exists():
        return part_place(path.parent.parent, name) / ADAPTERS / path.name
    return path


def contents_of(folder: Path) -> str:
    """What a folder that is to be written to holds already, in words: "" if nothing, hidden files and empty folders
    for its parts aside."""
    parts = [folder / name for name in PARTS]
    if not folder.is_dir():
        return ""
    empty = [part.name for part in parts if part.is_dir() and not any(part.iterdir())]
    names = sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name not in empty)
    if MODEL_FILE in names:
        return "a model"
    if any((part / VERSIONS).exists() for part in (folder, *parts)):
        return COMPILED
    return f"other files ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})" if names else ""


def parts_of(folder: str | Path) -> dict[str, Path]:
    """The parts in a folder, by name: all that DIR holds, or the one that it is."""
    path = Path(folder)
    if (path / VERSIONS).exists():
        return {versions(path)["part"]: path}
    parts = {name: path / name for name in PARTS if (path / name / VERSIONS).exists()}
    if not parts:
        versions(path)  # says what is missing
    return parts


def versions(part: Path) -> dict[str, Any]:
    """What versions.json says: format, part, packages, program hashes by length, files. Errors: ArtifactError."""
    try:
        about = json.loads((part / VERSIONS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ArtifactError(f"{part}: holds no compiled model; give the folder that compile wrote") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        was = about.get("format") if isinstance(about, dict) else None
        raise ArtifactError(f"{part}: has format {was}, this version reads {FORMAT}; compile again")
    if about.get("part") not in PARTS or not (
        _names_files(about.get("files")) and _has_lengths(about.get("programs", {}))
    ):
        raise ArtifactError(f"{part / VERSIONS}: is damaged; copy the part again, or compile again")
    return about


def _names_files(files: Any) -> bool:
    return isinstance(files, dict) and all(isinstance(about, dict) for about in files.values())


def _has_lengths(programs: Any) -> bool:
    return isinstance(programs, dict) and all(name.isdecimal() for name in programs)


def describe_files(part: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file of a part, by its path in it."""
    files = sorted(file for file in part.rglob("*") if file.is_file() and file.name not in (VERSIONS, SECRET))
    return {file.relative_to(part).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read ({error}); compile the model again") from None


def read_programs(part: Path) -> dict[int, Program]:
    """The programs of a part by length, the shortest first."""
    numbers = sorted(int(name) for name in versions(part).get("programs", {}))
    return {number: Program.load(length_folder(part, number) / "program.json") for number in numbers}


def load_programs(folder: str | Path) -> dict[int, Program]:
    """The programs by length of a compiled folder or of any part of it: they are public."""
    name, path = next(iter(sorted(parts_of(folder).items(), key=lambda item: item[0] == "server")))
    return read_programs(find_part(path, name))


def length_folder(part: Path, length: int) -> Path:
    return part / "lengths" / str(length)


def only(lengths: Mapping[int, T], length: int | None, folder: Path) -> T:
    """The length asked for; the single one there is if none was. Errors: ArtifactError, naming what there is."""
    names = ", ".join(str(number) for number in lengths)
    if length is None and len(lengths) != 1:
        raise ArtifactError(f"{folder}: is compiled for the lengths {names}; say which one")
    if length is not None and length not in lengths:
        raise ArtifactError(f"{folder}: is compiled for the lengths {names}, not for {length}; choose one, or compile")
    return lengths[length] if length is not None else next(iter(lengths.values()))


def _check_file(file: Path, expected: Mapping[str, Any], by_size: bool = False) -> None:
    remedy = "copy the part again, or compile again"
    try:
        size = file.stat().st_size
        if size == expected.get("bytes") and (by_size or sha256(file) == expected.get("sha256")):
            return
    except OSError as error:
        raise ArtifactError(f"{file}: cannot be read ({error.strerror}); {remedy}") from None
    what = "is not what was compiled" if size == expected.get("bytes") else "is not whole"
    raise ArtifactError(f"{file}: {what}; {remedy}")
