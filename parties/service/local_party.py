"""A party, or its dealer, for the program that started it (client/local_n_party.py): `blindformer party --local ...`.

A data owner is told on stdin, line by line, the files of its inputs of each query; the party that asks starts the query
then. What came of it is said on stderr, in JSON lines. At the end of stdin the process ends, and the session's private
files with it.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from queue import SimpleQueue

from safetensors.torch import save_file

from ...protocols.errors import BlindformerError
from ..config import Settings
from ..session.parties import DEALER
from .local_options import LocalOptions, say
from .party import DealerRunner, PartyRunner, QueryResult

STOP_SECONDS = 1.0
IDLE_SECONDS = 86400.0  # between queries nobody owes anybody a word; the launcher watches over the processes


def take_part(settings: Settings, name: str, options: LocalOptions) -> None:
    """The whole session. Errors: those of PartyRunner and DealerRunner."""
    files = _watch_stdin(options.scratch)
    if name == DEALER:
        _deal(settings)
        return
    dealer = threading.Thread(target=_deal_beside, args=(settings,), daemon=True)
    if options.deals and name == next(iter(settings.crypten.parties)):
        dealer.start()
    runner = PartyRunner(settings, name)
    runner.give_files(files)

    def ready() -> None:
        say("ready", setup_s=runner.setup_s, setup_bytes=runner.setup_bytes)

    report = partial(_report, runner, Path(options.scratch))
    try:
        runner.take_part(runner.listen(), report, idle=IDLE_SECONDS, progress=_progress, ready=ready)
    finally:
        if (
            dealer.ident is not None
        ):  # a process must not end while torch computes in a thread that it does not wait for
            dealer.join(STOP_SECONDS)


def _deal(settings: Settings) -> None:
    dealer = DealerRunner(settings)
    dealer.deal(dealer.listen())


def _deal_beside(settings: Settings) -> None:
    """INSECURE, for comparison: the dealer is a thread of the model's owner, who then knows every mask."""
    with suppress(BlindformerError):  # the others see it end, and say so
        _deal(settings)


def _watch_stdin(scratch: str) -> Iterator[str]:
    """Its lines, as they are asked for."""
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=read, daemon=True, name="stdin").start()
    return iter(lines.get, None)


def _progress(phase: str, done: int, total: int) -> None:
    say("progress", progress=[phase, done, total])


def _report(runner: PartyRunner, scratch: Path, found: QueryResult) -> None:
    told = {"timings": asdict(found.timings), "dealer_peak_rss_mb": runner.dealer_peak_rss_mb}
    if found.error is not None:
        told["out_of_range"] = str(found.error)
    elif runner.gets_answers:
        told["outputs"] = str(scratch / f"outputs-{time.monotonic_ns()}.safetensors")
        save_file({name: value.contiguous().clone() for name, value in found.outputs.items()}, told["outputs"])
    say("answered", **told)
