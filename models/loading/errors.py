"""What cannot be loaded, and what a loaded model cannot be fed."""

from __future__ import annotations

from ...errors import BlindformerError


class LoadError(BlindformerError):
    """A model folder that cannot be used, or a length that the model does not take."""


class InputError(BlindformerError):
    """A text or an image that cannot be the model's input."""
