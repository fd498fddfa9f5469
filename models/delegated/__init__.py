"""A public model whose linear layers others compute: which layers these are, and how the model runs with their answers.

layers.py      the layers of one model in groups: those of a group read one input
calls.py       answers the calls of linear layers while a model runs
sequences.py   which groups a pass calls, with how many rows: known before its first message
running.py     the passes of a model; rows beside the real ones, so that lengths stay hidden
manifest.py    a group's weights as integers, and what parties agree on
weights.py     both on disk, as server and dealer read them
"""

from __future__ import annotations

from pathlib import Path

MANIFEST = "delegated.json"
HEAD = "head"  # folder of a private head, in a part of the model that has one
_PARTS = ("", "client", "server", "dealer")


def is_delegated(model: str | Path | None) -> bool:
    """Whether `model` names what compile wrote, DIR or one of its parts, of a model whose weights are public."""
    given = Path(model or "").expanduser()
    return any((given / part / MANIFEST).is_file() for part in _PARTS)
