"""Labelled examples to train and to judge models on: public data sets where packages ship them, and the user's own."""

from .dataset import DataError, Dataset, Examples
from .registry import Rows, Source, load_data, source, sources

__all__ = ["DataError", "Dataset", "Examples", "Rows", "Source", "load_data", "source", "sources"]
