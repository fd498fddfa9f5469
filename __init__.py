"""Blindformer: Transformers on data nobody but its owner sees.

    import blindformer as bf

    private = bf.make_private(model, plan="faithful", calibration=batches)
    outputs = private(**tokenizer("nobody reads this", return_tensors="pt"))
    print(private.report)

Names are imported when they are first used, so `import blindformer` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .approximations import Plan, approximate, calibrate, restore
    from .errors import BlindformerError
    from .models.building import compile_folder
    from .models.compile import Compiled, compile
    from .models.data import load_data
    from .models.distillation import distill
    from .models.loading import Loaded, load
    from .parties.asking import Result
    from .parties.client import Client
    from .parties.encrypted.client import EncryptedClient
    from .parties.estimate import Estimate, estimate
    from .parties.launcher import LocalParties, run_local
    from .parties.private import PrivateModel, make_private
    from .parties.report import Report

    __version__: str

# Where each public name lives.
_HOMES = {
    "BlindformerError": ".errors",
    "Client": ".parties.client",
    "Compiled": ".models.compile",
    "EncryptedClient": ".parties.encrypted.client",
    "Estimate": ".parties.estimate",
    "Loaded": ".models.loading",
    "LocalParties": ".parties.launcher",
    "Plan": ".approximations",
    "PrivateModel": ".parties.private",
    "Report": ".parties.report",
    "Result": ".parties.asking",
    "approximate": ".approximations",
    "calibrate": ".approximations",
    "compile": ".models.compile",
    "compile_folder": ".models.building",
    "distill": ".models.distillation",
    "estimate": ".parties.estimate",
    "load": ".models.loading",
    "load_data": ".models.data",
    "make_private": ".parties.private",
    "restore": ".approximations",
    "run_local": ".parties.launcher",
}

__all__ = [
    "BlindformerError",
    "Client",
    "Compiled",
    "EncryptedClient",
    "Estimate",
    "Loaded",
    "LocalParties",
    "Plan",
    "PrivateModel",
    "Report",
    "Result",
    "approximate",
    "calibrate",
    "compile",
    "compile_folder",
    "distill",
    "estimate",
    "load",
    "load_data",
    "make_private",
    "restore",
    "run_local",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from .versions import my_version

        return my_version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
