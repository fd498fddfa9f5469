"""Sources: values that parties have, by name."""

from __future__ import annotations

from typing import NoReturn

from .operation import SHARED, SOURCE, Attributes, Operation


def given(name: str) -> NoReturn:
    raise RuntimeError(f"{name}: is a source, which is not computed; this is a bug")


def named(attributes: Attributes) -> str:
    return "" if isinstance(attributes.get("name"), str) else "a source without a name"


client, weight, constant, input_ = (
    Operation(name, SOURCE, given, check=named) for name in ("client", "weight", "constant", "input")
)


# Values that stay shared from one run of a session to the next (protocols/states.py).


state = Operation("state", SOURCE, given, scales="state", check=named)
keep = Operation("keep", SHARED, lambda x, name, whole=False: x, scales="keep", demand=lambda bits, attributes: 64)
