"""Labelled examples to train and to judge models on: public data sets where packages ship them, and the user's own."""

from .dataset import DataError, Dataset, Examples, RawExamples, TestRowsWarning, check_unseen, keep_reading
from .load import judging_texts, load_as_trained, load_data, load_texts
from .registry import DataSource, source, sources

__all__ = [
    "DataError",
    "DataSource",
    "Dataset",
    "Examples",
    "RawExamples",
    "TestRowsWarning",
    "check_unseen",
    "judging_texts",
    "keep_reading",
    "load_as_trained",
    "load_data",
    "load_texts",
    "source",
    "sources",
]
