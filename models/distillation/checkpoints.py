"""A run's state on disk: one file, written beside the old one and put in its place, so that a kill leaves one whole.

A file of safetensors holds tensors by name and, as metadata, a JSON text.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...files import make_folder, sync
from ...protocols.errors import writing
from ..artifacts.layout import contents_of
from ..distillation_settings import DistillError

LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def locked(folder: Path, does: str = "distils") -> Iterator[None]:
    """One process at a time on a folder. The system frees the lock when its holder dies, however it dies.

    does   what the other process does there, for the error
    """
    with writing(folder, "give a folder of your own", DistillError):
        make_folder(folder.absolute())
        handle = (folder / LOCK).open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DistillError(
                f"{folder}: another process {does} into it; wait for it, or give another folder"
            ) from None
        yield


def check_new(folder: Path, work: Path) -> None:
    """Errors: DistillError if `folder` holds anything but an unfinished run, whose folder is `work`."""
    if (contents := contents_of(folder)) and not work.exists():
        raise DistillError(f"{folder}: holds {contents} already; give a new folder")


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turns what a full disk raises, here or inside a library, into a DistillError with the remedy."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        text = str(error)
        if number in _FULL or any(f"os error {n}" in text for n in _FULL):
            raise DistillError(
                f"{what}: no space left; free some and run the command again: the last checkpoint is complete"
            ) from None
        raise DistillError(f"{what}: cannot be written ({getattr(error, 'strerror', None) or text})") from None


def write(file: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Replace `file`, all or nothing, also where the power is cut then: what a budget has spent is in it. Errors:
    DistillError, and then the old file is as it was."""
    fresh = file.with_name(f"{file.name}.part")
    try:
        with storing(str(file)):
            save_file({n: t.contiguous() for n, t in tensors.items()}, fresh, {"state": json.dumps(state)})
            sync(fresh)
            os.replace(fresh, file)
            sync(file.parent)
    finally:
        fresh.unlink(missing_ok=True)


def read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write` wrote; None if there is no file. Errors: DistillError for a damaged one."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(stored.metadata()["state"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{file}: is damaged ({error}); remove it to begin that stage again") from None
