"""Teaching a small change of functions to a model: a student that computes with a plan's approximations."""

from .pipeline import Distilled, distill
from .settings import DistillError, Settings
from .training import Step

__all__ = ["DistillError", "Distilled", "Settings", "Step", "distill"]
