"""Fashion-MNIST: 70,000 images of clothes, 28 x 28, in ten classes, with their own test part of 10,000.

H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747. Debian's `dataset-fashion-mnist` ships the files.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

from .dataset import DataError, RawExamples
from .registry import source

HOW = "apt-get install dataset-fashion-mnist"
NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_TYPE = 0x08  # unsigned bytes, in the third byte of an IDX file


@source("fashion_mnist", title="Fashion-MNIST 28 x 28, 10 classes", licence="MIT", how=HOW)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds train-images-idx3-ubyte.gz and its three siblings."""
    folder = folder or Path("/usr/share/datasets/fashion-mnist")
    images, labels, parts = [], [], []
    for prefix, part in (("train", "train"), ("t10k", "test")):
        images.append(_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3))
        labels += _idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1).tolist()
        parts += [part] * len(images[-1])
    return RawExamples(torch.from_numpy(np.concatenate(images)), labels, NAMES, parts)


def _idx(file: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file: two zeros, a type, the number of dimensions, their sizes (big-endian), the bytes."""
    try:
        with gzip.open(file) as stream:
            raw = stream.read()
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise DataError(f"fashion_mnist: {file} cannot be read ({reason}); run: {HOW}") from None
    head = 4 + 4 * dimensions
    sizes = np.frombuffer(raw[4:head], dtype=">u4").astype(int)
    if raw[:4] != bytes((0, 0, _TYPE, dimensions)) or len(raw) != head + int(sizes.prod()):
        raise DataError(f"fashion_mnist: {file} is not an IDX file of {dimensions} dimensions; fetch it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(sizes).copy()
