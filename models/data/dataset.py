"""Examples with labels, and a data set of three parts: to train, to choose by, and to judge by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...protocols.errors import BlindformerError

PARTS = ("train", "validation", "test")


class DataError(BlindformerError):
    """Data that is missing, cannot be read, or does not fit what it is for."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts, or images uint8 [N, H, W], with class indices."""

    inputs: list[str] | Tensor
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def texts(self) -> list[str]:
        """Errors: DataError if these are images."""
        if isinstance(self.inputs, Tensor):
            raise DataError("these examples are images: a text model cannot read them; give texts")
        return self.inputs

    @property
    def items(self) -> list[Any]:
        """One by one: texts, or images [H, W]."""
        return list(self.inputs)

    def take(self, indices: Sequence[int]) -> Examples:
        """The examples at these positions, in this order."""
        labels = [self.labels[i] for i in indices]
        if isinstance(self.inputs, Tensor):
            return Examples(self.inputs[torch.as_tensor(indices, dtype=torch.long)], labels)
        return Examples([self.inputs[i] for i in indices], labels)

    def subset(self, count: int, seed: int = 0) -> Examples:
        """At most `count` of them, stratified and seeded, in the original order."""
        if count >= len(self):
            return self
        return self.take(stratified(self.labels, count, seed)[0])


@dataclass(frozen=True, eq=False)
class RawExamples:
    """What a source holds: texts or images uint8 [N, H, W], their class indices, the classes' names.

    parts    where the source says it: train, validation or test for each row; None leaves the split to us
    """

    inputs: list[str] | Tensor
    labels: list[int]
    names: tuple[str, ...]
    parts: list[str] | None = None


@dataclass(frozen=True)
class Reading:
    """How a data set was read and divided, to do it again.

    name       its own, or that of its file or folder, without the path
    content    SHA-256 of the file or folder; of any other source, of its rows
    test_rows  SHA-256 of the test part's texts or images
    the rest   as `load_data` was told
    """

    name: str
    content: str
    test_rows: str
    text: str | None
    label: str | None
    encoding: str | None
    seed: int
    test: float
    validation: float

    def settings(self) -> dict[str, Any]:
        """Arguments of `load_data`."""
        return {name: value for name, value in vars(self).items() if name not in ("name", "content", "test_rows")}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint parts of one source.

    labels    the classes' names, in the order of their indices
    kind      text or image
    dropped   how many rows were left out, by reason: duplicate, contradictory (one text, several labels), empty
    reading   how it was read; None if it was put together by hand
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    dropped: Mapping[str, int]
    reading: Reading | None = None

    def matched(self, labels: Mapping[int, str]) -> Dataset:
        """The same with a model's class indices. `labels`: its names by index (`config.id2label`).

        Names are matched without regard to case. A model with names of no meaning (LABEL_0, 0), or data whose labels
        are plain numbers, is matched by index. Errors: DataError that names both sides.
        """
        ours, theirs = [_plain(n) for n in self.labels], {_plain(n): i for i, n in labels.items()}
        if set(ours) <= set(theirs):
            to = [theirs[n] for n in ours]
        elif len(labels) == len(ours) and (_numbers(ours) or _numbers(theirs)):
            to = list(range(len(ours)))
        else:
            raise DataError(
                f"{self.name}: its labels are {_list(self.labels)}, the model's are {_list(labels.values())}; "
                "rename those of the data, or give a model for them"
            )
        parts = {
            part: replace(found, labels=[to[i] for i in found.labels])
            for part, found in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        return replace(self, labels=tuple(labels[i] for i in sorted(labels)), **parts)


def stratified(labels: Sequence[int], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions of `count` examples with every class's share kept, and those of the rest; both in original order.

    What a class's share leaves of a whole number goes to the classes with the largest remainders.
    """
    values = np.asarray(labels)
    classes, sizes = np.unique(values, return_counts=True)
    exact = sizes * (count / len(values))
    wanted = np.floor(exact).astype(int)
    for i in np.argsort(wanted - exact, kind="stable")[: count - int(wanted.sum())]:
        wanted[i] += 1
    random = np.random.default_rng(seed)
    taken = [random.permutation(np.flatnonzero(values == c))[:n] for c, n in zip(classes, wanted, strict=True)]
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.concatenate(taken)] = True
    return np.flatnonzero(chosen).tolist(), np.flatnonzero(~chosen).tolist()


def _plain(name: str) -> str:
    return name.strip().casefold().removeprefix("label_")


def _numbers(names: Sequence[str] | Mapping[str, int]) -> bool:
    return all(name.isdigit() for name in names)


def _list(names: Sequence[str] | object) -> str:
    shown = [str(n) for n in names]  # type: ignore[attr-defined]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
