"""Settings and options of earlier versions, and what to do in their place."""

from __future__ import annotations

from ..protocols.errors import BlindformerError

_SIZING = "plans for many users are gone: leave it out, and multiply the price of a query"
_SIZES = ("users", "queries", "peak", "ahead", "within", "cores", "uplink", "utilisation", "core-hour", "gb")

OPTIONS: dict[str, dict[str, str]] = {
    "estimate": {f"--{name}": _SIZING for name in _SIZES},
}


def refuse_retired(command: str | None, words: list[str]) -> None:
    """Errors: BlindformerError for an option that this command had."""
    for option in (word.partition("=")[0] for word in words):
        if instead := OPTIONS.get(command or "", {}).get(option):
            raise BlindformerError(f"{option}: {instead}")
