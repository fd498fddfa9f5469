"""Low-rank adapters, LoRA: a small update of every linear layer travels in place of the layer.

E. Hu et al., arXiv:2106.09685, section 4.1: a linear layer W that stays as it is gets B A beside it, of `rank` rows and
columns, and these alone are trained. At the end W + B A takes W's place, and the model is what it was before: any tool
loads it, and private runs cost no more. The server averages A and B each, which is not quite the mean of the products;
with a small rate and frequent rounds it is close.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .settings import FederateError

RATE = 1e-3  # adapters want more than the weights themselves
GAIN = 2.0  # of B A, as lora_alpha / rank


def adapt(model: nn.Module, stack: str, rank: int, seed: int) -> None:
    """Give every linear layer of `stack` an adapter, in place. Errors: FederateError without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FederateError("lora needs peft; run: pip install 'blindformer[federated]'") from None
    linear = [n for n, m in model.named_modules() if n.startswith(f"{stack}.") and isinstance(m, nn.Linear)]
    if not linear:
        raise FederateError(f"lora: {type(model).__name__} has no linear layers in {stack}; set lora to 0")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=round(GAIN * rank), target_modules=linear), model)


def merge(model: nn.Module) -> None:
    """Put W + B A in the place of every W that has an adapter, in place."""
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in model.named_modules() if hasattr(m, "get_base_layer")]
    for name, layer in adapted:
        layer.merge()
        model.set_submodule(name, layer.get_base_layer())
