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
PACKAGED_NAMES = " or ".join([", ".join([*PACKAGED][:-1]), [*PACKAGED][-1]])
PUBLISHED = (MINILM, *GGUF_PACKAGES, WHISPER_BASE)
"""Those of them that anybody has, as their authors published them."""


def check_name(name: str) -> str:
    """`name`, unless it is nearly that of a packaged model. Errors: LoadError that says which, before a hub is asked.

    Hub ids without an organisation, such as gpt2, are far from all of these names.
    """
    close = [] if name in PACKAGED else difflib.get_close_matches(name.lower(), PACKAGED, n=1, cutoff=0.8)
    if close and not os.path.exists(os.path.expanduser(name)):
        raise LoadError(f"{name}: there is no such model or folder; did you mean {close[0]}?")
    return name
