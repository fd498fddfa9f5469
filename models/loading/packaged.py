"""The names of models that packages bring, and what a misspelt one means. Commands import this before torch."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from .huggingface import GGUF_PACKAGES, LoadError

MINILM, WHISPER_BASE = "minilm", "whisper-base"
STUDENT = "student.safetensors"
STUDENTS = Path(__file__).parents[1] / "students"


def packaged_students() -> dict[str, Path]:
    """The students that come with this package: their folders by name."""
    return {file.parent.name: file.parent for file in sorted(STUDENTS.glob(f"*/{STUDENT}"))}


PACKAGED = {
    MINILM: "sentence-embedding",
    **dict.fromkeys(packaged_students(), "sentence-embedding"),
    **dict.fromkeys(GGUF_PACKAGES, "text-generation"),
    WHISPER_BASE: "automatic-speech-recognition",
}
"""Models whose weights come in packages, with their tasks."""
GIVE_MODEL = "give a folder, a hub id, or a packaged model (`blindformer models`)"
PUBLISHED = (MINILM, *GGUF_PACKAGES, WHISPER_BASE)
"""Those of them that anybody has, as their authors published them."""


def check_name(name: str) -> str:
    """`name`, unless it can only be a folder that is not there, or is nearly that of a packaged model: before a hub is
    asked. Errors: LoadError that says which.

    Hub ids without an organisation, such as gpt2, are far from all of these names.
    """
    if name in PACKAGED or (name and os.path.exists(os.path.expanduser(name))):
        return name
    if close := difflib.get_close_matches(name.lower(), PACKAGED, n=1, cutoff=0.8):
        raise LoadError(f"{name}: there is no such model or folder; did you mean {close[0]}?")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise LoadError(f"{name}: there is no such folder; {GIVE_MODEL}")
    return name
