"""The online phase of one query at one party: the rounds of the program, their result, and what they took."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import psutil

from ...models.program.interpreter import interpret
from ...models.program.program import Program
from ...protocols.base import Engine
from ...protocols.channel import Channel, Meter
from ...protocols.rounds import Wire


@dataclass
class Timings:
    """Seconds and traffic of one query at one party. `online` and `offline` are bytes sent and received.

    `offline_s`: how long the query waited for its correlations; next to nothing where they were made ahead (`ahead`, at
    the client), and then nothing of them travelled in the query. `sent_head`: the first bytes that left for the server,
    at a client of one, in base64.
    """

    offline_s: float = 0.0
    online_s: float = 0.0
    rounds: int = 0
    online: Meter = field(default_factory=Meter)
    offline_bytes: int = 0
    peak_rss_mb: float = 0.0
    ahead: bool = False
    sent_head: str = ""


@dataclass
class Answer:
    """A query's answer at one party: the outputs by name, its timings, and what others say of themselves.

    Outputs are ring integers (None at a party that learns nothing), or of a session that decodes them float32.
    """

    outputs: dict[str, Any]
    timings: Timings
    others: dict[str, float] = field(default_factory=dict)


def peak_rss_mb() -> float:
    """The most memory this process ever held, MB."""
    try:  # Linux: getrusage would count what the parent process held before exec
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


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
    meters = list(meters)
    return Meter(**{name: sum(getattr(meter, name) for meter in meters) for name in vars(Meter())})
