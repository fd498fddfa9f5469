"""The tokenizer or image processor that a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def read_processor(folder: Path, kind: str) -> Any:
    """For a model of this kind (Task.kind); None where the folder holds none, or a library it needs is missing."""
    import transformers

    if kind != "image" and not any(list(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None  # transformers would make up an empty one, to which every word is unknown
    factory = transformers.AutoImageProcessor if kind == "image" else transformers.AutoTokenizer
    try:
        processor = factory.from_pretrained(folder, local_files_only=True)
    except Exception:  # no files, or a library they need is missing: the model can still be fed tensors
        return None
    if kind != "image" and getattr(processor, "pad_token", "") is None:
        processor.pad_token = processor.eos_token  # any token will do: the mask hides it
    return processor
