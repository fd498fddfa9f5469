"""Products of secrets: with a value that one party knows, and of shared values."""

from __future__ import annotations

import torch

from ..ring import Ring
from .operation import PRIVATE, SHARED, Operation

_RING = Ring()

linear = Operation("linear", PRIVATE, _RING.linear, torch.matmul, shared=1, scales="linear")
mul_private = Operation("mul_private", PRIVATE, lambda x, y: x * y, shared=1, scales="private")
mul = Operation("mul", SHARED, lambda x, y: x * y, opened=True, scales="product")
matmul = Operation("matmul", SHARED, _RING.matmul, torch.matmul, scales="matrix")
