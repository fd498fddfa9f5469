"""The contents of this machine's cache, and their removal. Everything removed is made again when it is needed.

    compiled/NAME-HASH    models that were compiled at a first use (models/cached.py)
    HEX, HEX.json         masked weights of servers (session/weight_transfer.py)

Only these are removed, by their names, and never what a link leads to. All else in the folder is somebody's: data sets,
or a store, if a configuration puts it there. A store's ledger remembers which masks were used: an old copy of the other
party's store, without it, could use them twice.
"""

from __future__ import annotations

import difflib
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import BlindformerError
from ..models.artifacts.layout import SECRET
from ..models.cached import COMPILED, KnownModel, compiled_models, is_found_again
from ..models.loading.huggingface import LoadError
from ..models.loading.load import locate
from ..models.loading.packaged import PACKAGED
from .session.preprocessing_store import STORE_FILES
from .session.weight_transfer import MaskedModel, masked_files, masked_models

UNFINISHED_SECONDS = 86400.0  # an older unfinished file has no writer any more
_REMOVING = ".removing-"
_FOREIGN = (".sqlite", ".pem", ".key")


@dataclass(frozen=True)
class Removable:
    """`name`: of a model, or what it is; `why`: in words; `paths`: whole folders, and files."""

    name: str
    why: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class CacheRemoval:
    """What is removed together. `bytes`: what is free then; `left`: what stays, because something in it is not the
    cache's."""

    items: list[Removable]
    bytes: int
    left: list[Removable]


def files_below(paths: Iterable[Path]) -> Iterator[Path]:
    """All files of folders, and files themselves. No link is followed."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            for folder, folders, names in os.walk(path):
                links = (name for name in folders if Path(folder, name).is_symlink())
                yield from (Path(folder, name) for name in (*names, *links))
        elif os.path.lexists(path):
            yield path


def bytes_on_disk(files: Iterable[Path]) -> int:
    """What files take together, each content once however many names it has."""
    return sum({_content(status): status.st_size for status in _statuses(files).values()}.values())


def _statuses(files: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Of the files that are there."""
    known = {}
    for file in files:
        with suppress(OSError):
            known[file] = file.lstat()
    return known


def _content(status: os.stat_result) -> tuple[int, int]:
    """Names the content of a file, whose links all have it."""
    return status.st_dev, status.st_ino


def compiled_folders(cache: Path, name: str) -> list[Path]:
    """Those of the model `name`, which is as `blindformer models` has it."""
    return [Path(model.where) for model in compiled_models(cache) if _is(model, name)]


def removal_of(cache: Path, names: Sequence[str], lengths: Collection[int] = ()) -> CacheRemoval:
    """What is there of the models `names`, which are as `blindformer models` has them, or folders there. `lengths`:
    only what is compiled for one of them. Masked weights go with a name, or with the last model that has it.

    Errors: BlindformerError for what is not there.
    """
    compiled, masked = compiled_models(cache), masked_models(cache)
    chosen, called = dict[str, KnownModel](), set[str]()
    for name in names:
        called.add(_called(name))
        fitting = [model for model in compiled if _is(model, name)]
        if not fitting and _called(name) not in {one.name for one in masked}:
            raise _unknown(cache, name, {model.name for model in (*compiled, *masked)})
        chosen |= {model.where: model for model in fitting if not lengths or set(lengths) & set(model.lengths)}
        known = sorted({length for model in fitting for length in model.lengths})
        if lengths and not set(lengths) & set(known):
            what = f"is compiled for the lengths {', '.join(map(str, known))}" if known else "has no lengths"
            raise BlindformerError(f"{name}: {what}; leave --length out, or give another")
    others = {model.name for model in compiled if model.where not in chosen}
    gone = {model.name for model in chosen.values()} - others
    weights = [one for one in masked if one.name in (gone if lengths else gone | called)]
    items = [_compiled(model, _described(model)) for model in chosen.values()]
    return _removal(cache, items + [_masked(one, "masked weights") for one in weights], masked)


def leftovers(cache: Path, older: float | None = None, everything: bool = False) -> CacheRemoval:
    """What can be used no more: folders of other versions, unfinished ones, masked weights of a model that is gone.
    `older`: also what was not used for so many seconds; `everything`: all of it."""
    now, masked = time.time(), masked_models(cache)
    unused = "not used for so long"

    def old(seconds: float | None, used: float | None) -> bool:
        return seconds is not None and now - (used or 0.0) > seconds

    items: list[Removable] = []
    for model in compiled_models(cache):
        if not is_found_again(Path(model.where)):
            continue
        finished = model.bytes > 0 or old(UNFINISHED_SECONDS, model.used)
        if everything or (model.problem and finished):
            items.append(_compiled(model, model.problem or _described(model)))
        elif old(older, model.used):
            items.append(_compiled(model, unused))
    for one in masked:
        if everything or (one.folder and not Path(one.folder).exists()):
            items.append(_masked(one, "masked weights" if everything else "masked weights of a model that is gone"))
        elif old(older, one.used):
            items.append(_masked(one, f"masked weights, {unused}"))
    known = {file for one in masked for file in one.files}
    parts = [
        path
        for path, status in _statuses(_parts(cache)).items()
        if everything or old(UNFINISHED_SECONDS, status.st_mtime)
    ]
    unknown = [file for file in masked_files(cache) if file not in known and file.suffix != ".part"]
    for what, paths in (("unfinished", parts), ("masked weights of no model that is known", unknown)):
        if paths:
            items.append(Removable("files", what, tuple(paths)))
    return _removal(cache, items, masked)


def remove(removal: CacheRemoval) -> None:
    """A folder is renamed before it is deleted, so that no reader finds half of one. Errors: BlindformerError."""
    for path in (path for item in removal.items for path in item.paths):
        try:
            if path.is_dir() and not path.is_symlink():
                going = path if path.name.startswith(_REMOVING) else path.with_name(_REMOVING + secrets.token_hex(8))
                shutil.rmtree(path.rename(going))
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # somebody else was faster
        except OSError as error:
            raise BlindformerError(
                f"{path}: cannot be removed ({error.strerror}); make {path.parent} writable, or run as the user who "
                "owns it"
            ) from None


def _removal(cache: Path, items: Iterable[Removable], masked: Iterable[MaskedModel]) -> CacheRemoval:
    foreign = {item: file for item in items for file in _foreign(item)}
    left = [replace(item, why=f"holds {file.name}, which is not the cache's") for item, file in foreign.items()]
    going = {path for item in items if item not in foreign for path in item.paths}
    needed = {file for one in masked if one.file not in going for file in one.files}
    items = [
        replace(item, paths=tuple(path for path in item.paths if path not in needed))
        for item in items
        if item not in foreign
    ]
    files = _statuses(files_below(path for item in items for path in item.paths))
    names = Counter(map(_content, files.values()))  # a delegated model's parts are links to one file
    freed = [file for file, status in files.items() if status.st_nlink <= names[_content(status)]]
    return CacheRemoval(items, bytes_on_disk(freed), left)


def _foreign(item: Removable) -> list[Path]:
    """Files that no compilation writes: keys, certificates, counts, and the memory of what was used."""
    return [
        file
        for file in files_below(path for path in item.paths if path.is_dir())
        if file.name in STORE_FILES or (file.suffix in _FOREIGN and file.name != SECRET)
    ][:1]


def _parts(cache: Path) -> Iterator[Path]:
    """Files that a killed process left in the middle of writing or removing."""
    yield from (file for file in masked_files(cache) if file.suffix == ".part")
    for pattern in (f"{COMPILED}/{_REMOVING}*", f"{COMPILED}/*/.compiling-*"):
        yield from cache.glob(pattern)


def _compiled(model: KnownModel, why: str) -> Removable:
    return Removable(model.name, why, (Path(model.where),))


def _masked(model: MaskedModel, why: str) -> Removable:
    return Removable(model.name, why, tuple(model.files))


def _described(model: KnownModel) -> str:
    return ", ".join(filter(None, [model.task, model.plan and f"plan {model.plan}", *map(str, model.lengths)]))


def _called(name: str) -> str:
    """The name in `blindformer models` of the model that a command was given."""
    if name in PACKAGED:
        with suppress(LoadError):
            return locate(name, join=False)[0]
    return name


def _is(model: KnownModel, name: str) -> bool:
    folder = Path(model.where)
    return name == folder.name or _called(name) == model.name or Path(name).expanduser().absolute() == folder.absolute()


def _unknown(cache: Path, name: str, known: Collection[str]) -> BlindformerError:
    aliases = {alias for alias in PACKAGED if _called(alias) in known}
    near = difflib.get_close_matches(name, sorted({*known, *aliases}), n=3)
    remedy = f"did you mean {' or '.join(near)}?" if near else "`blindformer models` says what is"
    return BlindformerError(f"{name}: is not in the cache {cache}{'' if known else ', which is empty'}; {remedy}")
