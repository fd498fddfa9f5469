"""Import CrypTen, unmodified, on current torch; refuse a CrypTen that this was not checked with.

CrypTen's ONNX converter, which we never use, asks at import for a torch module that is gone:
`torch.onnx.symbolic_registry`, and failing that `torch.onnx._internal.registration`. A stub of the first stands in
for the time of the import only, so nobody else is misled by it. A torch that still has either module gets no stub.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from types import ModuleType
from typing import Any

from ...versions import installed
from ..errors import BlindformerError

CHECKED_CRYPTEN = ("0.4.1",)
CHECKED_TORCH = ("2.13",)
_OLD = "torch.onnx.symbolic_registry"
_NEW = "torch.onnx._internal.registration"


class CryptenError(BlindformerError):
    """CrypTen is missing, has another version, is in use by another session, or lacks the requested operation."""


class UncheckedVersion(UserWarning):
    """A torch that our use of CrypTen and of torch.distributed was not checked with."""


def load_crypten() -> Any:
    """The `crypten` package. Errors: CryptenError. Warns of a torch that was not checked."""
    check_versions()
    if "crypten" in sys.modules:
        return sys.modules["crypten"]
    if any(importlib.util.find_spec(name) for name in (_OLD, _NEW)):
        return importlib.import_module("crypten")
    stub = ModuleType(_OLD)
    stub.__dict__["_registry"] = {}
    sys.modules[_OLD] = stub
    try:
        return importlib.import_module("crypten")
    finally:
        del sys.modules[_OLD]


def check_versions() -> None:
    """Errors: CryptenError unless the installed CrypTen is one of CHECKED_CRYPTEN. Warns of an unchecked torch."""
    version = installed("crypten")
    if version is None:
        raise CryptenError("crypten: is not installed; run: pip install 'blindformer[crypten]'")
    if version not in CHECKED_CRYPTEN:
        known = " or ".join(CHECKED_CRYPTEN)
        raise CryptenError(f"crypten {version}: was not checked with this version of blindformer; install {known}")
    torch = installed("torch") or "0"
    if ".".join(torch.split(".")[:2]) not in CHECKED_TORCH:
        known = ", ".join(CHECKED_TORCH)
        text = f"torch {torch}: crypten was checked with torch {known} only; compare a result with protocol clear first"
        warnings.warn(text, UncheckedVersion, stacklevel=3)


def crypten_version() -> str:
    """The installed CrypTen's version, which the parties compare."""
    return installed("crypten") or "none"
