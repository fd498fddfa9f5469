"""Labelled examples to train and to judge models on: public data sets where packages ship them, and the user's own."""

from .dataset import DataError, Dataset, Examples, RawExamples
from .load import load_data
from .registry import DataSource, source, sources

__all__ = ["DataError", "DataSource", "Dataset", "Examples", "RawExamples", "load_data", "source", "sources"]
