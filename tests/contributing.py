"""The files that CONTRIBUTING.md shows, and a copy of the package that has them all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
LEFT_OUT = shutil.ignore_patterns("bench", "docs", "build", "*.egg-info", "__pycache__", ".*")


class Snippet(NamedTuple):
    """A block of Python: the word after the language, and the file that the sentence before it names."""

    word: str
    file: str
    text: str


def snippets() -> list[Snippet]:
    """All of them, in order. "Save this as NAME in that folder" means the last one that was named."""
    page, blocks = PAGE.read_text(encoding="utf-8"), []
    for block in re.finditer(r"^```python(.*)\n((?:.*\n)*?)```$", page, re.MULTILINE):
        before = page[: block.start()]
        *_, saved = re.finditer(r"Save\s+this\s+as\s+(\S+\.py)\s+in\s+(?:that\s+folder|`([\w/]+)/`)", before)
        *_, folder = re.findall(r"`([\w/]+)/`", before[: saved.start()]) + ([saved[2]] if saved[2] else [])
        assert "```" not in before[saved.end() :], f"no sentence says where this is saved: {block[2][:80]}"
        blocks.append(Snippet(block[1].strip(), f"{folder}/{saved[1]}", block[2]))
    return blocks


def copy_with_snippets(folder: Path) -> Path:
    """The package in a folder, with every snippet in its file."""
    copy = folder / "blindformer"
    beside = {str(ROOT): {"shared"}}  # what is not of the repository
    shutil.copytree(ROOT, copy, ignore=lambda path, names: LEFT_OUT(path, names) | beside.get(path, set()))
    for snippet in snippets():
        file = copy / snippet.file
        assert not file.exists(), f"{snippet.file} is there already"
        file.write_text(snippet.text, encoding="utf-8")
    return copy


def run_copy(copy: Path, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with the copied package in the place of the installed one."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(copy.parent), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        cwd=cwd or copy.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
