"""The compiled kernels, found once, and how a torch function is replaced by one of them.

The torch function says what the kernel computes, and is what runs wherever the kernel cannot: without a C compiler at
the installation, for tensors that are not in one piece, and with BLINDFORMER_KERNELS=torch in the environment
(levels.py). On a GPU it runs, too, or one kernel in its place (fused.py). All give the same bits
(tests/protocols/test_kernels.py, test_fused.py).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec, TypeVar
from zlib import crc32

import torch
from torch import Tensor

from ...levels import LevelError, kernels_of, level

P = ParamSpec("P")
T = TypeVar("T")


class _Array:
    """An argument: a tensor's numbers, an address, an array of tensors' (one of them may be missing), or none."""

    @staticmethod
    def from_param(given: Tensor | Sequence[Tensor | None] | int | None) -> object:
        if isinstance(given, Tensor):
            return ctypes.c_void_p(given.data_ptr())
        if given is None or isinstance(given, int):
            return ctypes.c_void_p(given)
        return (ctypes.c_void_p * len(given))(*(None if x is None else x.data_ptr() for x in given))


_TYPES = {"a": _Array, "n": ctypes.c_size_t, "i": ctypes.c_int, "u": ctypes.c_int64, "d": ctypes.c_double}
# By kernel, what it takes: arrays, sizes, ints, numbers modulo 2^64, and doubles.
_TAKES = {
    "pack": "aania",
    "unpack": "aniia",
    "divide": "aniiia",
    "extend": "aaaaniiaaa",
    "sum_products": "aaina",
    "polynomial": "aaaiina",
    "fourier": "aaiiaiainiua",
    "waves": "aaniia",
    "exponential": "aaiiaainuiiia",
    "last_cells": "aainiuiia",
    "row_parities": "aaainnaiuiiaa",
    "lookup": "aaiainuiiia",
    "to_planes": "aniia",
    "from_plane": "ana",
    "compare_blocks": "aaniuaa",
    "join": "aaiiiananaaina",
    "matmul": "aaiiaaa",
    "corrected_children": "aaaannnna",
    "deal_level": "aaaaiannn",
    "leaf_numbers": "aaannnniiiia",
    "linear32": "aainnnaan",
    "quantise_rows": "annudaa",
    "pack24": "ana",
    "unpack24": "ana",
    "open_rows": "aaaaaaannniaa",
    "fold": "aiinniaa",
    "transpose_planes": "ana",
    "hash_rows": "anauaiia",
    "check_sums": "annaia",
    "grow_nodes": "annaiaa",
    "add_code": "anaai",
    "row_products": "aanniaainaa",
    "transform": "aninaaai",
    "divide_by_last": "aninaaaaaaaa",
    "sum_pairs": "aaniinaa",
    "merge_pair": "aaaaainaaaaaaaa",
}


class Kernel(NamedTuple):
    """`run` gives what `reference` gives, or None where it cannot."""

    reference: Callable[..., object]
    run: Callable[..., object]


kernels: dict[str, Kernel] = {}


def sources() -> int | None:
    """Of the C files beside this one, as setup.py counts them; None in an installed package, which has none."""
    files = sorted(Path(__file__).parent.glob("*.[ch]"))
    return crc32(b"".join(file.read_bytes() for file in files)) if files else None


def load(level: str) -> ctypes.CDLL | None:
    """The kernels of a level; None for torch. Errors: LevelError, also for kernels that were built from other sources,
    which would compute something else."""
    file = kernels_of(level)
    if file is None:
        return None
    loaded = ctypes.CDLL(str(file))
    try:
        built = ctypes.c_int64.in_dll(loaded, "kernels_sources").value
    except ValueError:  # of a version before this check
        built = 0
    if sources() not in (None, built):
        what = "was built from other C files than those beside it"
        raise LevelError(f"{file}: {what}; run `python setup.py build_ext --inplace`, or install blindformer again")
    for name, takes in _TAKES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = [_TYPES[letter] for letter in takes], None
    return loaded


library = load(level())


def on_gpu(name: str) -> Callable[..., Any] | None:
    """The kernel for GPUs that stands in for a torch function; None where there is none, or Triton is not installed."""
    return getattr(_fused(), name, None)


@functools.cache
def _fused() -> ModuleType | None:
    if find_spec("triton") is None:
        return None
    return import_module(".fused", __package__)


def kernel(binding: Callable[P, T | None]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Of a torch function, the one that calls its C kernel first."""

    def of(reference: Callable[P, T]) -> Callable[P, T]:
        kernels[binding.__name__] = Kernel(reference, binding)

        @functools.wraps(reference)
        def run(*args: P.args, **more: P.kwargs) -> T:
            result = None if library is None else binding(*args, **more)
            if result is None and args and isinstance(args[0], Tensor) and args[0].is_cuda:
                fused = on_gpu(binding.__name__)
                result = None if fused is None else fused(*args, **more)
            return reference(*args, **more) if result is None else result

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


def constant(name: str) -> int:
    """A number that the kernels name."""
    assert library is not None
    return ctypes.c_int64.in_dll(library, name).value


def call(name: str, *given: object) -> None:
    """Run a kernel of C. Tensors must be `whole`, and outputs large enough: nothing is checked here."""
    assert library is not None
    getattr(library, name)(*given)
