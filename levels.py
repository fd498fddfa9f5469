"""Levels of processors: which instructions the kernels were built for, and which level computes here.

BLINDFORMER_KERNELS in the environment names a level, so that it can be tested and measured on a processor of a higher
one, or `torch`: no kernel at all. Torch itself is held to that level, too, if this package is imported before torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
from pathlib import Path
from typing import NamedTuple

from .errors import BlindformerError

VARIABLE = "BLINDFORMER_KERNELS"
TORCH = "torch"
PLAIN = {"AMD64": "x86-64", "x86_64": "x86-64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())

_V3 = frozenset({"avx2", "bmi2", "fma"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_ALL = {"ATEN_CPU_CAPABILITY": "avx512", "MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "DEFAULT"}
_NO_AVX512 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
_NO_AVX = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"}


class ProcessorLevel(NamedTuple):
    build: str  # the module of its kernels (setup.py), of protocols/kernels/
    needs: frozenset[str]  # instructions of a processor, as Linux calls them
    torch: dict[str, str]  # variables that hold torch, and the libraries below it, to this level


# The highest comes first.
LEVELS: dict[str, ProcessorLevel] = {
    "x86-64-v4-vnni": ProcessorLevel("_kernels_v4_vnni", _V4 | {"avx512_vnni"}, _ALL),
    "x86-64-v4": ProcessorLevel("_kernels_v4", _V4, _ALL),
    "x86-64-v3": ProcessorLevel("_kernels_v3", _V3, _NO_AVX512),
    PLAIN: ProcessorLevel("_kernels", frozenset(), _NO_AVX if PLAIN == "x86-64" else {}),
}

_BUILD = "install a C compiler (Debian: gcc), then blindformer again"
# What a query takes without a level's kernels, beside x86-64-v3 on one machine (MiniLM of 128 tokens, plan fast).
_SLOW = {
    TORCH: ("without C kernels, a query takes twice as long", _BUILD),
    "x86-64": ("without AVX2, a query takes 1.7 times as long", "use a processor that has it"),
}


class LevelError(BlindformerError):
    """BLINDFORMER_KERNELS names a level that this machine cannot have."""


@functools.cache
def features() -> frozenset[str]:
    """The instructions of this processor, as Linux calls them.

    What is detected, and not those of its microarchitecture alone: a virtual machine that hides one instruction of its
    processor's is of a generic microarchitecture, which has few. Where nothing is detected (Apple), the latter.
    """
    from archspec.cpu import detect, host

    return frozenset(detect.detected_info().features) | frozenset(host().features)


def instructions() -> dict[str, bool]:
    """Whether this processor has products of bytes and AES, whatever level computes."""
    return {"vnni": not features().isdisjoint({"avx512_vnni", "avx_vnni", "asimddp"}), "aes": "aes" in features()}


def kernels_of(level: str) -> Path | None:
    """The library of a level, None for torch. Errors: LevelError."""
    if level == TORCH:
        return None
    have = [name for name, one in LEVELS.items() if one.needs <= features()]
    choices = f"choose one of {', '.join((TORCH, *have))}"
    if level not in LEVELS:
        raise LevelError(f"{VARIABLE}={level}: no such level; {choices}")
    if level not in have:
        missing = ", ".join(sorted(LEVELS[level].needs - features()))
        raise LevelError(f"{VARIABLE}={level}: this processor lacks {missing}; {choices}")
    spec = importlib.util.find_spec(f"{__package__}.protocols.kernels.{LEVELS[level].build}")
    if spec is None or spec.origin is None:
        raise LevelError(f"{VARIABLE}={level}: not built; {_BUILD}")
    return Path(spec.origin)


@functools.cache
def level() -> str:
    """The level that computes: the one that the environment names, else the highest there is. Errors: LevelError."""
    if named := os.environ.get(VARIABLE):
        kernels_of(named)
        return named
    for name in LEVELS:
        try:
            kernels_of(name)
        except LevelError:
            continue
        return name
    return TORCH


def slow() -> tuple[str, str] | None:
    """What a query costs at a level that has no fast kernels, and the remedy; None at others."""
    what, remedy = _SLOW.get(level(), ("", ""))
    if os.environ.get(VARIABLE):
        remedy = f"unset {VARIABLE}"
    return (what, remedy) if what else None


def hold_torch() -> None:
    """Hold torch to the level that the environment names, in this process if it imports torch later, and in those that
    it starts."""
    named = LEVELS.get(os.environ.get(VARIABLE, ""))
    if named and named.needs <= features():
        os.environ.update(named.torch)


def is_device(name: object) -> bool:
    """Whether this may be the name of a device, a processor or a GPU, here or on another machine. What there is of
    these: protocols/devices.py."""
    return isinstance(name, str) and re.fullmatch(r"cpu|cuda(:\d{1,3})?", name) is not None
