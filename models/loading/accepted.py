"""What may be given as a model, and the plain module in it that can be compiled."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..lowering.values import LoweringError

if TYPE_CHECKING:  # importing it takes a while, and who gives a module has no need of it
    from .load import Loaded

TRACING = threading.RLock()  # torch.export patches modules for all threads, and a plan is in force in a shared model
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized", "bitsandbytes")


def loaded_of(model: nn.Module | Loaded | str | Path) -> nn.Module | Loaded:
    """A module as it is; what a name or a folder loads. Errors: LoadError, LoweringError."""
    if isinstance(model, nn.Module):
        return model
    from .load import Loaded, load

    if isinstance(model, str | Path):
        return load(model)
    if isinstance(model, Loaded):
        return model
    raise LoweringError(f"model: is a {type(model).__name__}; give a torch module, what `load` returns, or a folder")


def module_of(model: nn.Module | Loaded | str | Path) -> nn.Module:
    """The module to compile, in floating point and in Python: without what torch.compile wraps around it.

    Errors: LoadError; LoweringError for a scripted or quantised one.
    """
    loaded = loaded_of(model)
    module = loaded if isinstance(loaded, nn.Module) else loaded.model
    while isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):
        module = inner
    if isinstance(module, torch.jit.ScriptModule):
        raise LoweringError("model: is scripted (torch.jit), so it cannot be traced; give the module it was made from")
    with TRACING:  # while another thread traces it, its parameters are not its own
        _check_floating(module)
    return module


def _check_floating(module: nn.Module) -> None:
    for name, part in module.named_modules():
        whole = all(type(p.data) is Tensor and p.is_floating_point() for p in part.parameters(recurse=False))
        if not whole or type(part).__module__.startswith(_QUANTISED):
            raise LoweringError(
                f"{name or 'model'}: is quantised; give the floating-point model, and quantise in the plan: "
                "Plan(linear_bits=8)"
            )
