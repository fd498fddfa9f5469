"""What a job has answered already: a folder beside its output, which is gone when the output is there.

    job.json      which job it is
    00012.jsonl   a piece of the rows that is being answered: each answer is written when it comes
    00012.done    the same, when all of it was answered

A line that a crash has cut off is as if it had not been written: its row is asked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from ...files import whole_file
from .tables import BulkError

JOB = "job.json"


class Journal:
    """Of one job, in `folder`. Errors of all methods: `BulkError`, OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, job: dict[str, Any], size: int) -> int:
        """`job`: what makes it this job and no other. Returns the rows of a piece: `size`, unless it was begun with
        others."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        note = self.folder / JOB
        if not note.exists():
            if any(not path.match(f"{JOB}.*.part") for path in self.folder.iterdir()):  # which a crash has left
                raise BulkError(f"{self.folder}: is no job's; give another --out, or remove that folder")
            with whole_file(note, durable=True) as stream:
                stream.write(json.dumps({**job, "piece": size}, indent=1).encode())
        found = json.loads(note.read_text())
        if changed := [name for name in job if found.get(name) != job[name]]:
            raise BulkError(
                f"{self.folder}: is of another job (another {changed[0]}); give another --out, or remove that folder"
            )
        return found["piece"]

    def is_done(self, piece: int) -> bool:
        return self._path(piece, "done").exists()

    def answered(self, piece: int) -> dict[int, dict[str, Any]]:
        """By row, of a piece that is done or was broken off."""
        done = self._path(piece, "done")
        path = done if done.exists() else self._path(piece, "jsonl")
        rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            for line in path.read_bytes().split(b"\n")[:-1]:
                with suppress(ValueError):  # a power cut may have left zeros
                    row = json.loads(line)
                    rows.setdefault(row["row"], row)
        return rows

    def open(self, piece: int) -> BinaryIO:
        """To append to; what a crash has cut off is cut off."""
        path = self._path(piece, "jsonl")
        whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        stream = path.open("ab")
        stream.truncate(whole)
        return stream

    @staticmethod
    def note(stream: BinaryIO, row: dict[str, Any]) -> None:
        stream.write(json.dumps(row).encode() + b"\n")
        stream.flush()

    def finish(self, piece: int, stream: BinaryIO) -> None:
        os.fsync(stream.fileno())
        stream.close()
        self._path(piece, "jsonl").rename(self._path(piece, "done"))

    def pieces(self, count: int) -> Iterator[list[dict[str, Any]]]:
        """All answers in the order of their rows, of `count` pieces that are done."""
        for piece in range(count):
            rows = self.answered(piece)
            yield [rows[number] for number in sorted(rows)]

    def remove(self, pieces: int) -> None:
        """What a job of so many pieces wrote; and the folder, unless something else is in it."""
        for piece in range(pieces):
            for ending in ("jsonl", "done"):
                self._path(piece, ending).unlink(missing_ok=True)
        for path in (self.folder / JOB, *self.folder.glob(f"{JOB}.*.part")):
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, piece: int, ending: str) -> Path:
        return self.folder / f"{piece:06}.{ending}"
