"""Primitives whose messages have another form among N parties than between two. Found by scanning this folder; every
other operation runs by beaver's, whose openings go to everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from ...beaver import primitive as beaver


@cache
def primitives() -> Mapping[str, beaver.Primitive]:
    return {**beaver.primitives(), **beaver.primitives(__name__)}
