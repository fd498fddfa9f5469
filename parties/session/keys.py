"""One key for each query and party, from which all its masks of that query follow."""

from __future__ import annotations

from ...protocols.streams import Stream, derive


def query_key(seed: bytes, number: int) -> bytes:
    """The key of one query. Whoever holds it learns nothing of the seed, nor of other queries."""
    return derive(seed, f"query {number}")


def masks(key: bytes) -> Stream:
    """All masks of one query at one party."""
    return Stream(key, "masks")
