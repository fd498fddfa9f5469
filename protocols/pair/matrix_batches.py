"""Products of matrices whose batches broadcast, as one batch: a batch of the left alone becomes more rows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Batches:
    """Of matrices of these shapes; of one dimension, the left is a row."""

    left: Shape
    right: Shape

    @property
    def product(self) -> Shape:
        rows = self.left[-2:-1]
        return (*self._common, *rows, self.right[-1])

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch, rows, inner, columns."""
        batch = prod(self._common[place] for place in self._batched)
        rows = prod(self._common[place] for place in self._in_rows) * self._full(self.left)[-2]
        return batch, rows, self.left[-1], self.right[-1]

    def lefts(self, x: Tensor) -> Tensor:
        """[batch, rows, inner]"""
        batch, rows, inner, _ = self.sizes
        full = self._full(self.left)
        return x.reshape(full).expand(*self._common, *full[-2:]).permute(self._order).reshape(batch, rows, inner)

    def rights(self, x: Tensor) -> Tensor:
        """[batch, inner, columns]"""
        batch, _, inner, columns = self.sizes
        return x.reshape(self._full(self.right)).permute(self._order).reshape(batch, inner, columns)

    def split(self, x: Tensor) -> Tensor:
        """[batch, rows, columns] of something of the product's shape."""
        batch, rows, _, columns = self.sizes
        full = *self._common, self._full(self.left)[-2], columns
        return x.reshape(full).permute(self._order).reshape(batch, rows, columns)

    def joined(self, x: Tensor) -> Tensor:
        """The product's shape, of [batch, rows, columns]."""
        full = *self._common, self._full(self.left)[-2], self.right[-1]
        ordered = x.reshape([full[place] for place in self._order])
        return ordered.permute([self._order.index(place) for place in range(len(full))]).reshape(self.product)

    @property
    def _common(self) -> Shape:
        return np.broadcast_shapes(self.left[:-2], self.right[:-2])  # torch's own imports sympy

    def _full(self, shape: Shape) -> Shape:
        return (1,) * (len(self._common) + 2 - len(shape)) + shape

    @property
    def _batched(self) -> list[int]:
        """Dimensions in which the right has matrices of its own."""
        return [place for place in range(len(self._common)) if self._full(self.right)[place] > 1]

    @property
    def _in_rows(self) -> list[int]:
        return [place for place in range(len(self._common)) if self._full(self.right)[place] == 1]

    @property
    def _order(self) -> list[int]:
        batch = len(self._common)
        return [*self._batched, *self._in_rows, batch, batch + 1]
