"""Recipes that several primitives derive values with. Others stand beside the primitive that they are for.

Each names the values that it reads: masks at the dealer, a party's shares elsewhere. `value` is what the dealer makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ring import Ring
from .values import MaskTerm, Shape


@dataclass(frozen=True)
class MaskProduct:
    """left * right / 2^z elementwise, broadcasting, z the low bits that are zero in the product."""

    left: MaskTerm
    right: MaskTerm

    @property
    def zeros(self) -> int:
        return self.left.zeros + self.right.zeros

    def value(self) -> Tensor:
        return (self.left.value * self.right.value) >> self.zeros


@dataclass(frozen=True)
class MaskMatrixProduct:
    """left @ right, batched."""

    left: Tensor
    right: Tensor
    ring: Ring

    def value(self) -> Tensor:
        return self.ring.matmul(self.left, self.right)


@dataclass(frozen=True)
class PrivateProduct:
    """Of a value that the client alone knows and one that the server alone knows, elementwise or (`ring`) of matrices.
    None: not known to this role. `weight`, `weight_shape`: its name and shape, if the server's is one."""

    clients: Tensor
    servers: Tensor | None
    ring: Ring | None = None
    weight: str = ""
    weight_shape: Shape = ()

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        return left * right if self.ring is None else self.ring.matmul(left, right)

    def value(self) -> Tensor:
        assert self.servers is not None
        return self.product(self.clients, self.servers)


@dataclass(frozen=True)
class Zeros:
    """A sharing of zero."""

    shape: Shape
    device: torch.device

    def value(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.int64, device=self.device)
