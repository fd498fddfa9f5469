"""A job: the rows of a file, asked in pieces over several sessions at once, each answered once.

A piece belongs to one asker until it is done. What is answered is on record before the next row is asked, so that a job
that was ended, however it was, goes on where it was with the same command. A row whose answer was lost on the way is
asked again, with other correlations; the output has one answer of each.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ...models.data.reading import TextRow, text_rows
from ..cluster import connect
from .askers import PATIENCE, Answer, ClientAsker, RayAsker, Row, RowAsker, ask_all, columns_of
from .journal import JOB, Journal
from .tables import BulkError, check_kind, write_answers

if TYPE_CHECKING:
    from ..client.base import BaseClient

PIECE, WHOLE = 1024, 32  # rows of a piece at most; a multiple of the texts that share a query
ENGINES = ("local", "ray")
Told = Callable[[int, int, float], None]


@dataclass(frozen=True)
class JobReport:
    """`answered`: rows with an answer; `failed`: those with an error, which stands in the output. `resumed`: rows that
    an earlier run had answered. `seconds`: of this run."""

    rows: int
    answered: int
    failed: int
    resumed: int
    seconds: float

    @property
    def per_second(self) -> float:
        return (self.rows - self.resumed) / max(self.seconds, 1e-9)


class BulkJob:
    """One file to answer.

    source     a table, or texts one a line, as models/data/reading.py reads them
    out        the table of answers to write: its ending says which kind. It must not be there
    make       opens a client; with engine "ray" in another process, so it has to be picklable
    fields     the column with the text, or two of texts that are read together (default: by its usual names)
    row_id     the column that names a row, which becomes the column `id` (default: by its usual names)
    encoding   of the source (default: UTF-8, or as its first bytes say)
    sessions   how many clients ask at once
    engine     "local": in threads of this process; "ray": in processes of the cluster that Ray finds, or starts here
    patience   seconds without any answer after which an asker gives up
    told       called with (rows answered, rows, rows a second)
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
        patience: float = PATIENCE,
        told: Told = lambda done, rows, rate: None,
    ) -> None:
        check_kind(out)
        if out.exists():
            raise BulkError(f"--out {out}: is there already; give another name, or remove it")
        if engine not in ENGINES:
            raise BulkError(f"--engine {engine}: is not known; choose one of {', '.join(ENGINES)}")
        self.source, self.out, self.make = source, out, make
        self.fields, self.row_id, self.encoding = fields, row_id, encoding
        self.sessions, self.engine, self.patience, self.told = sessions, engine, patience, told
        self.journal = Journal(out.with_name(f"{out.name}.progress"))
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._done = self._failed = self._resumed = 0

    def run(self) -> JobReport:
        """Errors: BulkError, and what was answered stays on record; DataError."""
        started = time.monotonic()
        with ExitStack() as stack:
            if self.engine == "ray":
                connect()
            first = ClientAsker(self.make)
            stack.callback(first.close)
            rows, places = self._counted()
            columns = {**places, **columns_of(first.client)}
            size = stack.enter_context(self._begun(rows, first.client))
            self._left, self._rows, self._started = self._pieces(size), rows, started
            askers: list[RowAsker] = [first] if self.engine == "local" else []
            while len(askers) < min(self.sessions, -(-rows // size)):
                askers.append(ClientAsker(self.make) if self.engine == "local" else RayAsker(self.make))
                stack.callback(askers[-1].close)
            try:
                self._ask(askers)
            except BulkError as error:
                raise BulkError(f"{error}; what was answered is kept: the same command goes on") from None
            pieces = -(-rows // size)
            write_answers(self.out, self.journal.pieces(pieces), columns)
            self.journal.remove(pieces)
        seconds = time.monotonic() - started
        return JobReport(rows, self._done - self._failed, self._failed, self._resumed, seconds)

    @contextmanager
    def _begun(self, rows: int, client: BaseClient) -> Iterator[int]:
        """Rows of a piece. Nobody else works on it meanwhile."""
        status, journal = self.source.stat(), self.journal
        job = {
            "source": str(self.source.resolve()),
            "bytes": status.st_size,
            "modified": status.st_mtime_ns,
            "fields": list(self.fields),
            "truncate": client.truncate,
            "id": self.row_id,
            "encoding": self.encoding,
            "programs": sorted(part.program.hash() for part in client.part.lengths.values()),
        }
        try:
            size = journal.begin(job, min(PIECE, -(-rows // (4 * self.sessions * WHOLE)) * WHOLE))
            with (journal.folder / JOB).open() as note:
                fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield size
        except BlockingIOError:
            raise BulkError(f"--out {self.out}: another process is at this job; wait for it") from None
        except OSError as error:
            raise BulkError(f"{journal.folder}: cannot be used ({error.strerror}); give another --out") from None

    def _read(self) -> Iterator[TextRow]:
        return text_rows(self.source, self.fields, self.row_id, self.encoding)

    def _counted(self) -> tuple[int, dict[str, str]]:
        """How many rows there are, and the columns that name them. Errors: BulkError, if none can be asked."""
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

    def _ask(self, askers: list[RowAsker]) -> None:
        with ThreadPoolExecutor(len(askers), thread_name_prefix="blindformer bulk") as pool:
            working = [pool.submit(self._work, asker) for asker in askers]
            try:
                wait(working, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
        for one in working:
            one.result()

    def _work(self, asker: RowAsker) -> None:
        while not self._stop.is_set():
            with self._lock:
                piece, start, rows = next(self._left, (0, 0, []))
            if not rows:
                return
            answered = self.journal.answered(piece)
            self._count(len(answered), sum(bool(row.get("error")) for row in answered.values()), resumed=True)
            if not self.journal.is_done(piece):
                self._answer(
                    asker, piece, {start + at: row for at, row in enumerate(rows) if start + at not in answered}
                )

    def _answer(self, asker: RowAsker, piece: int, rows: dict[int, TextRow]) -> None:
        left: dict[int, Row] = {number: row.text for number, row in rows.items() if row.error is None}
        with self.journal.open(piece) as stream:

            def note(number: int, answer: Answer) -> None:
                row = rows[number]
                self.journal.note(stream, {"row": number, "line": row.line, "id": row.id, **answer})
                self._count(1, bool(answer.get("error")))

            for number in rows.keys() - left.keys():
                note(number, {"error": str(rows[number].error)})
            ask_all(asker, left, note, self.patience, self._stop)
            if not left:
                self.journal.finish(piece, stream)

    def _count(self, rows: int, failed: int, resumed: bool = False) -> None:
        with self._lock:
            self._done, self._failed = self._done + rows, self._failed + failed
            self._resumed += rows if resumed else 0
            rate = (self._done - self._resumed) / max(time.monotonic() - self._started, 1e-9)
            self.told(self._done, self._rows, rate)
