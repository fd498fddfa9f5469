"""The compiled kernels, found once, and how a torch function gets one of them as its twin.

The torch function says what the kernel computes, and is what runs wherever the kernel cannot: without a C compiler at
the installation, on other devices, for tensors that are not in one piece, and with BLINDFORMER_KERNELS=torch in the
environment. Both give the same bits (tests/protocols/test_kernels.py).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")

_BUILDS = {"AVX512": "_kernels_v4", "AVX2": "_kernels_v3"}  # setup.py; by what torch says of the processor


class _Array:
    """An argument: a tensor's numbers, an address, an array of tensors' (one of them may be missing), or none."""

    @staticmethod
    def from_param(given: Tensor | Sequence[Tensor | None] | int | None) -> object:
        if isinstance(given, Tensor):
            return ctypes.c_void_p(given.data_ptr())
        if given is None or isinstance(given, int):
            return ctypes.c_void_p(given)
        return (ctypes.c_void_p * len(given))(*(None if x is None else x.data_ptr() for x in given))


_TYPES = {"a": _Array, "n": ctypes.c_size_t, "i": ctypes.c_int, "u": ctypes.c_int64}
# By kernel, what it takes: arrays, sizes, ints and numbers modulo 2^64.
_TAKES = {
    "pack": "aania",
    "unpack": "aniia",
    "divide": "aniiia",
    "extend": "aaaaniiaaa",
    "sum_products": "aaina",
    "polynomial": "aaaiina",
    "fourier": "aaiiaiainiua",
    "exponential": "aaiiainuiiia",
    "lookup": "aaiainuiiia",
    "tail_counts": "aaainnuiia",
    "to_planes": "aniia",
    "from_plane": "ana",
    "compare_blocks": "aaniuaa",
    "join": "aiaaina",
    "matmul": "aaiaaa",
}


class Kernel(NamedTuple):
    """`run` gives what `reference` gives, or None where it cannot."""

    reference: Callable[..., object]
    run: Callable[..., object]


kernels: dict[str, Kernel] = {}


def _found() -> tuple[str, str]:
    """What computes (a level of processors, or torch), and the library's file."""
    if os.environ.get("BLINDFORMER_KERNELS") == "torch":
        return "torch", ""
    capability = torch.backends.cpu.get_cpu_capability()
    for level, build in ((capability, _BUILDS.get(capability, "_kernels")), ("plain C", "_kernels")):
        spec = importlib.util.find_spec(f"{__package__}.{build}")
        if spec and spec.origin:
            return level, spec.origin
    return "torch", ""


def _load(file: str) -> ctypes.CDLL | None:
    if not file:
        return None
    library = ctypes.CDLL(file)
    for name, takes in _TAKES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in takes], None
    return library


LEVEL, _FILE = _found()
library = _load(_FILE)


def kernel(twin: Callable[P, T | None]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Of a torch function, the one that asks its twin first."""

    def of(reference: Callable[P, T]) -> Callable[P, T]:
        kernels[twin.__name__] = Kernel(reference, twin)
        if library is None:
            return reference

        @functools.wraps(reference)
        def run(*args: P.args, **more: P.kwargs) -> T:
            found = twin(*args, **more)
            return reference(*args, **more) if found is None else found

        return run

    return of


def whole(*tensors: Tensor | None, like: Tensor | None = None) -> bool:
    """Whether a kernel can read them: integers of 64 bits in one piece on the CPU, of one shape if `like` is given."""
    shape = None if like is None else like.shape
    for x in tensors:  # no generator: this runs thousands of times a query
        if x is None:
            continue
        if (
            x.dtype is not torch.int64
            or not x.is_contiguous()
            or not x.is_cpu
            or (shape is not None and x.shape != shape)
        ):
            return False
    return True


def call(name: str, *given: object) -> None:
    """Run a kernel of C. Tensors must be `whole`, and outputs large enough: nothing is checked here."""
    assert library is not None
    getattr(library, name)(*given)
