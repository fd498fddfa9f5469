"""Labelled examples to train and to judge models on: public data sets where packages ship them, and the user's own."""

from .dataset import DataError, Dataset, Examples
from .registry import DataSource, RawExamples, load_data, source, sources

__all__ = ["DataError", "DataSource", "Dataset", "Examples", "RawExamples", "load_data", "source", "sources"]
