"""The tokenizer, image processor or feature extractor that a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .huggingface import FILES_ALONE, huggingface, refused
from .media import MEDIA

_FACTORIES = {"image": "AutoImageProcessor", "sound": "AutoFeatureExtractor"}  # importing one takes a second or two
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def read_processor(folder: Path, kind: str) -> Any:
    """For a model of this kind (Task.kind); None where the folder holds none, or a library it needs is missing.

    Errors: LoadError for one that needs code of its own.
    """
    if kind not in MEDIA and not any(list(folder.glob(pattern)) for pattern in _VOCABULARIES):
        return None  # transformers would make up an empty one, to which every word is unknown
    with huggingface() as transformers:
        try:
            factory = getattr(transformers, _FACTORIES.get(kind, "AutoTokenizer"))
            processor = factory.from_pretrained(folder, **FILES_ALONE)
        except Exception as error:  # no files, or a library they need is missing: the model can still be fed tensors
            if (why := refused(folder, error)) is not None:
                raise why from None
            return None
    if kind not in MEDIA and getattr(processor, "pad_token", "") is None:
        processor.pad_token = processor.eos_token  # any token will do: the mask hides it
    return processor
