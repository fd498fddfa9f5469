"""Models of images and of sounds: their inputs are files, which have endings, and folders of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .images import IMAGE_ENDINGS
from .sounds import SOUND_ENDINGS


@dataclass(frozen=True)
class Medium:
    """`word`: for one of them, and `one` with its article. `task`: what transformers' names of its tasks start with."""

    word: str
    one: str
    task: str
    endings: Sequence[str]


MEDIA = {  # by the kind of model (Task.kind)
    "image": Medium("image", "an image", "image", IMAGE_ENDINGS),
    "sound": Medium("sound", "a sound", "audio", SOUND_ENDINGS),
}


def word_of_kind(kind: str) -> str:
    """What a model of a kind (Task.kind) is asked: image, sound or text."""
    return MEDIA[kind].word if kind in MEDIA else "text"


def word_of(task: str) -> str:
    """What a task of transformers' name is asked: image, sound or text."""
    return next((medium.word for medium in MEDIA.values() if task.startswith(f"{medium.task}-")), "text")


def media_files(kind: str, paths: Iterable[Path]) -> list[Path]:
    """What `paths` name for a model of this kind: files as they are, folders' files in order of their names.

    Errors: InputError.
    """
    medium, found = MEDIA[kind], []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in medium.endings)
            if not inside:
                raise InputError(f"{path}: holds no {medium.word}s ({', '.join(medium.endings)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path}: there is no such file; give a file or a folder of {medium.word}s")
    return found
