"""A data set of ten small images a class that a model learns in seconds, and clients that share it."""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("flwr", reason="the extra `federated` is not installed")

from blindformer.models.data import Dataset, Examples

logging.getLogger("flwr").setLevel(logging.ERROR)


def squares(count: int, seed: int) -> Examples:
    """Grey noise 4 x 4 with a bright quarter: which one is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i % 4 for i in range(count)]
    images = torch.randint(0, 90, (count, 4, 4), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = 2 * (label // 2), 2 * (label % 2)
        image[row : row + 2, column : column + 2] += 150
    return Examples(images, labels)


@pytest.fixture(scope="session")
def data() -> Dataset:
    names = ("upper left", "upper right", "lower left", "lower right")
    return Dataset("squares", "image", names, squares(96, 0), squares(24, 1), squares(40, 2), {})


SMALL = {"clients": 4, "rounds": 2, "hidden": 16, "layers": 1, "epochs": 2, "batch": 8, "rate": 2e-2}
