"""Rows that hide how many there are: a pass sends rows of zeros beside its own, masked like these, and drops their
answers. The model is none the wiser, so texts, images and recordings are padded alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .running import Carrier
from .sequences import GroupCalls

PASSES = 16  # that all passes of a conversation are filled up to after each answer


def row_class(rows: int) -> int:
    """The least power of two that has room for them."""
    return 1 << max(0, rows - 1).bit_length()


class PaddedCarrier:
    """A `Carrier` beneath which another one sees `padded(rows)` rows of each call."""

    def __init__(self, carrier: Carrier, padded: Callable[[int], int] = row_class) -> None:
        self._carrier, self._padded = carrier, padded
        self.end, self.abandon = carrier.end, carrier.abandon

    @property
    def refused(self) -> bool:
        return self._carrier.refused

    def begin(self, sequence: GroupCalls) -> None:
        self._carrier.begin(tuple((group, self._padded(rows)) for group, rows in sequence))

    def call(self, group: int, x: Tensor) -> Tensor:
        zeros = x.new_zeros(self._padded(len(x)) - len(x), x.shape[1])
        return self._carrier.call(group, torch.cat([x, zeros]) if len(zeros) else x)[: len(x)]


class Recorder:
    """A `Carrier` to nobody, which notes the sequence of each pass. `outputs`: by group."""

    refused = False

    def __init__(self, outputs: Sequence[int]) -> None:
        self._outputs, self.sequences = outputs, list[GroupCalls]()

    def begin(self, sequence: GroupCalls) -> None:
        self.sequences.append(sequence)

    def call(self, group: int, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self._outputs[group])

    def end(self) -> None:
        pass

    def abandon(self) -> None:
        pass
