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

from .levels import hold_torch

if TYPE_CHECKING:
    from .approximations import Plan, approximate, calibrate, restore
    from .errors import BlindformerError
    from .models.building import compile_folder
    from .models.compile import Compiled, compile
    from .models.data import load_data
    from .models.distillation import distill, train_head
    from .models.distillation.budget import Affordable
    from .models.loading.load import Loaded, load
    from .parties.client.client import Client, EncryptedClient
    from .parties.client.delegated import DelegatedClient
    from .parties.client.local import LocalParties
    from .parties.client.pipeline import pipeline
    from .parties.client.private import PrivateModel, make_private
    from .parties.client.result import Result
    from .parties.client.search_index import SearchIndex
    from .parties.reports.estimate import Estimate, affordable_layers, estimate
    from .parties.reports.report import Report

    __version__: str

# Where each public name lives.
_HOMES = {
    "Affordable": ".models.distillation.budget",
    "BlindformerError": ".errors",
    "Client": ".parties.client.client",
    "Compiled": ".models.compile",
    "DelegatedClient": ".parties.client.delegated",
    "EncryptedClient": ".parties.client.client",
    "Estimate": ".parties.reports.estimate",
    "Loaded": ".models.loading.load",
    "LocalParties": ".parties.client.local",
    "Plan": ".approximations",
    "PrivateModel": ".parties.client.private",
    "Report": ".parties.reports.report",
    "Result": ".parties.client.result",
    "SearchIndex": ".parties.client.search_index",
    "affordable_layers": ".parties.reports.estimate",
    "approximate": ".approximations",
    "calibrate": ".approximations",
    "compile": ".models.compile",
    "compile_folder": ".models.building",
    "distill": ".models.distillation",
    "estimate": ".parties.reports.estimate",
    "load": ".models.loading.load",
    "load_data": ".models.data",
    "make_private": ".parties.client.private",
    "pipeline": ".parties.client.pipeline",
    "restore": ".approximations",
    "train_head": ".models.distillation",
}

__all__ = [
    "Affordable",
    "BlindformerError",
    "Client",
    "Compiled",
    "DelegatedClient",
    "EncryptedClient",
    "Estimate",
    "Loaded",
    "LocalParties",
    "Plan",
    "PrivateModel",
    "Report",
    "Result",
    "SearchIndex",
    "affordable_layers",
    "approximate",
    "calibrate",
    "compile",
    "compile_folder",
    "distill",
    "estimate",
    "load",
    "load_data",
    "make_private",
    "pipeline",
    "restore",
    "train_head",
]


hold_torch()  # torch reads its level when it is imported


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
