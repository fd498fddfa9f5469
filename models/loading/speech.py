"""Speech to text: how many seconds of sound a model hears at once, and longer sounds in pieces.

A model of Whisper's kind hears 30 seconds, and whatever is shorter is filled up with silence. Attention pays for all of
it, by its square: so the window is cut to what is spoken. Its positions are counted from the sound's beginning, so a
model with a shorter window has the first of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .huggingface import LoadError

SECONDS = 5
"""Of a window, unless another is asked for."""
_QUIET = 0.02  # seconds: where a sound is cut, the quietest of so many
_LAST = 0.3  # of a window: where it may be cut


def cut_window(model: Any, processor: Any, seconds: int) -> None:
    """Make the model, and the processor that feeds it, hear so many seconds at once.

    Errors: LoadError for more than it hears, and for a model whose window is not known.
    """
    ears: Any = getattr(processor, "feature_extractor", None)
    encoder = model.get_encoder()
    places = getattr(encoder, "embed_positions", None)
    if places is None or not hasattr(ears, "chunk_length") or not hasattr(encoder, "max_source_positions"):
        raise LoadError(f"{type(model).__name__}: has no window that can be cut; leave seconds out")
    if not 1 <= seconds <= ears.chunk_length:
        raise LoadError(f"seconds {seconds}: the model hears {ears.chunk_length} at once; give 1 to as many")
    count = encoder.max_source_positions * seconds // ears.chunk_length
    shorter = torch.nn.Embedding(count, places.embedding_dim).requires_grad_(False)
    with torch.no_grad():
        shorter.weight.copy_(places.weight[:count])
    encoder.embed_positions = shorter
    encoder.max_source_positions = model.config.max_source_positions = count
    ears.chunk_length, ears.n_samples = seconds, seconds * ears.sampling_rate
    ears.nb_max_frames = ears.n_samples // ears.hop_length


def pieces(samples: np.ndarray, rate: int, seconds: int) -> Iterator[np.ndarray]:
    """A sound in pieces of at most so many seconds, each cut where it is quietest near its end: between words."""
    most, quiet = seconds * rate, max(int(_QUIET * rate), 1)
    while len(samples) > most:
        near = samples[int(most * (1 - _LAST)) : most]
        rows = near[: len(near) // quiet * quiet].reshape(-1, quiet)
        least = int(np.square(rows).mean(1).argmin())
        at = int(most * (1 - _LAST)) + least * quiet + quiet // 2
        yield samples[:at]
        samples = samples[at:]
    yield samples
