"""Sources: values that parties have, by name."""

from __future__ import annotations

from typing import NoReturn

from .operation import SOURCE, Operation


def given(name: str) -> NoReturn:
    raise RuntimeError(f"{name}: is a source, which is not computed; this is a bug")


client, weight, constant, input_ = (
    Operation(name, SOURCE, given) for name in ("client", "weight", "constant", "input")
)
