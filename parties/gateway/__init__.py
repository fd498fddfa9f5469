"""The OpenAI API on the client's own machine: every request is answered through the private protocol."""

from __future__ import annotations

from pathlib import Path

KEY_VARIABLE = "BLINDFORMER_GATEWAY_KEY"  # in the environment: the key that callers show


def served_name(model: str | Path) -> str:
    """The name of a model that was given none: that of its file or folder (DIR for DIR/client), else `model` itself."""
    path = Path(model).expanduser()
    if not path.exists():
        return str(model)
    path = path.resolve()
    return path.stem if path.is_file() else path.parent.name if path.name == "client" else path.name
