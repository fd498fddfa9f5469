"""Examples as a model takes them: what training needs of texts and of images alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class EncodedRows(Protocol):
    """Encoded examples. `lengths`: those of like length go into one batch."""

    @property
    def labels(self) -> Tensor: ...

    @property
    def lengths(self) -> list[int]: ...

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]: ...

    def labels_of(self, indices: Sequence[int]) -> Tensor: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, eq=False)
class PixelRows:
    """Images [N, channels, H, W], scaled as the model wants them."""

    values: Tensor
    labels: Tensor

    @property
    def lengths(self) -> list[int]:
        return [0] * len(self.labels)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {"pixel_values": self.values[torch.as_tensor(indices, dtype=torch.long)]}

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        return self.labels[torch.as_tensor(indices, dtype=torch.long)]

    def __len__(self) -> int:
        return len(self.labels)
