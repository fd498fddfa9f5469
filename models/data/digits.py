"""Handwritten digits, 1,797 images of 8 x 8 with 17 grey levels, as scikit-learn ships them.

E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998. The file is read without that library.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from .dataset import DataError, RawExamples
from .registry import source

HOW = "pip install scikit-learn"


@source("digits", title="Handwritten digits 8 x 8 (UCI), 10 classes", licence="CC BY 4.0", how=HOW)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds digits.csv.gz. Grey levels 0..16 become 0..255."""
    if folder is None:
        package = find_spec("sklearn")
        origin = package.origin if package is not None else None
        if origin is None or not (Path(origin).parent / "datasets" / "data").is_dir():
            raise DataError(f"digits: scikit-learn, which ships them, is not installed; run: {HOW}")
        folder = Path(origin).parent / "datasets" / "data"
    file = folder / "digits.csv.gz"
    try:
        with gzip.open(file, "rt", encoding="ascii") as stream:
            table = np.loadtxt(stream, delimiter=",", dtype=np.int64)
    except (OSError, ValueError) as error:
        raise DataError(f"digits: {file} cannot be read ({error}); run: {HOW}") from None
    grey = (table[:, :64] * 255 + 8) // 16
    images = torch.from_numpy(grey.astype(np.uint8)).reshape(-1, 8, 8)
    return RawExamples(images, table[:, 64].tolist(), tuple(str(d) for d in range(10)))
