"""Who asks: a client in this process, or one in a process of a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from ...protocols.errors import BlindformerError, PeerDisagrees, PeerError, PeerRefused
from ..session.compute_slots import SlotsBusy
from ..session.spool import SpoolError
from .tables import BulkError, Row

if TYPE_CHECKING:
    from ..client.base import BaseClient, Result

Answer = dict[str, Any]
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
                    yield numbers[place], _answer(self.client.task, result)
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


def columns_of(task: str) -> tuple[str, ...]:
    """Of a table of answers."""
    if task.endswith("-classification") and task != "token-classification":
        return "row", "label", "score", "error"
    return "row", "embedding" if task == "sentence-embedding" else "answer", "error"


def _answer(task: str, result: Result) -> Answer:
    if result.error is not None:
        return {"error": str(result.error)}
    kind = columns_of(task)[1]
    if kind == "label":
        return {name: result.value[0][name] for name in ("label", "score")}
    return {kind: result.value if kind == "embedding" else json.dumps(result.value)}


def _said(error: Exception) -> str:
    return f"Ray: {' '.join(str(error).split())[:300]}"
