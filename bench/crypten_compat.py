"""Import CrypTen 0.4.1, unmodified, on current torch.

CrypTen's ONNX converter, which we never use, asks at import for a torch module that is gone:
`torch.onnx.symbolic_registry`, and failing that `torch.onnx._internal.registration`. A stub of the first stands in
for the time of the import only, so nobody else is misled by it. A torch that still has either module gets no stub.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

_OLD = "torch.onnx.symbolic_registry"
_NEW = "torch.onnx._internal.registration"


def load_crypten() -> Any:
    """The `crypten` package, or ImportError as any import would raise it."""
    if any(importlib.util.find_spec(name) for name in (_OLD, _NEW)):
        return importlib.import_module("crypten")
    stub = ModuleType(_OLD)
    stub.__dict__["_registry"] = {}
    sys.modules[_OLD] = stub
    try:
        return importlib.import_module("crypten")
    finally:
        del sys.modules[_OLD]
