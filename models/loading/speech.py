"""Speech to text: how many seconds of audio a model hears at once.

A model of Whisper's kind hears 30 seconds, and whatever is shorter is filled up with silence. Attention pays for all of
it, by its square: so the window is cut to what is spoken. Its positions are counted from the audio's beginning, so a
model with a shorter window has the first of them.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from .huggingface import LoadError

if TYPE_CHECKING:
    from .load import Loaded

SECONDS = 5
"""Of a window, unless another is asked for."""


def windowed(loaded: Loaded, seconds: int | None) -> Loaded:
    """A model of speech that hears so many seconds at once; the other stays as it is, and has the same weights. None:
    `SECONDS`, where it hears more and can be cut.

    Errors: LoadError for more than it hears, and for a model whose window is not known, or that hears nothing.
    """
    extractor, encoder = loaded.task.feature_extractor, _encoder(loaded)
    if encoder is None or not hasattr(extractor, "chunk_length"):
        if seconds is None:
            return loaded
        raise LoadError(f"{loaded.name}: has no window of audio that can be cut; leave seconds out")
    chosen = min(SECONDS, extractor.chunk_length) if seconds is None else seconds
    if not 1 <= chosen <= extractor.chunk_length:
        raise LoadError(f"seconds {chosen}: {loaded.name} hears {extractor.chunk_length} at once; give 1 to as many")
    parameters = {id(parameter): parameter for parameter in loaded.model.parameters()}
    shorter = replace(loaded, model=copy.deepcopy(loaded.model, parameters), processor=copy.deepcopy(loaded.processor))
    extractor, encoder, model = shorter.task.feature_extractor, _encoder(shorter), shorter.model
    count = encoder.max_source_positions * chosen // extractor.chunk_length
    table = encoder.embed_positions.weight[:count].detach().clone()
    encoder.embed_positions = nn.Embedding(*table.shape)
    encoder.embed_positions.weight = nn.Parameter(table, requires_grad=False)
    encoder.max_source_positions = getattr(model, "config").max_source_positions = count  # noqa: B009 (of any class)
    extractor.chunk_length, extractor.n_samples = chosen, chosen * extractor.sampling_rate
    extractor.nb_max_frames = extractor.n_samples // extractor.hop_length
    return shorter


def _encoder(loaded: Loaded) -> Any:
    """The one that has a position for each piece of its window; None: the model has none such."""
    if loaded.kind != "speech":
        return None
    model: Any = loaded.model
    encoder = model.get_encoder()
    known = hasattr(encoder, "max_source_positions") and isinstance(encoder.embed_positions, nn.Embedding)
    return encoder if known else None
