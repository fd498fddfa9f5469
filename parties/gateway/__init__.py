"""The OpenAI API on the client's own machine: whoever speaks it is answered through the private protocol."""

from __future__ import annotations

from pathlib import Path


def served_name(model: str | Path) -> str:
    """What a model is called that nobody has named: its file or folder, DIR of DIR/client; or as it was asked for."""
    path = Path(model).expanduser()
    if not path.exists():
        return str(model)
    path = path.resolve()
    return path.stem if path.is_file() else path.parent.name if path.name == "client" else path.name
