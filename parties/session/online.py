"""What a query runs of a program, and its online phase at one party: the rounds, their result, and what they took.

A conversation's program has several parts. Each pass runs one of them, on the rows that earlier passes kept; while it
runs, both sides make the correlations of the pass that most likely follows.
"""

from __future__ import annotations

import resource
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from torch import Tensor

from ...models.artifacts.circuits import texts_of
from ...models.generation.parts import size_of
from ...models.generation.rows import Part, Pass, room, window
from ...models.program.interpreter import interpret
from ...models.program.program import Program
from ...protocols.base import Engine
from ...protocols.channel import Channel, Meter
from ...protocols.operations.reveal import RevealedRows
from ...protocols.rounds import Wire
from ..receipts.statement import SessionFacts, SignedStatement, Signer
from .messages import ONE_RUN, PartRun, Runs, out_of_place


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


RUNS = 8  # passes of one token whose correlations are made at once

OnPass = Callable[[str, Answer], None]
"""Called after each pass, with its part's name."""


class QueryingParty(ABC):
    """The querying party's end of one session: the client of two parties, or the data owner of two servers."""

    program: Program
    setup_bytes = 0  # of masked weights that were downloaded
    signer: Signer | None = None  # of this side; only with it there are receipts

    @abstractmethod
    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        runs: Runs = ONE_RUN,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        """Run one query on encoded sources (Compiled.encode_inputs).

        `more`: another query follows, so both sides make its correlations while this one runs. Correlations that are
        made and not used are lost. `constants`: of the part that this query runs, for a program with several.
        """

    @abstractmethod
    def announce(self, part_run: PartRun) -> None:
        """The next query will most likely run this: make its live correlations now, while nobody asks. Once between
        two queries."""

    @abstractmethod
    def vouched(self) -> tuple[SessionFacts, tuple[SignedStatement, ...]]:
        """Between two queries: the session as this side saw it, and the others' statements. Errors: PeerError."""

    @abstractmethod
    def close(self) -> None:
        """Say goodbye. After an error, too."""


def may_run(program: Program, part_run: PartRun) -> bool:
    """Whether a program has this part. Several runs at once are for runs of one row: others are large already."""
    if part_run.part not in (program.parts or ("",)):
        return False
    return part_run.runs == 1 or rows_of_a_run(program.part(part_run.part)) == 1


def may_reveal(program: Program, rows: RevealedRows | None) -> bool:
    """Whether a part's results have these rows; a program without rows reveals all, and one without results none."""
    most = rows_of_a_run(program)
    has_rows = most > 0 or not program.outputs
    return rows is None or (has_rows and 0 <= rows[0] <= rows[1] <= most)


def check_runs(
    channel: Channel, program: Program, kept: int, *part_runs: PartRun, revealed: RevealedRows | None = None
) -> None:
    """Errors: `PeerProtocolError` unless the program has all of these runs, the first of them reads at most the `kept`
    rows, and its results have the rows `revealed`."""
    first = part_runs[0]
    known = all(may_run(program, one) for one in part_runs)
    if not known or first.rows > kept or not may_reveal(program.part(first.part), revealed):
        raise out_of_place(channel)


def count_of(program: Program, rows: RevealedRows | None) -> int:
    """What a query counts for: its texts; for a part of a conversation the tokens that it reveals, one at least."""
    most = rows_of_a_run(program)
    first, end = rows or (0, most)
    return max(1, end - first) if most else texts_of(program)


def most_revealed(program: Program) -> int:
    """The most that a query counts for."""
    return max(count_of(part, None) for part in (program.parts or {"": program}).values())


def rows_of_a_run(program: Program) -> int:
    """How many rows a run adds to those kept; 0 of one that keeps a source's."""
    kept = (item for item in program.instructions if item.op == "keep" and not item.attributes.get("whole"))
    return next((item.shape[-2] for item in kept), 0)


def part_run(program: Program, part: str, rows: int) -> PartRun:
    """One pass, with as many runs made at once as there is room for."""
    program_part = program.part(part)
    if size_of(part) != 1:
        return PartRun(part=part, rows=rows)
    left = room(program if window(program_part) else program_part) - rows
    return PartRun(part=part, rows=rows, runs=max(1, min(RUNS, left)))


def passes(
    party: QueryingParty,
    parts: Mapping[str, Part],
    on_pass: OnPass | None = None,
    progress: Progress | None = None,
) -> Pass:
    """The function that runs one pass of a conversation in `party`'s session."""

    def run(
        name: str, inputs: Mapping[str, Tensor], following: tuple[str, int], revealed: RevealedRows
    ) -> Mapping[str, Tensor]:
        part, rows = parts[name], int(inputs["rows"])
        runs = Runs(
            turn=part_run(party.program, name, rows), following=part_run(party.program, *following), revealed=revealed
        )
        constants = {**part.constants, **part.encode_known(inputs)}
        answer = party.query(part.encode_inputs(inputs), progress, True, runs, constants)
        if on_pass:
            on_pass(name, answer)
        return part.decode(answer.outputs)

    return run
