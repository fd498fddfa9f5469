"""Public texts without a task: glosses and examples of WordNet, and what Debian's packages say that they are.

G. Miller, "WordNet: a lexical database for English", Communications of the ACM 38, 1995; Debian's `wordnet-base` ships
it. The descriptions are those of the package lists on this machine. A label says only where a text is from.
"""

from __future__ import annotations

import re
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from .dataset import DataError, RawExamples
from .registry import source

HOW = "apt-get update && apt-get install wordnet-base"
NAMES = ("gloss", "example", "package")
_SHORTEST = 8  # characters
_QUOTED = re.compile(r'"([^"]+)"')
_TEST, _VALIDATION = 20, 5  # of a thousand groups of texts


@source("public_texts", title="WordNet's glosses and examples, Debian's descriptions", licence="WordNet", how=HOW)
def read(folder: Path | None) -> RawExamples:
    """`folder`: the one that holds WordNet's data.noun, data.verb, data.adj and data.adv, and perhaps packages.txt,
    one description a line, in place of those of this machine. The texts of one synset, and the descriptions that begin
    alike, are in one part."""
    folder = folder or Path("/usr/share/wordnet")
    rows = [*_wordnet(folder), *((text, 2, re.split(r" - |: | \(", text)[0]) for text in _packages(folder))]
    rows = [row for row in rows if len(row[0]) >= _SHORTEST]
    return RawExamples(
        [text for text, _, _ in rows], [label for _, label, _ in rows], NAMES, [_part(group) for _, _, group in rows]
    )


def _wordnet(folder: Path) -> Iterator[tuple[str, int, str]]:
    """(text, label, group); the format is that of wndb(5WN)."""
    for part in ("noun", "verb", "adj", "adv"):
        file = folder / f"data.{part}"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DataError(f"public_texts: {file} cannot be read ({error.strerror}); run: {HOW}") from None
        for line in lines:
            if line.startswith("  "):  # the licence
                continue
            synset, _, gloss = line.partition(" | ")
            group = f"{part} {synset[:8]}"
            yield _QUOTED.sub("", gloss).strip(" ;,:-"), 0, group
            yield from ((example, 1, group) for example in _QUOTED.findall(gloss))


def _packages(folder: Path) -> list[str]:
    own = folder / "packages.txt"
    if own.is_file():
        return own.read_text(encoding="utf-8").splitlines()
    try:
        listing = subprocess.run(
            ["apt-cache", "dumpavail"], capture_output=True, check=True, text=True, errors="replace"
        )
    except (OSError, subprocess.CalledProcessError):
        raise DataError(
            f"public_texts: apt-cache gives no descriptions; on Debian, run: {HOW}; elsewhere, write {own}"
        ) from None
    return re.findall(r"^Description(?:-en)?: (.+)$", listing.stdout, re.MULTILINE)


def _part(group: str) -> str:
    at = zlib.crc32(group.encode()) % 1000
    return "test" if at < _TEST else "validation" if at < _TEST + _VALIDATION else "train"
