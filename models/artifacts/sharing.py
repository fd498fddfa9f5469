"""Large files that are equal in several compiled folders, stored once: each name is a hard link to the same content.

A store is a folder with one file for each content and mode, named by its SHA-256 and by who may read it: all links to a
content have one mode, and the server's weights are their owner's. A compiled folder stays whole by itself: it can
be copied, moved and removed like any other, and what is left of the store still serves the others.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .layout import LARGE, ArtifactError, parts_of, sha256, versions


def share(folder: Path, store: Path) -> None:
    """Make links of the large files of a compiled folder, to equal ones in `store`.

    What cannot be linked (another file system, one without links, a store that cannot be written) stays a file of its
    own, and so does what another process replaces meanwhile.
    """
    with suppress(OSError, ArtifactError):
        store.mkdir(parents=True, exist_ok=True)
        for part in parts_of(folder).values():
            for name, about in versions(part)["files"].items():
                if about["bytes"] >= LARGE:
                    _share(part / name, about["sha256"], store)


def _share(file: Path, digest: str, store: Path) -> None:
    mode = file.stat().st_mode
    stored = store / f"{digest}.{mode & 0o777:o}"
    with suppress(FileExistsError):
        os.link(file, stored)
    if file.samefile(stored):
        return
    if sha256(stored) == digest and stored.stat().st_mode == mode:
        _link(stored, file)
    else:  # changed since: it must change no other folder
        _link(file, stored)


def _link(source: Path, target: Path) -> None:
    """In the place of `target`, which is always there."""
    aside = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    try:
        os.link(source, aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def statuses(files: Iterable[Path]) -> dict[Path, os.stat_result]:
    """Of the files that are there."""
    known = {}
    for file in files:
        with suppress(OSError):
            known[file] = file.lstat()
    return known


def content_of(status: os.stat_result) -> tuple[int, int]:
    """Names the content of a file, whose links all have it."""
    return status.st_dev, status.st_ino


def bytes_on_disk(files: Iterable[Path]) -> int:
    """What files take together, each content once however many names it has."""
    sizes = {content_of(status): status.st_size for status in statuses(files).values()}
    return sum(sizes.values())
