"""What can go wrong when a model is approximated. Every message is one line: what, where, what to do."""

from __future__ import annotations

from ..errors import BlindformerError


class ApproximationError(BlindformerError, ValueError):
    """Base of the errors of approximations and plans."""


class PlanError(ApproximationError):
    """A plan names something that does not exist or does not fit the model."""


class CalibrationError(ApproximationError):
    """Activations cannot be calibrated, or have left the range a plan was calibrated for."""
