"""The public data sets that exist, found by importing every file of this folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...protocols.scanning import import_all
from .dataset import DataError, RawExamples

Reader = Callable[[Path | None], RawExamples]


@dataclass(frozen=True)
class DataSource:
    """A public data set. `read(folder)`: None means the place that `how`, the command which fetches it, writes to.
    `judging`: nothing is ever trained on it, so that it judges models by texts of another kind."""

    name: str
    title: str
    licence: str
    how: str
    read: Reader
    judging: bool = False


_found: dict[str, DataSource] = {}


def source(name: str, *, title: str, licence: str, how: str, judging: bool = False) -> Callable[[Reader], Reader]:
    """Register the decorated function as the reader of a data set."""

    def register(read: Reader) -> Reader:
        if name in _found:
            raise DataError(f"the data source {name!r} is registered twice: rename one of them")
        _found[name] = DataSource(name, title, licence, how, read, judging)
        return read

    return register


def sources() -> list[DataSource]:
    """Every public data set that can be loaded by its name."""
    import_all(__package__ or "")
    return [_found[name] for name in sorted(_found)]


def data_home() -> Path:
    """Where fetched data sets lie: $BLINDFORMER_DATA, or the user's cache."""
    given = os.environ.get("BLINDFORMER_DATA")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "blindformer"
