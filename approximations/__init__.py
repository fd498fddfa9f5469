"""What to compute instead of softmax, GELU, LayerNorm ... on secret shares: ordinary PyTorch on cheap primitives."""

from .apply import approximate, plan_of, restore
from .calibrate import calibrate, check, kind_of, out_of_range
from .errors import CalibrationError, PlanError
from .linear import fake_quantise, quantise
from .plan import Choice, Plan
from .primitives import polynomial
from .registry import Approximation, approximation, choices, find
from .rounding import round_weights

__all__ = [
    "Approximation",
    "CalibrationError",
    "Choice",
    "Plan",
    "PlanError",
    "approximate",
    "approximation",
    "calibrate",
    "check",
    "choices",
    "fake_quantise",
    "find",
    "kind_of",
    "out_of_range",
    "plan_of",
    "polynomial",
    "quantise",
    "restore",
    "round_weights",
]
