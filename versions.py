"""Which versions are installed: the one place that looks."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

NOT_INSTALLED = "not installed"
PROTOCOL = 14  # of messages, mask streams and what Programs mean; 14: rows of delegated layers travel in halves


@cache
def installed(package: str) -> str | None:
    """A package's version; None if it is not installed. Looked up once: a service does it before it forks."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def my_version() -> str:
    """This package's; "0" in a source tree that is not installed."""
    return installed("blindformer") or "0"


def spoken_version() -> str:
    """What two parties must have in common: this package's version, and that of what they send each other."""
    return f"{my_version()}-protocol.{PROTOCOL}"


def versions(*more: str) -> dict[str, str]:
    """What stands beside results: Python's version, and those of this package and of what computes."""
    packages = {name: installed(name) or NOT_INSTALLED for name in ("blindformer", "torch", "transformers", *more)}
    return {"python": platform.python_version(), **packages}
