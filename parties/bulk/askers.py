"""Who asks: a client in this process, or one in a process of a Ray cluster."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ...protocols.errors import BlindformerError, PeerDisagrees, PeerError, PeerRefused
from ..session.compute_slots import SlotsBusy
from ..session.spool import SpoolError
from .tables import BulkError

if TYPE_CHECKING:
    from ..client.base import BaseClient, Result

Row = str | tuple[str, ...] | None  # a text, or several; None where one is missing
Answer = dict[str, Any]
REST_SECONDS, PATIENCE = 1.0, 600.0
_FINAL = (PeerRefused, PeerDisagrees)  # asking again would not help


class Interrupted(BulkError):
    """What was left of some rows was not answered; asking again may help."""


class RowAsker(Protocol):
    """Asks some rows at a time."""

    def ask(self, rows: list[Row]) -> Iterator[tuple[int, Answer]]:
        """(index of a row, its answer or its error), not in order. Rows that a busy server has not taken are left out.

        Errors: `Interrupted`; BulkError where asking again does not help.
        """
        ...

    def close(self) -> None: ...


class ClientAsker:
    """A client of this process. `make` opens it; nothing is dialled before rows are asked."""

    def __init__(self, make: Callable[[], BaseClient]) -> None:
        self.client = make()

    def ask(self, rows: list[Row]) -> Iterator[tuple[int, Answer]]:
        numbers = [number for number, row in enumerate(rows) if row is not None]
        yield from ((number, {"error": "the row has no text"}) for number, row in enumerate(rows) if row is None)
        try:
            for place, result in self.client.stream([rows[number] for number in numbers], top_k=1):
                if not isinstance(result.error, SlotsBusy):
                    yield numbers[place], _answer(self.client, result)
        except BlindformerError as error:
            again = isinstance(error, PeerError | SlotsBusy | SpoolError) and not isinstance(error, _FINAL)
            raise (Interrupted if again else BulkError)(str(error)) from None

    def close(self) -> None:
        self.client.close()


class RayAsker:
    """The same in a process of the cluster. The client's folder and certificates are to be there, too; it is started
    anew, on another node, if its node dies."""

    def __init__(self, make: Callable[[], BaseClient]) -> None:
        self._make = make
        self._actor: Any = None

    def ask(self, rows: list[Row]) -> Iterator[tuple[int, Answer]]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            if self._actor is None:
                self._actor = ray.remote(num_cpus=1)(ClientAsker).remote(self._make)
            for answer in self._actor.ask.options(num_returns="streaming").remote(rows):
                yield ray.get(answer)
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, BlindformerError) else None
            raise (type(cause)(str(cause)) if isinstance(cause, BulkError) else BulkError(_said(error))) from None
        except RayError as error:
            self._actor = None
            raise Interrupted(_said(error)) from None

    def close(self) -> None:
        if self._actor is not None:
            import ray

            ray.get(self._actor.close.remote())
            ray.kill(self._actor)


class BatchAnswers:
    """For `ray.data`, which keeps what it has answered itself, and asks a batch again whose node has died.

    ds.map_batches(BatchAnswers, fn_constructor_args=(make,), batch_size=256, concurrency=4, num_cpus=1)

    make      opens a client; it has to be picklable
    field     the column with the text; columns `label` and `score`, `embedding` or `answer`, and `error` are added;
              `truncated`, too, of a client that cuts
    patience  seconds without any answer after which it gives up

    Errors: BulkError.
    """

    def __init__(self, make: Callable[[], BaseClient], field: str = "text", patience: float = PATIENCE) -> None:
        self.asker, self.field, self.patience = ClientAsker(make), field, patience

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self.field not in batch:
            raise BulkError(f"field {self.field}: the batch has no such column; it has {', '.join(batch)}")
        rows = [str(text).strip() or None for text in batch[self.field]]
        answers: dict[int, Answer] = {}
        ask_all(self.asker, dict(enumerate(rows)), answers.__setitem__, self.patience)
        names = columns_of(self.asker.client)
        return {**batch, **{name: [answers[row].get(name) for row in range(len(rows))] for name in names}}


def ask_all(
    asker: RowAsker,
    left: dict[int, Row],
    note: Callable[[int, Answer], None],
    patience: float,
    stop: threading.Event | None = None,
) -> None:
    """Ask rows, by number, until all are answered; `note` has each answer when it comes, and `left` the others. `stop`:
    ends it between two answers. Errors: BulkError, also after `patience` seconds without an answer."""
    last, stop = time.monotonic(), stop or threading.Event()
    while left and not stop.is_set():
        numbers = list(left)
        try:
            for place, answer in asker.ask([left[number] for number in numbers]):
                note(numbers[place], answer)
                del left[numbers[place]]
                last = time.monotonic()
                if stop.is_set():
                    return
            why = "the server stays busy"
        except Interrupted as error:
            why = str(error)
        if left and time.monotonic() - last > patience:
            raise BulkError(why)
        if left:
            stop.wait(REST_SECONDS)


def columns_of(client: BaseClient) -> dict[str, str]:
    """Of a table of its answers: names and types, as `write_answers` takes them. `truncated`: tokens that were cut off,
    of a client that cuts."""
    last = {**({"truncated": "int64"} if client.truncate != "off" else {}), "error": "string"}
    if client.task.endswith("-classification") and client.task != "token-classification":
        return {"label": "string", "score": "float64", **last}
    return {**({"embedding": "list"} if client.task == "sentence-embedding" else {"answer": "string"}), **last}


def _answer(client: BaseClient, result: Result) -> Answer:
    if result.error is not None:
        return {"error": str(result.error)}
    names = columns_of(client)
    cut = {"truncated": result.truncated} if "truncated" in names else {}
    if "label" in names:
        return {**{name: result.value[0][name] for name in ("label", "score")}, **cut}
    kind = next(iter(names))
    return {kind: result.value if kind == "embedding" else json.dumps(result.value), **cut}


def _said(error: Exception) -> str:
    return f"Ray: {' '.join(str(error).split())[:300]}"
