"""Adapters beside their base in a compiled folder: PART/adapters/NAME is a part like PART, of the base with the adapter
on. Tensors that both have, such as public weights, are one in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from torch import Tensor

from ..program.program import Program
from .layout import ADAPTERS, OF_PROGRAMS, VERSIONS, ArtifactError, part_place, read_programs
from .tensors import CompiledPart

P = TypeVar("P", bound=CompiledPart[Any])


def adapters_in(part: Path) -> dict[str, Path]:
    """The adapters' parts of a base's part, by name."""
    return {path.parent.name: path.parent for path in sorted((part / ADAPTERS).glob(f"[!.]*/{VERSIONS}"))}


def adapter_place(folder: str | Path, adapter: str) -> Path:
    """What stands for the adapter in a compiled folder, DIR or DIR/client, wherever one is taken; with no name, the
    folder. Errors: ArtifactError for a name that is not there."""
    if not adapter:
        return Path(folder)
    known = adapters_in(part_place(folder, "client"))
    if adapter not in known:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise ArtifactError(f"{folder}: holds no adapter {adapter!r}; {has}")
    return Path(folder) / ADAPTERS / adapter


def load_with_adapters(
    load: Callable[[Path, dict[str, Tensor]], P], folder: str | Path, name: str, more: Mapping[str, Path]
) -> dict[str, P]:
    """A base's part and those of its adapters by name, the base's first, under "". `name`: of the part; `load`: reads
    one, given the tensors that others have; `more`: adapters that were compiled elsewhere.

    Errors: ArtifactError, also for a name that is given twice, and for two parts with one program.
    """
    tensors: dict[str, Tensor] = {}
    places = _places(folder, name, more)
    return {adapter: load(place, tensors) for adapter, place in places.items()}


def programs_with_adapters(folder: str | Path, name: str, more: Mapping[str, Path]) -> list[Program]:
    """Of all these parts. Errors: as `load_with_adapters`."""
    return [program for place in _places(folder, name, more).values() for program in read_programs(place).values()]


def _places(folder: str | Path, name: str, more: Mapping[str, Path]) -> dict[str, Path]:
    base = part_place(folder, name)
    inside = adapters_in(base)
    if twice := inside.keys() & more.keys():
        raise ArtifactError(f"adapter {min(twice)}: is in {base}, too; give it another name")
    places = {"": base, **inside, **{adapter: part_place(place, name) for adapter, place in more.items()}}
    whose: dict[str, str] = {}
    for adapter, place in places.items():
        for program in read_programs(place).values():  # which is all that a client's hello names
            other = whose.setdefault(program.hash(), adapter)
            if other != adapter:
                raise ArtifactError(
                    f"adapter {adapter}: has the program of {f'adapter {other}' if other else 'the base'}; compile "
                    "it under another name: --adapter NAME=FOLDER"
                )
    return places


def write_with_adapters(
    folder: str | Path, adapters: Mapping[str, Callable[[Path], Path]], base: Callable[[], Path]
) -> Path:
    """`base()` writes the compiled folder, and each of `adapters` one of its own into the folder that it is given:
    its parts go beside the base's, when all are written. Errors: ArtifactError, and those of the callables."""
    root = Path(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".adapters-", dir=root) as aside:
            written = {name: write(Path(aside) / name) for name, write in adapters.items()}
            base()
            for name, compiled in written.items():
                for part in OF_PROGRAMS:
                    (root / part / ADAPTERS).mkdir(exist_ok=True)
                    (compiled / part).rename(root / part / ADAPTERS / name)
    except OSError as error:
        raise ArtifactError(
            f"{error.filename or root}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from None
    return root
