"""What to compute instead of softmax, GELU, LayerNorm ... on secret shares: ordinary PyTorch on cheap primitives."""

from .apply import approximate, plan_of, restore
from .calibrate import calibrate, check, kind_of, out_of_range
from .errors import ApproximationError, CalibrationError, PlanError
from .linear import fake_quantise, quantise
from .plan import Choice, Plan
from .primitives import polynomial
from .registry import Approximation, FunctionKind, approximation, choices, find, find_kind, kinds
from .rounding import round_weights

__all__ = [
    "Approximation",
    "ApproximationError",
    "CalibrationError",
    "Choice",
    "FunctionKind",
    "Plan",
    "PlanError",
    "approximate",
    "approximation",
    "calibrate",
    "check",
    "choices",
    "fake_quantise",
    "find",
    "find_kind",
    "kind_of",
    "kinds",
    "out_of_range",
    "plan_of",
    "polynomial",
    "quantise",
    "restore",
    "round_weights",
]
