"""A model without one of its layers, or without one head, for as long as a block lasts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def without_layer(layer: nn.Module) -> Iterator[None]:
    """The layer's input is its output."""

    def skip(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x, *result[1:]) if isinstance(result, tuple) else x

    handle = layer.register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_head(mixer: nn.Module, head: int, count: int) -> Iterator[None]:
    """Head `head` of `count` gives zeros to the linear that mixes them."""

    def silence(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept = torch.ones_like(args[0]).unflatten(-1, (count, -1))
        kept[..., head, :] = 0
        return (args[0] * kept.flatten(-2), *args[1:])

    handle = mixer.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def mixers(model: nn.Module, layer: str) -> Iterator[tuple[nn.Module, int]]:
    """The linear after attention, whose input is the heads side by side, and how many they are."""
    config: Any = model.config
    count = getattr(config, "num_attention_heads", None) or getattr(config, "n_heads", None)
    pattern = re.compile(r".*(attention\.output\.dense|attn\.c_proj|out_lin|o_proj|attention\.o)$")
    for path, module in model.get_submodule(layer).named_modules():
        if isinstance(count, int) and pattern.match(path):
            yield module, count
