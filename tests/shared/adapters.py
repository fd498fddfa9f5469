"""Adapters of peft with random weights, for tests."""

from pathlib import Path
from typing import Any

import torch


def save_adapter(base: Path, folder: Path, task: str = "CAUSAL_LM", seed: int = 0, **options: Any) -> Path:
    """An adapter for the model in `base`, as peft's save_pretrained writes it. `options`: of LoraConfig."""
    import peft
    from blindformer.models.loading.adapters import HEADS
    from blindformer.models.loading.huggingface import huggingface
    from blindformer.models.loading.load import load

    torch.manual_seed(seed)
    more = {"num_labels": options.pop("labels")} if "labels" in options else {}
    kind = options.pop("kind", peft.LoraConfig)
    with huggingface() as transformers:
        model: Any = (
            getattr(transformers, HEADS[task]).from_pretrained(base, **more) if task in HEADS else load(base).model
        )
    if kind is peft.LoraConfig:
        options = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, **options}
    peft.get_peft_model(model, kind(task_type=task, **options)).save_pretrained(folder)
    return folder
