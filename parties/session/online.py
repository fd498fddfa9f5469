"""The online phase of one query at one party, of any number of them, and what it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from ...models.program.interpreter import interpret
from ...models.program.program import Program
from ...protocols.base import Engine
from ...protocols.channel import Channel, Meter
from ...protocols.rounds import Wire
from .timings import Timings, peak_rss_mb

Progress = Callable[[str, int, int], None]  # phase, done, total
OnQuery = Callable[[int, Timings], None]
_STEP = 64  # instructions between two signs of progress


def run_online(
    program: Program, engine: Engine, wire: Wire, channels: Iterable[Channel], progress: Progress | None = None
) -> tuple[dict[str, Any], Timings]:
    """The results by output name (None at parties that learn nothing), and the timings, without the offline phase's.

    `channels`: those to the other parties, which are metered together.
    """
    channels = list(channels)  # a meter may be of the moment: it is asked for twice
    before, started = total(channel.meter for channel in channels), time.perf_counter()
    count, done = len(program.instructions), 0

    def step(_: int) -> None:
        nonlocal done
        done += 1
        if progress and done % _STEP == 0:
            progress("online", done, count)

    execution = interpret(program, engine, wire, step)
    seconds, traffic = time.perf_counter() - started, total(channel.meter for channel in channels).since(before)
    if progress:
        progress("online", count, count)
    return execution.outputs, Timings(
        online_s=seconds, rounds=execution.rounds, online=traffic, peak_rss_mb=peak_rss_mb()
    )


def total(meters: Iterable[Meter]) -> Meter:
    """All of them together."""
    found = list(meters)
    return Meter(**{name: sum(getattr(meter, name) for meter in found) for name in vars(Meter())})
