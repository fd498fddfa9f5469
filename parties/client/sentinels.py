"""Sentinels: queries whose answers are known, mixed among real ones. Other parties cannot tell the two apart.

A party sees shares and padded lengths. So a sentinel has a length that a real query has, its place is drawn, and the
client reads no answer before all have been asked: when a query is sent does not depend on what it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from secrets import SystemRandom
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ...models.artifacts import ClientPart, Question
from ...models.loading.answers import at_tokens
from ...protocols.errors import BlindformerError

MAKE = "`blindformer query --write-known`"
ONE_IN = 0.1  # the rate of lies that a report speaks of
Shuffle = Callable[[list[int]], None]
OnUnlike = Callable[[Sequence[str]], None]


class SentinelError(BlindformerError):
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
        shortest = {name: value.numpy().astype(str) for name, value in self.outputs.items()}  # as float32 reads it
        outputs = {name: digits.astype(float).tolist() for name, digits in shortest.items()}
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
class SentinelReport:
    """What became of the sentinels so far.

    asked       queries that were answered, sentinels and real ones
    sentinels   of these
    requests    messages that held one or more sentinels: fewer where several texts share a query
    unanswered  sentinels without an answer, such as those that a busy server did not take: these accuse nobody
    unlike      of each sentinel whose answer is not as known, how it is not
    """

    asked: int = 0
    sentinels: int = 0
    requests: int = 0
    unanswered: int = 0
    unlike: tuple[str, ...] = ()

    def __add__(self, other: SentinelReport) -> SentinelReport:
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        return SentinelReport(*(mine + theirs for mine, theirs in pairs))

    def detection(self, rate: float = ONE_IN) -> float:
        """The probability that these sentinels find a server that falsifies each query with probability `rate`."""
        return 1 - (1 - rate) ** self.requests

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        own = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**own, "detection_one_in_ten": self.detection()}

    def __str__(self) -> str:
        count = f"{self.sentinels} sentinel{'s' * (self.sentinels != 1)} among {self.asked} queries"
        count += f", {self.unanswered} more without an answer" if self.unanswered else ""
        if self.unlike:
            return f"{count}: {warning(self.unlike)}"
        probability = self.detection()
        percent = f"{probability:.0%}".replace("%", " %") if probability < 0.995 else "more than 99 %"
        lie = "a server that falsifies one query in ten would have been found with probability"
        return f"{count}: all as known; {lie} {percent}"


def warning(unlike: Sequence[str]) -> str:
    """Of sentinels whose answers are not as known: each one's fault."""
    return (
        f"{len(unlike)} not as known ({unlike[0]}); do not trust these answers: the server deviates, or has other "
        "weights than those of the known answers"
    )


def check_whole(part: ClientPart) -> None:
    """Errors: SentinelError for a model that answers in passes, whose answers go their own ways."""
    if part.in_passes:
        raise SentinelError(f"sentinels: {part.name} answers token by token, and sentinels check whole answers only")


@dataclass(frozen=True)
class MixedCall:
    """Questions by number, in the order in which they are asked; `known`: those that are sentinels. `before`: what
    became of others of the same mix, which were answered in an earlier call."""

    questions: dict[int, Question]
    known: dict[int, KnownAnswer]
    before: SentinelReport = SentinelReport()

    def rest(self, answered: Collection[int], report: SentinelReport) -> MixedCall | None:
        """What is to be asked yet."""
        left = {number: question for number, question in self.questions.items() if number not in answered}
        known = {number: row for number, row in self.known.items() if number in left}
        return MixedCall(left, known, replace(report, unanswered=0)) if left else None

    def again(self, questions: Mapping[int, Question], first: int) -> MixedCall | None:
        """The same with other numbers, if these are the real questions of it."""
        own, new = sorted(self.questions.keys() - self.known.keys()), sorted(questions)
        if [self.questions[number].item for number in own] != [questions[number].item for number in new]:
            return None
        numbers = dict(zip([*own, *self.known], [*new, *range(first, first + len(self.known))], strict=True))
        order = {numbers[number]: question for number, question in self.questions.items()}
        return MixedCall(order, {numbers[number]: row for number, row in self.known.items()}, self.before)


@dataclass
class Sentinels:
    """Known answers to mix in, and what became of them. `rate`: the part of all queries that are sentinels, at least;
    and one for each length at least. `shuffle`: another than the system's, for tests. `on_unlike`: called with faults
    as soon as they are known.

    resume_same_mix  whether a call asks what the last one has `left` of its mix, in the order drawn: of a caller that
                always asks that, even if only sentinels are left. Were it asked for the sake of real questions alone,
                that it is asked would show that there are some. Others get a new mix.
    """

    file: Path
    rate: float
    known: dict[int, list[KnownAnswer]]
    report: SentinelReport = field(default_factory=SentinelReport)
    shuffle: Shuffle = SystemRandom().shuffle
    on_unlike: OnUnlike = lambda faults: None
    resume_same_mix: bool = False
    left: MixedCall | None = None
    _noting: Lock = field(default_factory=Lock, repr=False)  # threads may share a client

    @classmethod
    def read(cls, file: Path, rate: float, part: ClientPart, protocol: str) -> Sentinels:
        """Errors: SentinelError, where the file or the rate is of no use for this model."""
        if not 0 < rate < 1:
            raise SentinelError(f"sentinels: a rate of {rate:g} is not between 0 and 1; give the part of all queries")
        check_whole(part)
        again = f"make the file with {MAKE}"
        known: dict[int, list[KnownAnswer]] = {}
        try:
            lines = file.read_text(encoding="utf-8").rstrip("\n").split("\n")  # a text may have other ends of lines
            for number, line in enumerate(lines, 1):
                row = KnownAnswer.of_row(json.loads(line), f"{file.name}, line {number}")
                known.setdefault(row.length, []).append(row)
        except OSError as error:
            raise SentinelError(f"{file}: cannot be read ({error.strerror}); {again}") from None
        except (AttributeError, KeyError, TypeError, ValueError):
            raise SentinelError(f"{file}: holds something else than known answers; {again}") from None
        programs = {length: one.program.hash() for length, one in part.lengths.items()}
        for row in (row for rows in known.values() for row in rows):
            if (row.program, row.protocol) != (programs.get(row.length), protocol):
                other = "program" if row.protocol == protocol else f"protocol ({row.protocol})"
                raise SentinelError(f"{row.where}: is of another {other}; {again}")
            if missing := part.lengths[row.length].program.outputs.keys() - row.outputs.keys():
                raise SentinelError(f"{row.where}: has no output {min(missing)}, which would not be checked; {again}")
        return cls(file, rate, known)

    def count(self, real: int) -> int:
        """Sentinels among so many real queries of one length."""
        return max(1, math.ceil(round(real * self.rate / (1 - self.rate), 6)))

    def mixed(self, part: ClientPart, questions: Mapping[int, Question], first: int) -> MixedCall:
        """These with sentinels, which have the numbers from `first` on.

        Every order of the questions of one length is equally likely. Errors: SentinelError.
        """
        with self._noting:
            left, self.left = self.left, None
            if left is not None and (rest := left.again(questions, first)) is not None:
                self.report += SentinelReport(unanswered=-len(rest.known))
                return rest
        together: dict[int, Question] = {}
        sentinels: dict[int, KnownAnswer] = {}
        for length in dict.fromkeys(question.length for question in questions.values()):
            mine = {number: question for number, question in questions.items() if question.length == length}
            if length not in self.known:
                has = ", ".join(map(str, self.known)) or "no length"
                raise SentinelError(
                    f"{self.file}: has answers for {has}, not for {length} tokens; make them with {MAKE}"
                )
            rows: list[int] = []
            for _ in range(self.count(len(mine))):
                if not rows:  # every known answer once, before one comes again
                    rows = list(range(len(self.known[length])))
                    self.shuffle(rows)
                number, row = first + len(sentinels), self.known[length][rows.pop()]
                sentinels[number] = row
                mine[number] = part.encode(row.item, length or None)
            order = list(mine)
            self.shuffle(order)
            together |= {number: mine[number] for number in order}
        return MixedCall(together, sentinels)

    def judge(self, mix: MixedCall, faults: Mapping[int, str], requests: Sequence[Collection[int]]) -> SentinelReport:
        """What became of a mix. `faults`: of each sentinel that was answered, empty if as known. `requests`: numbers
        of those that were answered together."""
        answered = {number for request in requests for number in request}
        with_some, missing = sum(not faults.keys().isdisjoint(one) for one in requests), len(mix.known) - len(faults)
        unlike = tuple(filter(None, faults.values()))
        call = SentinelReport(len(answered), len(faults), with_some, missing, unlike)
        with self._noting:
            self.report += call
            self.left = mix.rest(answered, mix.before + call) if self.resume_same_mix else None
            if unlike:
                self.on_unlike(unlike)
        return mix.before + call
