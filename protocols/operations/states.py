"""Values that stay shared from one run of a session to the next (protocols/states.py)."""

from __future__ import annotations

from .operation import SHARED, SOURCE, Operation
from .sources import given, named

state = Operation("state", SOURCE, given, scales="state", check=named)
keep = Operation("keep", SHARED, lambda x, name, whole=False: x, scales="keep", demand=lambda bits, attributes: 64)
