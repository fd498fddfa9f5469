"""What to ask: texts or images, from arguments, files and standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def read_items(images: bool, arguments: list[str], files: list[Path]) -> list[Any]:
    """What to ask: of arguments, files, and standard input. Errors: BlindformerError."""
    from ...models.task import image_files
    from ...protocols.errors import BlindformerError

    if images:
        found: list[Any] = [str(path) for path in image_files([*map(Path, arguments), *files])]
        if not found:
            raise BlindformerError("there is nothing to ask: give images' files, or folders of them")
        return found
    found = []
    for argument in arguments:
        found += _lines("standard input", sys.stdin.buffer.read()) if argument == "-" else [argument]
    for file in files:
        try:
            found += _lines(str(file), file.read_bytes())
        except OSError as error:
            raise BlindformerError(f"{file}: cannot be read ({error.strerror}); give a text file") from None
    if not found and not files and not sys.stdin.isatty():
        found = _lines("standard input", sys.stdin.buffer.read())
    if not found:
        raise BlindformerError("there is nothing to ask: give texts, `--file FILE`, or `-` and texts on standard input")
    return found


def paired(texts: list[Any], pairs: list[str]) -> list[Any]:
    """Each text with its pair, in order; the texts as they are if there are no pairs. Errors: BlindformerError."""
    from ...protocols.errors import BlindformerError

    if not pairs:
        return texts
    if len(pairs) != len(texts):
        raise BlindformerError(f"--pair: {len(pairs)} given for {len(texts)} texts; give it once for each text")
    return list(zip(texts, pairs, strict=True))


def shown(item: Any) -> str:
    """What was asked, on a line: a text, an image's file, or a pair of texts."""
    return " | ".join(item) if isinstance(item, tuple) else str(item)


def _lines(name: str, content: bytes) -> list[str]:
    from ...protocols.errors import BlindformerError

    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BlindformerError(
            f"{name}: is not UTF-8 text (byte {error.start}); convert it, for instance with iconv"
        ) from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise BlindformerError(f"{name}: holds no texts; write one a line")
    return texts
