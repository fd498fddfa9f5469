"""A bulk job's rows, answered by `map_batches` of Ray Data on a cluster, whose nodes see texts and answers.

The cluster is the one that RAY_ADDRESS names, or one of this machine, for now. It has to be the data owner's.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .askers import Answer, BatchAnswers, BulkError, ask_all

if TYPE_CHECKING:
    from ..client.base import BaseClient


class PieceAnswers(BatchAnswers):
    """Rows come as JSON, {"text": ..., and what is returned with the answer}: Arrow guesses no types of columns. After
    an error that ends the job come the answers before it, and {"failed": why}: an exception Ray would log at length."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [json.loads(row) for row in batch["row"]]
        texts = [row.pop("text") for row in rows]
        answered: list[Answer] = []
        try:
            ask_all(
                self.asker,
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
