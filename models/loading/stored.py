"""A model whose weights stay in their files: its module has room for float32 numbers, and none in it yet.

Files of safetensors are mapped, in whatever type they have, so a weight takes memory when it is read. Room that nobody
has written to takes none: a large model is opened whole, and only the parameters that its owner fills are there.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .huggingface import huggingface

Stored = dict[Tensor, Tensor]
"""By parameter of a module: its numbers as they lie in a file."""

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def stored_type(folder: Path) -> torch.dtype | None:
    """The type of all weights in a folder's safetensors files; None if they have several, or another form."""
    types = set()
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                types |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError):  # loading it says what is wrong
        return None
    return _TYPES.get(types.pop()) if len(types) == 1 else None


def emptied(mapped: Any) -> tuple[nn.Module, Stored]:
    """A module like this one of transformers, in float32 and without numbers, and those of the mapped one."""
    mapped.config.dtype = torch.float32
    with huggingface(), import_module("transformers.initialization").no_init_weights():
        module: Any = type(mapped)(mapped.config)
    module.tie_weights()
    persistent = mapped.state_dict()
    for name, buffer in module.named_buffers():  # others are computed, in float32
        if name in persistent:
            buffer.copy_(persistent[name])
    if hasattr(mapped, "generation_config"):
        module.generation_config = mapped.generation_config
    theirs = dict(mapped.named_parameters())
    return module.eval(), {own: theirs[name].data for name, own in module.named_parameters()}
