"""Canary queries: queries with known answers, mixed among real ones. Other parties cannot tell the two apart.

A party sees shares and padded lengths. So a canary query has a length that a real query has, its place is drawn, and
the client reads no answer before all have been asked: when a query is sent does not depend on what it is. After a call
that ended early, what is left is mixed anew: its size tells a party which of its past answers were to canary queries,
and nothing about those to come.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import SystemRandom
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ...files import whole_file
from ...models.artifacts import ClientPart, Question
from ...models.loading.answers import at_tokens
from ...models.loading.huggingface import InputError
from ...protocols.errors import BlindformerError
from ..session.messages import SlotsBusy
from .result import Result

MAKE = "`blindformer query --write-known`"
ONE_IN = 0.1  # the rate of lies that a report speaks of
LEAST_RUNS, LEAST_ANSWERS = 3, 32  # of each item; of each length
MARGIN = 4.0
Results = list[tuple[int, Result]]


class CanaryError(BlindformerError):
    """Known answers that cannot be used; or answers that must not be trusted, which are in `results`. `ended`: the
    error that ended the call in which they came."""

    def __init__(self, what: str, results: Sequence[Any] = (), ended: BlindformerError | None = None) -> None:
        super().__init__(what if ended is None else f"{ended}; {what}")
        self.results, self.ended = results, ended


@dataclass(frozen=True)
class KnownAnswer:
    """What an honest server answers about `item`, padded to `length`: within `tolerance`, by output.

    outputs   float32, without the positions of padding
    program   the hash of the one that was asked
    where     the line of the file
    """

    item: Any
    length: int
    outputs: dict[str, Tensor]
    tolerance: dict[str, float]
    program: str
    protocol: str
    where: str = ""

    def row(self) -> dict[str, Any]:
        """As a line of the file has it."""
        outputs = {name: value.tolist() for name, value in self.outputs.items()}
        own = {"item": self.item, "length": self.length, "outputs": outputs, "tolerance": self.tolerance}
        return {**own, "program": self.program, "protocol": self.protocol}

    @classmethod
    def of_row(cls, row: dict[str, Any], where: str) -> KnownAnswer:
        item = tuple(row["item"]) if isinstance(row["item"], list) else str(row["item"])
        outputs = {name: torch.tensor(value, dtype=torch.float32) for name, value in row["outputs"].items()}
        tolerance = {name: float(row["tolerance"][name]) for name in outputs}
        return cls(item, int(row["length"]), outputs, tolerance, row["program"], row["protocol"], where)

    def fault(
        self, outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor], error: BlindformerError | None = None
    ) -> str:
        """How an answer is not as known; empty: it is. `error`: why there is none."""
        if error is not None:
            return f"{self.where}: {error}"
        for name, known in self.outputs.items():
            answer = at_tokens(name, outputs[name], inputs)
            off = float((answer - known).abs().max()) if answer.shape == known.shape else math.inf
            if not off <= self.tolerance[name]:  # nor where it is no number
                return f"{self.where}: {name} is off by {off:.2g}, more than {self.tolerance[name]:.2g}"
        return ""


@dataclass(frozen=True)
class CanaryReport:
    """What became of the canary queries so far.

    asked       queries that were answered, canary queries and real ones
    canaries    of these
    requests    messages that held one or more of them: fewer where several texts share a query
    unanswered  those without an answer, such as those that a busy server did not take: these accuse nobody
    unlike      of each whose answer is not as known, how it is not
    """

    asked: int = 0
    canaries: int = 0
    requests: int = 0
    unanswered: int = 0
    unlike: tuple[str, ...] = ()

    def __add__(self, other: CanaryReport) -> CanaryReport:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return CanaryReport(*(mine + theirs for mine, theirs in pairs))

    def detection(self, rate: float = ONE_IN) -> float:
        """The probability to find a server that falsifies each query with probability `rate`."""
        return 1 - (1 - rate) ** self.requests

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, "detection_one_in_ten": self.detection()}

    def __str__(self) -> str:
        count = f"{self.canaries} canary {'query' if self.canaries == 1 else 'queries'} among {self.asked} queries"
        count += f", {self.unanswered} more without an answer" if self.unanswered else ""
        if self.unlike:
            return (
                f"{count}: {len(self.unlike)} not as known ({self.unlike[0]}); do not trust these answers: "
                "the server deviates, or has other weights"
            )
        probability = self.detection()
        percent = f"{probability:.0%}".replace("%", " %") if probability < 0.995 else "more than 99 %"
        lie = "a server that falsifies one query in ten would have been found with probability"
        return f"{count}: all as known; {lie} {percent}"


@dataclass
class Canaries:
    """Known answers to mix in, and what became of them. `rate`: the part of all queries that are canary queries, at
    least; and one for each length at least. `shuffle`: another than the system's, for tests."""

    file: Path
    rate: float
    known: dict[int, list[KnownAnswer]]
    report: CanaryReport = field(default_factory=CanaryReport)
    shuffle: Callable[[list[int]], None] = SystemRandom().shuffle
    _noting: Lock = field(default_factory=Lock, repr=False)  # threads may share a client

    @classmethod
    def read(cls, file: Path, rate: float, part: ClientPart, protocol: str) -> Canaries:
        """Errors: CanaryError, where the file or the rate is of no use for this model."""
        if not 0 < rate < 1:
            raise CanaryError(f"canaries: a rate of {rate:g} is not between 0 and 1; give the part of all queries")
        _check_whole(part)
        again = f"make the file with {MAKE}"
        known: dict[int, list[KnownAnswer]] = {}
        try:
            lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # a text may have other ends of lines
            for number, line in enumerate(lines, 1):
                row = KnownAnswer.of_row(json.loads(line), f"{file.name}, line {number}")
                known.setdefault(row.length, []).append(row)
        except OSError as error:
            raise CanaryError(f"{file}: cannot be read ({error.strerror}); {again}") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            raise CanaryError(f"{file}: holds something else than known answers; {again}") from None
        programs = {length: one.program.hash() for length, one in part.lengths.items()}
        for row in (row for rows in known.values() for row in rows):
            if (row.program, row.protocol) != (programs.get(row.length), protocol):
                other = "program" if row.protocol == protocol else f"protocol ({row.protocol})"
                raise CanaryError(f"{row.where}: is of another {other}; {again}")
            if missing := part.lengths[row.length].program.outputs.keys() - row.outputs.keys():
                raise CanaryError(f"{row.where}: has no output {min(missing)}, which would not be checked; {again}")
        return cls(file, rate, known)

    def count(self, real: int) -> int:
        """Canary queries among so many real ones of one length."""
        return max(1, math.ceil(round(real * self.rate / (1 - self.rate), 6)))

    def mixed(
        self, part: ClientPart, questions: Mapping[int, Question], first: int
    ) -> tuple[dict[int, Question], dict[int, KnownAnswer]]:
        """(these and canary queries, in the order to ask, the known answers), which have the numbers from `first` on.

        Every order of the questions of one length is equally likely. Errors: CanaryError.
        """
        together: dict[int, Question] = {}
        known: dict[int, KnownAnswer] = {}
        for length in dict.fromkeys(question.length for question in questions.values()):
            mine = {number: question for number, question in questions.items() if question.length == length}
            if length not in self.known:
                has = ", ".join(map(str, self.known)) or "no length"
                raise CanaryError(f"{self.file}: has answers for {has}, not for {length} tokens; make them with {MAKE}")
            rows: list[int] = []
            for _ in range(self.count(len(mine))):
                if not rows:  # every known answer once, before one comes again
                    rows = list(range(len(self.known[length])))
                    self.shuffle(rows)
                number, row = first + len(known), self.known[length][rows.pop()]
                known[number] = row
                mine[number] = part.encode(row.item, length or None)
            order = list(mine)
            self.shuffle(order)
            together |= {number: mine[number] for number in order}
        return together, known

    def judged(
        self,
        results: Results,
        questions: Mapping[int, Question],
        known: Mapping[int, KnownAnswer],
        requests: Sequence[Collection[int]],
        broken: BlindformerError | None,
    ) -> tuple[Results, BlindformerError | None]:
        """Of a call's results, those of real questions, and the error that ended it, if one did. `requests`: numbers of
        those that were answered together."""
        faults = {
            number: known[number].fault(result.outputs, questions[number].inputs, result.error)
            for number, result in results
            if number in known and not isinstance(result.error, SlotsBusy)
        }
        with_some = sum(not faults.keys().isdisjoint(one) for one in requests)
        unlike = tuple(filter(None, faults.values()))
        call = CanaryReport(sum(map(len, requests)), len(faults), with_some, len(known) - len(faults), unlike)
        with self._noting:
            self.report += call
        real = [(number, result) for number, result in results if number not in known]
        for _, result in real if unlike else ():
            result.distrusted = str(call)
        if broken is not None and unlike:
            broken = CanaryError(f"canaries: {call}", [result for _, result in real], broken)
        return real, broken


def _check_whole(part: ClientPart) -> None:
    """Errors: CanaryError for a model that answers in passes, whose answers go their own ways."""
    if part.in_passes:
        raise CanaryError(f"canaries: {part.name} answers token by token, and canary queries check whole answers only")


def make_known(client: Any, items: Sequence[Any]) -> list[KnownAnswer]:
    """What the trusted server of a `BaseClient` answers to `items`, at each compiled length that they fit, or at the
    client's own.

    Honest answers to one question differ by the chance in roundings only. So what is known is the mean of several; its
    tolerance is `MARGIN` times the largest deviation from it, of any element of any answer of that length, and two of
    the units that answers are rounded to.

    Errors: CanaryError; InputError, where an item fits no length; those of queries.
    """
    _check_whole(client.part)
    own, lengths = client.length, client.part.lengths
    known: list[KnownAnswer] = []
    try:
        for length in lengths if own is None else [own]:
            client.length = length or None
            questions: list[Question] = []
            for number, item in enumerate(items, 1):
                try:
                    questions.append(client.part.encode(item, client.length))
                except InputError as error:
                    if length in (own, max(lengths)):
                        raise InputError(f"input {number} of {len(items)}: {error}") from None
            if questions:
                known += _of_length(client, questions)
    finally:
        client.length = own
    return known


def _of_length(client: Any, questions: list[Question]) -> list[KnownAnswer]:
    count, first = len(questions), questions[0]
    runs = max(LEAST_RUNS, -(-LEAST_ANSWERS // count))
    answers: list[list[dict[str, Tensor]]] = [[] for _ in questions]
    for index, result in client.stream([question.item for question in questions] * runs):
        if result.error is not None:
            raise result.error
        inputs = questions[index % count].inputs
        answers[index % count].append({name: at_tokens(name, x, inputs) for name, x in result.outputs.items()})
    means: list[dict[str, Tensor]] = [{} for _ in questions]
    tolerance: dict[str, float] = {}
    for name, number in first.part.program.outputs.items():
        largest = 0.0
        for mean, repeated in zip(means, answers, strict=True):
            values = torch.stack([answer[name] for answer in repeated]).double()
            mean[name] = values.mean(0).float()
            largest = max(largest, float((values - mean[name]).abs().max()))
        tolerance[name] = MARGIN * largest + 2 * 2.0 ** -first.part.program.instructions[number].scale
    names = first.part.program.hash(), client.protocol
    return [
        KnownAnswer(question.item, first.length, mean, tolerance, *names)
        for question, mean in zip(questions, means, strict=True)
    ]


def write_known(file: Path, known: Sequence[KnownAnswer]) -> None:
    """One a line. Errors: OSError."""
    with whole_file(file) as stream:
        for answer in known:
            stream.write(json.dumps(answer.row(), ensure_ascii=False).encode() + b"\n")
