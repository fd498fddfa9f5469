"""What every check of `blindformer doctor` is made of (examine.py)."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...protocols.errors import BlindformerError

Status = Literal["good", "warning", "bad"]
ANSWER_SECONDS = 10.0  # for a peer to answer at all
CLOCK_SECONDS = 60.0
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One line. `figures`: what a program may want to read of it."""

    name: str
    status: Status
    found: str
    fix: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def failed(name: str, error: BlindformerError, fix: str = "") -> Check:
    """What an error says, and its remedy, or `fix` where it names none."""
    what, _, remedy = str(error).partition("; ")
    return Check(name, "bad", what, remedy or fix)


def shown(path: Path) -> str:
    """A path as a reader would write it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def room(name: str, folder: Path, each: int, key: str, wanted: int = 1) -> Check:
    """Whether `folder` has room for `wanted` things of `each` bytes. `key`: the setting that names the folder."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "bad", f"{there} cannot be written", f"give this user the folder, or set {key}")
    free = shutil.disk_usage(there).free
    figures = {"free_bytes": free, "bytes_each": each}
    what = f"{shown(folder)}: {free / GB:.1f} GB free"
    if each * wanted <= free:
        return Check(name, "good", what, figures=figures)
    what += f"; {wanted} need {each * wanted / GB:.1f} GB"
    return Check(name, "bad" if free < each else "warning", what, f"make room, or set {key}", figures)


def version_check(peer: str, theirs: str, mine: str) -> Check:
    if theirs == mine:
        return Check(f"{peer}: version", "good", mine)
    return Check(f"{peer}: version", "bad", f"{theirs} there, {mine} here", "install the same version on both sides")


def programs_check(peer: str, known: int, mine: int) -> Check:
    """`known` there, of `mine` here."""
    fix = "" if known == mine else "give both sides the parts of one compilation"
    return Check(f"{peer}: programs", "bad" if fix else "good", f"{known} of {mine} known there", fix)


def clock_check(peer: str, ahead: float, trip: float) -> Check:
    """`ahead`: seconds that the peer's clock is ahead of ours, known to within `trip`."""
    off = abs(ahead) > CLOCK_SECONDS + trip
    what = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's" if off else "as here"
    fix = "set both clocks (timedatectl): certificates are good for a time" if off else ""
    return Check(f"{peer}: clock", "warning" if off else "good", what, fix, {"clock_s": ahead})
