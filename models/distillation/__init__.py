"""Teaching a small change of functions to a model: a student that computes with a plan's approximations."""

from ..distillation_settings import DistillError, DistillSettings
from .head import TrainedHead, train_head
from .pipeline import Distilled, distill
from .training import TrainingStep

__all__ = ["DistillError", "DistillSettings", "Distilled", "TrainedHead", "TrainingStep", "distill", "train_head"]
