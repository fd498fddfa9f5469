"""What stands beside every number: versions, commit, machine. And JSON that stays on one line."""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import json
import math
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from blindformer.cores import cores
from blindformer.levels import instructions, level
from blindformer.versions import versions

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """With what, and on what, something was measured."""

    versions: dict[str, str]
    commit: str | None
    machine: dict[str, Any]


def provenance(*packages: str) -> dict[str, Any]:
    """The fields of Measured; call it before anything is measured. `packages`: versions to tell beside our own."""
    return {"versions": versions(*packages), "commit": commit(), "machine": machine()}


def provenance_line(commit: str | None, versions: dict[str, str], machine: dict[str, Any]) -> str:
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    cpu = f"{machine['cpu']}, level {machine['level']}, {machine['cores']} cores"
    return f"{used}; commit {commit or 'unknown'}; {cpu}, {machine['memory_gb']} GB, load {machine['load']}"


def commit() -> str | None:
    """The checkout's commit, `+dirty` if tracked files differ from it; None outside a checkout."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return None
    return head + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """`load`: runnable processes over the last minute, before we start ours: on a quiet machine well under 1. `level`:
    of our kernels; `torch_level`: that of torch, so of everything in float32."""
    return {
        "cpu": _cpu(),
        "level": level(),
        "torch_level": torch.backends.cpu.get_cpu_capability(),
        **instructions(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "load": round(psutil.getloadavg()[0], 2),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def json_line(value: Any) -> str:
    """One line; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
