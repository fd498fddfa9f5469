"""The OpenAI API on the client's own machine: every request is answered through the private protocol."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

KEY_VARIABLE = "BLINDFORMER_GATEWAY_KEY"  # in the environment: the key that callers show


def served_name(model: str | Path) -> str:
    """The name of a model that was given none: of a compiled one its own, else that of its file or folder (DIR for
    DIR/client), else `model` itself."""
    path = Path(model).expanduser()
    if not path.exists():
        return str(model)
    path = path.resolve()
    for part in (path / "client", path):
        with suppress(OSError, ValueError, KeyError, TypeError):  # whoever loads it says what is wrong
            return str(json.loads((part / "client.json").read_text(encoding="utf-8"))["name"])
    return path.stem if path.is_file() else path.parent.name if path.name == "client" else path.name
