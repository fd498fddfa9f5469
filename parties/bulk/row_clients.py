"""Clients that answer rows of texts, by themselves or by `map_batches` of Ray Data, and the table of their answers.

The nodes of a Ray cluster see texts and answers, so it has to be the data owner's. It is the one that RAY_ADDRESS
names, or one of this machine, for now.
"""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...files import whole_file
from ...models.data.reading import PARQUET, parquet_module
from ...models.loading.truncation import REPORTED
from ...protocols.errors import BlindformerError, PeerDisagrees, PeerError, PeerRefused
from ..client.canaries import CanaryError
from ..session.messages import SlotsBusy
from ..session.preprocessing_store import StoreError

if TYPE_CHECKING:  # importing it takes seconds
    from ..client.base import BaseClient
    from ..client.result import Result

Row = str | tuple[str, ...] | None  # a text, or several; None where one is missing
Answer = dict[str, Any]
RETRY_DELAY_S, GIVE_UP_AFTER_S = 1.0, 600.0
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
WRITTEN = (PARQUET, *_SEPARATORS, ".jsonl")
_FINAL = (PeerRefused, PeerDisagrees)  # asking again would not help


class BulkError(BlindformerError):
    """A bulk job cannot be begun, or go on."""


class Interrupted(BulkError):
    """The rows that are left were not answered; asking again may help."""


class RowClient:
    """A client of this process. `make` opens it; nothing is dialled before rows are asked."""

    def __init__(self, make: Callable[[], BaseClient]) -> None:
        self.client = make()

    def ask(self, rows: list[Row]) -> Iterator[tuple[int, Answer]]:
        """(index of a row, its answer or its error), not in order. Rows that a busy server has not taken are left out.

        Errors: `Interrupted`; BulkError where asking again does not help.
        """
        numbers = [number for number, row in enumerate(rows) if row is not None]
        yield from ((number, {"error": "the row has no text"}) for number, row in enumerate(rows) if row is None)
        try:
            for place, result in self.client.stream([rows[number] for number in numbers], top_k=1):
                if not isinstance(result.error, SlotsBusy):
                    yield numbers[place], _answer(self.client, result)
        except BlindformerError as error:
            cause = error.ended or error if isinstance(error, CanaryError) else error
            again = isinstance(cause, PeerError | SlotsBusy | StoreError) and not isinstance(cause, _FINAL)
            raise (Interrupted if again else BulkError)(str(error)) from None

    def close(self) -> None:
        self.client.close()


class BatchAnswers:
    """For `ray.data`, which keeps what it has answered itself, and asks a batch again whose node has died.

    ds.map_batches(BatchAnswers, fn_constructor_args=(make,), batch_size=256, concurrency=4, num_cpus=1)

    make      opens a client; it has to be picklable
    field     the column with the text; columns `label` and `score`, `embedding` or `answer`, and `error` are added;
              `truncated`, too, of a client that cuts
    patience  seconds without any answer after which it gives up

    Errors: BulkError.
    """

    def __init__(self, make: Callable[[], BaseClient], field: str = "text", patience: float = GIVE_UP_AFTER_S) -> None:
        self.row_client, self.field, self.patience = RowClient(make), field, patience

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.field not in batch:
            raise BulkError(f"field {self.field}: the batch has no such column; it has {', '.join(batch)}")
        rows = [None if text is None else str(text).strip() or None for text in batch[self.field]]
        answers: dict[int, Answer] = {}
        ask_all(self.row_client, dict(enumerate(rows)), answers.__setitem__, self.patience)
        names = columns_of(self.row_client.client)
        return {**batch, **{name: [answers[row].get(name) for row in range(len(rows))] for name in names}}


def ask_all(
    row_client: RowClient,
    left: dict[int, Row],
    note: Callable[[int, Answer], None],
    patience: float,
    stop: threading.Event | None = None,
) -> None:
    """Ask the rows in `left`, by number, until all are answered. `note` gets each answer as it comes; its row leaves
    `left`. `stop` ends it between two answers. Errors: BulkError, also after `patience` seconds without an answer."""
    last, stop = time.monotonic(), stop or threading.Event()
    while left and not stop.is_set():
        numbers = list(left)
        try:
            for place, answer in row_client.ask([left[number] for number in numbers]):
                note(numbers[place], answer)
                del left[numbers[place]]
                last = time.monotonic()
                if stop.is_set():
                    return
            why = "the server stays busy"
        except Interrupted as error:
            why = str(error)
        if left:
            if time.monotonic() - last > patience:
                raise BulkError(why)
            stop.wait(RETRY_DELAY_S)


def columns_of(client: BaseClient) -> dict[str, str]:
    """The columns of a client's answers: names and types, as `write_answers` takes them. `truncated`: tokens that were
    cut off, by a client that cuts; `windows`: parts that a text was asked in, by one that cuts nothing; `distrusted`:
    of a client with canary queries, why an answer must not be trusted."""
    last = {**dict.fromkeys(REPORTED[client.truncate], "int64"), "error": "string"}
    last |= {"distrusted": "string"} if client.canaries is not None else {}
    if client.task.endswith("-classification") and client.task != "token-classification":
        return {"label": "string", "score": "float64", **last}
    return {**({"embedding": "list"} if client.task == "sentence-embedding" else {"answer": "string"}), **last}


def _answer(client: BaseClient, result: Result) -> Answer:
    if result.error is not None:
        return {"error": str(result.error)}
    names = columns_of(client)
    cut: Answer = {name: getattr(result, name) for name in REPORTED[client.truncate]}
    cut |= {"distrusted": result.distrusted} if result.distrusted else {}
    if "label" in names:
        return {**{name: result.value[0][name] for name in ("label", "score")}, **cut}
    kind = next(iter(names))
    return {kind: result.value if kind == "embedding" else json.dumps(result.value), **cut}


def check_kind(out: Path) -> None:
    """Errors: BulkError if no such file can be written; DataError if it needs a library that is missing."""
    if out.suffix not in WRITTEN:
        raise BulkError(f"--out {out}: is of no kind that is written; end it in {', '.join(WRITTEN)}")
    if out.suffix == PARQUET:
        parquet_module()


def write_answers(out: Path, pieces: Iterable[list[Answer]], columns: Mapping[str, str]) -> None:
    """Write all pieces to one file, which is complete when it has its name.

    columns    their names, each with its type: int64, float64, string or list (of float32)

    Errors: BulkError.
    """
    try:
        with whole_file(out, durable=True) as stream:
            if out.suffix == PARQUET:
                _write_parquet(stream, pieces, columns)
            elif out.suffix in _SEPARATORS:
                _write_csv(stream, pieces, columns, _SEPARATORS[out.suffix])
            else:
                for row in (row for piece in pieces for row in piece):
                    stream.write(json.dumps({name: row[name] for name in columns if name in row}).encode() + b"\n")
    except OSError as error:
        raise BulkError(f"{out}: cannot be written ({error.strerror})") from None


def _write_csv(stream: BinaryIO, pieces: Iterable[list[Answer]], columns: Mapping[str, str], separator: str) -> None:
    writer = csv.DictWriter(
        codecs.getwriter("utf-8")(stream),
        list(columns),
        extrasaction="ignore",
        delimiter=separator,
        lineterminator="\n",
    )
    writer.writeheader()
    for piece in pieces:
        writer.writerows({n: json.dumps(v) if isinstance(v, list) else v for n, v in row.items()} for row in piece)


def _write_parquet(stream: BinaryIO, pieces: Iterable[list[Answer]], columns: Mapping[str, str]) -> None:
    import pyarrow as pa

    types = {"int64": pa.int64(), "float64": pa.float64(), "list": pa.list_(pa.float32()), "string": pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    texts = {name for name, kind in columns.items() if kind == "string"}  # a row's id may be a number
    with parquet_module().ParquetWriter(stream, schema) as writer:
        for piece in pieces:
            rows = [{n: str(v) if n in texts and v is not None else v for n, v in row.items()} for row in piece]
            writer.write_table(pa.Table.from_pylist(rows, schema))


class PieceAnswers(BatchAnswers):
    """Rows come as JSON, {"text": ..., and what is returned with the answer}: Arrow guesses no types of columns. After
    an error that ends the job come the answers before it, and {"failed": why}: an exception Ray would log at length."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [json.loads(row) for row in batch["row"]]
        texts = [row.pop("text") for row in rows]
        answered: list[Answer] = []
        try:
            ask_all(
                self.row_client,
                {place: tuple(text) if isinstance(text, list) else text for place, text in enumerate(texts)},
                lambda place, answer: answered.append(rows[place] | answer),
                self.patience,
            )
        except BulkError as error:
            answered.append({"failed": str(error)})
        return {"row": [json.dumps(row) for row in answered]}


def answer_pieces(
    make: Callable[[], BaseClient], pieces: Iterable[list[dict[str, Any]]], sessions: int, patience: float
) -> Iterator[list[Answer]]:
    """The rows of one piece after another with their answers, in no order. Rows of a node that dies are asked again.

    `make` opens a client; it has to be picklable. Call `connect` before. Errors: BulkError.
    """
    import pyarrow as pa
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised, too
    # Each piece is a block of the object store, which has room on the disk for what memory does not hold.
    blocks: Any = [ray.put(pa.table({"row": [json.dumps(row) for row in rows]})) for rows in pieces]
    if not blocks:
        return
    answered = ray.data.from_arrow_refs(blocks).map_batches(
        PieceAnswers,
        fn_constructor_kwargs={"make": make, "patience": patience},
        batch_size=None,  # a block
        concurrency=min(sessions, len(blocks)),
        num_cpus=1,
    )
    try:
        for batch in answered.iter_batches(batch_size=None):
            rows = [json.loads(row) for row in batch["row"]]
            yield [row for row in rows if "failed" not in row]
            if failed := [row["failed"] for row in rows if "failed" in row]:
                raise BulkError(failed[0])
    except RayError as error:
        raise BulkError(f"Ray: {' '.join(str(error).split())[:300]}") from None


def connect() -> None:
    """Errors: BulkError: there is no cluster."""
    if find_spec("ray") is None:
        raise BulkError("--engine ray: ray is missing; run: pip install 'blindformer[scale]'")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will do some day
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        return
    address, at_sigterm = os.environ.get("RAY_ADDRESS"), signal.getsignal(signal.SIGTERM)
    try:
        # A cluster of one machine has it for itself: its processes yield to no others.
        alone = None if address else {"worker_niceness": 0}
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, _system_config=alone)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise BulkError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({reason})") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)  # Ray's would end a command with code 1, and be inherited
