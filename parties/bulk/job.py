"""A job: the rows of a file, asked in pieces over several sessions at once, each answered once.

A piece belongs to one client until it is done. An answer is in the journal before the next row is asked, so the same
command resumes a job however it ended. A row whose answer was lost on the way is asked again, with fresh correlations;
the output has one answer for each row.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...files import whole_file
from ...models.data.reading import TextRow, text_rows
from ..client.canaries import CanaryReport
from .row_clients import (
    GIVE_UP_AFTER_S,
    Answer,
    BulkError,
    Row,
    RowClient,
    answer_pieces,
    ask_all,
    check_kind,
    columns_of,
    connect,
    write_answers,
)

if TYPE_CHECKING:
    from ..client.base import BaseClient

WHOLE = 32  # rows of a piece are a multiple of it, as the texts that share a query may be
PIECES = {"local": 1024, "ray": 256}  # by engine, rows of a piece at most: from Ray, all of its answers come at once
JOB = "job.json"


class Journal:
    """The answers of one job so far: a folder beside its output, which is removed when the output is complete.

        job.json      which job it is
        00012.jsonl   a piece of the rows that is being answered: each answer is written when it comes
        00012.done    the same, when all of it was answered

    A line that a crash has cut off counts as not written: its row is asked again. Errors: `BulkError`, OSError.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, job: dict[str, Any], size: int) -> int:
        """`job`: what makes it this job and no other. Returns the rows of a piece: `size`, or the size that the job was
        begun with."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        note = self.folder / JOB
        if not note.exists():
            if any(not path.match(f"{JOB}.*.part") for path in self.folder.iterdir()):  # which a crash has left
                raise BulkError(f"{self.folder}: is no job's; give another --out, or remove that folder")
            with whole_file(note, durable=True) as stream:
                stream.write(json.dumps({**job, "piece": size}, indent=1).encode())
        begun = json.loads(note.read_text())
        if changed := [name for name in job if begun.get(name) != job[name]]:
            raise BulkError(
                f"{self.folder}: is of another job (another {changed[0]}); give another --out, or remove that folder"
            )
        return begun["piece"]

    def is_done(self, piece: int) -> bool:
        return self._path(piece, "done").exists()

    def answered(self, piece: int) -> dict[int, dict[str, Any]]:
        """The answers of a piece, complete or not, by row."""
        rows: dict[int, dict[str, Any]] = {}
        done = self._path(piece, "done")
        path = done if done.exists() else self._path(piece, "jsonl")
        for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
            with suppress(ValueError):  # a power cut may have left zeros
                row = json.loads(line)
                rows.setdefault(row["row"], row)
        return rows

    def open(self, piece: int) -> BinaryIO:
        """A stream to append answers to. The incomplete line that a crash may have left is cut off."""
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
        """Remove what a job of so many pieces wrote, and the folder unless something else is in it."""
        for piece in range(pieces):
            for ending in ("jsonl", "done"):
                self._path(piece, ending).unlink(missing_ok=True)
        for path in (self.folder / JOB, *self.folder.glob(f"{JOB}.*.part")):
            path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, piece: int, ending: str) -> Path:
        return self.folder / f"{piece:06}.{ending}"


@dataclass(frozen=True)
class JobReport:
    """`answered`: rows with an answer; `failed`: rows with an error, which is in the output; `resumed`: rows that an
    earlier run had answered; `distrusted`: rows that must not be trusted, of any run. `seconds`, `canaries`: of this
    run."""

    rows: int
    answered: int
    failed: int
    resumed: int
    seconds: float
    distrusted: int = 0
    canaries: CanaryReport | None = None

    @property
    def per_second(self) -> float:
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)


class BulkJob:
    """One file to answer.

    source     a table, or texts one a line, as models/data/reading.py reads them
    out        the table of answers to write, which must not exist; its ending says which kind
    make       opens a client; with engine "ray" in another process, so it has to be picklable
    fields     the column with the text, or two of texts that are read together (default: by its usual names)
    row_id     the column that names a row, which becomes the column `id` (default: by its usual names)
    encoding   of the source (default: UTF-8, or as its first bytes say)
    sessions   how many clients ask at once
    engine     "local": in threads of this process; "ray": by Ray Data, on the cluster that Ray finds, or starts here
    patience   seconds without any answer after which a client gives up
    progress   called with (rows answered, rows, rows a second)
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        make: Callable[[], BaseClient],
        *,
        fields: Sequence[str] = (),
        row_id: str | None = None,
        encoding: str | None = None,
        sessions: int = 1,
        engine: str = "local",
        patience: float = GIVE_UP_AFTER_S,
        progress: Callable[[int, int, float], None] = lambda done, rows, rate: None,
    ) -> None:
        check_kind(out)
        if out.exists():
            raise BulkError(f"--out {out}: is there already; give another name, or remove it")
        if engine not in PIECES:
            raise BulkError(f"--engine {engine}: is not known; choose one of {', '.join(PIECES)}")
        self.source, self.out, self.make = source, out, make
        self.fields, self.row_id, self.encoding = fields, row_id, encoding
        self.sessions, self.engine, self.patience, self.progress = sessions, engine, patience, progress
        self.journal = Journal(out.with_name(f"{out.name}.progress"))
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.trained: str | None = None  # columns that the model was trained on
        self._done = self._failed = self._resumed = self._distrusted = 0

    def run(self) -> JobReport:
        """Errors: BulkError, and what was answered stays on record; DataError."""
        started = time.monotonic()
        with ExitStack() as stack:
            if self.engine == "ray":
                connect()
            first = RowClient(self.make)
            stack.callback(first.close)
            self.trained = first.client.part.about.get("columns")
            rows, places = self._counted()
            columns = {**places, **columns_of(first.client)}
            if self.engine == "ray" and first.client.canaries is not None:
                raise BulkError("--engine ray: its processes do not report on canary queries; use --engine local")
            size = stack.enter_context(self._begun(rows, first.client))
            self._left, self._rows, self._started = self._pieces(size), rows, started
            pieces, row_clients = -(-rows // size), [first]
            while self.engine == "local" and len(row_clients) < min(self.sessions, pieces):
                row_clients.append(RowClient(self.make))
                stack.callback(row_clients[-1].close)
            try:
                if self.engine == "ray":
                    self._ask_on_ray(size, min(self.sessions, pieces))
                else:
                    self._ask(row_clients)
            except BulkError as error:
                report = _report(row_clients)
                doubt = f"; canaries: {report}" if report and report.unlike and "not as known" not in str(error) else ""
                raise BulkError(f"{error}; what was answered is kept: the same command goes on{doubt}") from None
            write_answers(self.out, self._noted(pieces), columns)
            self.journal.remove(pieces)
        seconds = time.monotonic() - started
        counts = self._done - self._failed, self._failed, self._resumed
        return JobReport(rows, *counts, seconds, self._distrusted, _report(row_clients))

    @contextmanager
    def _begun(self, rows: int, client: BaseClient) -> Iterator[int]:
        """The rows of a piece. The journal is locked against other processes meanwhile."""
        status, journal = self.source.stat(), self.journal
        job = {
            "source": str(self.source.resolve()),
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
            "fields": list(self.fields),
            "truncate": client.truncate,
            "canaries": None if client.canaries is None else client.canaries.rate,
            "id": self.row_id,
            "encoding": self.encoding,
            "programs": sorted(part.program.hash() for part in client.part.lengths.values()),
        }
        try:
            size = journal.begin(job, min(PIECES[self.engine], -(-rows // (4 * self.sessions * WHOLE)) * WHOLE))
            with (journal.folder / JOB).open() as note:
                fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield size
        except BlockingIOError:
            raise BulkError(f"--out {self.out}: another process is at this job; wait for it") from None
        except OSError as error:
            raise BulkError(f"{journal.folder}: cannot be used ({error.strerror}); give another --out") from None

    def _read(self) -> Iterator[TextRow]:
        return text_rows(self.source, self.fields, self.row_id, self.encoding, trained=self.trained)

    def _counted(self) -> tuple[int, dict[str, str]]:
        """The number of rows, and the columns that name them. Errors: BulkError, if no row can be asked."""
        rows, asked, kinds, wrong = 0, 0, set[type](), ""
        for row in self._read():
            rows += 1
            kinds.add(type(row.id))
            asked += row.error is None
            wrong = wrong or f"line {row.line}: {row.error}"
        if not asked:
            raise BulkError(f"{self.source}: no row can be asked; {wrong}")
        kinds.discard(type(None))
        return rows, {"line": "int64", **({"id": "int64" if kinds == {int} else "string"} if kinds else {})}

    def _pieces(self, size: int) -> Iterator[tuple[int, int, list[TextRow]]]:
        """(number of a piece, its first row, its rows)."""
        rows, piece = self._read(), 0
        while some := list(islice(rows, size)):
            yield piece, piece * size, some
            piece += 1

    def _ask(self, row_clients: list[RowClient]) -> None:
        with ThreadPoolExecutor(len(row_clients), thread_name_prefix="blindformer bulk") as pool:
            working = [pool.submit(self._work, row_client) for row_client in row_clients]
            try:
                wait(working, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
        for one in working:
            one.result()

    def _ask_on_ray(self, size: int, sessions: int) -> None:
        left: dict[int, set[int]] = {}  # by piece, the rows that Ray is to answer

        def pieces() -> Iterator[list[dict[str, Any]]]:
            for piece, rows in self._unanswered():
                named = [({"row": number, "line": row.line, "id": row.id}, row) for number, row in rows.items()]
                asked = [{**name, "text": row.text} for name, row in named if row.error is None]
                left[piece] = {row["row"] for row in asked}
                self._note(piece, [{**name, "error": str(row.error)} for name, row in named if row.error], left[piece])
                if asked:
                    yield asked

        for answers in answer_pieces(self.make, pieces(), sessions, self.patience):
            for piece, some in groupby(answers, lambda answer: answer["row"] // size):
                self._note(piece, some, left[piece])

    def _note(self, piece: int, answers: Iterable[Answer], left: set[int]) -> None:
        """`left`: rows of the piece that have no answer yet; it is finished when there are none."""
        with self.journal.open(piece) as stream:
            for answer in answers:
                self.journal.note(stream, answer)
                self._count(1, bool(answer.get("error")))
                left.discard(answer["row"])
            if not left:
                self.journal.finish(piece, stream)

    def _work(self, row_client: RowClient) -> None:
        for piece, rows in self._unanswered():
            self._answer(row_client, piece, rows)

    def _unanswered(self) -> Iterator[tuple[int, dict[int, TextRow]]]:
        """Each piece that is not done, for this caller alone, with its rows that have no answer, by number."""
        while not self._stop.is_set():
            with self._lock:
                piece, start, rows = next(self._left, (0, 0, []))
            if not rows:
                return
            answered = self.journal.answered(piece)
            self._count(len(answered), sum(bool(row.get("error")) for row in answered.values()), resumed=True)
            if not self.journal.is_done(piece):
                yield piece, {start + at: row for at, row in enumerate(rows) if start + at not in answered}

    def _answer(self, row_client: RowClient, piece: int, rows: dict[int, TextRow]) -> None:
        left: dict[int, Row] = {number: row.text for number, row in rows.items() if row.error is None}
        with self.journal.open(piece) as stream:

            def note(number: int, answer: Answer) -> None:
                row = rows[number]
                self.journal.note(stream, {"row": number, "line": row.line, "id": row.id, **answer})
                self._count(1, bool(answer.get("error")))

            for number in rows.keys() - left.keys():
                note(number, {"error": str(rows[number].error)})
            ask_all(row_client, left, note, self.patience, self._stop)
            if not left:
                self.journal.finish(piece, stream)

    def _noted(self, pieces: int) -> Iterator[list[Answer]]:
        for rows in self.journal.pieces(pieces):
            self._distrusted += sum(bool(row.get("distrusted")) for row in rows)
            yield rows

    def _count(self, rows: int, failed: int, resumed: bool = False) -> None:
        with self._lock:
            self._done, self._failed = self._done + rows, self._failed + failed
            self._resumed += rows if resumed else 0
            rate = (self._done - self._resumed) / max(time.monotonic() - self._started, 1e-9)
            self.progress(self._done, self._rows, rate)


def _report(row_clients: Sequence[RowClient]) -> CanaryReport | None:
    """Of all of them."""
    reports = [
        row_client.client.canaries.report for row_client in row_clients if row_client.client.canaries is not None
    ]
    return sum(reports, CanaryReport()) if reports else None
