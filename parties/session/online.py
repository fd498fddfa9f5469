"""The online phase of one query at one party: the rounds of the program, their result, and what they took."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterable, Sequence
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

    `offline_s`: how long the query waited for its correlations. Preprocessed correlations (`ahead`, at the client) take
    next to no time, and of them only the words of tables travel, from the server to the client. `sent_head`: at a
    client, the first bytes that it sent to the server, in base64. `audits`: runs that gave no answer (audits.py), and
    are in all other figures.
    """

    offline_s: float = 0.0
    online_s: float = 0.0
    rounds: int = 0
    online: Meter = field(default_factory=Meter)
    offline_bytes: int = 0
    peak_rss_mb: float = 0.0
    ahead: bool = False
    sent_head: str = ""
    audits: int = 0


@dataclass
class Answer:
    """A query's answer at one party: the outputs by name, its timings, and the other parties' reports.

    Outputs are ring integers (None at a party that learns nothing), or float32 in a session that decodes them.
    """

    outputs: dict[str, Any]
    timings: Timings
    others: dict[str, float] = field(default_factory=dict)


def added(answers: Sequence[Answer]) -> Answer:
    """What several passes took together, one after the other; of their outputs the last."""
    timings, others = [answer.timings for answer in answers], [answer.others for answer in answers]
    sums = {name: sum(getattr(one, name) for one in timings) for name in _SUMMED}
    whole = Timings(
        **sums,
        online=total(one.online for one in timings),
        peak_rss_mb=max((one.peak_rss_mb for one in timings), default=peak_rss_mb()),
        ahead=bool(timings) and all(one.ahead for one in timings),
        sent_head=timings[0].sent_head if timings else "",
    )
    names = dict.fromkeys(name for other in others for name in other)
    figures = {name: (sum if name.endswith("_s") else max)(other.get(name, 0.0) for other in others) for name in names}
    return Answer(answers[-1].outputs if answers else {}, whole, figures)


def peak_rss_mb() -> float:
    """The peak memory of this process, MB."""
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
_SUMMED = ("offline_s", "online_s", "rounds", "offline_bytes", "audits")
_STEP = 64  # instructions between two signs of progress


def run_online(
    program: Program, engine: Engine, wire: Wire, channels: Iterable[Channel], progress: Progress | None = None
) -> tuple[dict[str, Any], Timings]:
    """The results by output name (None at parties that learn nothing), and the timings of the online phase.

    `channels`: to the other parties; they are metered together.
    """
    channels = list(channels)  # `channel.meter` may be a snapshot: it is read twice
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
    outputs = {name: value if value is None else value.cpu() for name, value in execution.outputs.items()}
    return outputs, Timings(online_s=seconds, rounds=execution.rounds, online=traffic, peak_rss_mb=peak_rss_mb())


def total(meters: Iterable[Meter]) -> Meter:
    """The sum of all meters."""
    meters = list(meters)
    return Meter(**{name: sum(getattr(meter, name) for meter in meters) for name in vars(Meter())})
