"""What a request was answered, and what the answer cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..reports.report import Report
from ..session.online import Answer

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion


@dataclass
class Travelled:
    """What a request cost, at this side: bytes that left for the server, bytes that came, and rounds. `offline_bytes`
    went from the dealer to the server; of `passes` through the model. `head`: the first bytes that left in the last."""

    sent_bytes: int = 0
    received_bytes: int = 0
    offline_bytes: int = 0
    rounds: int = 0
    passes: int = 0
    head: str = ""
    retried: str = ""

    def add_pass(self, answer: Answer) -> None:
        took = answer.timings
        self._add(took.online.sent, took.online.received, took.offline_bytes, took.rounds, took.sent_head)

    def add_report(self, report: Report | None) -> None:
        if report is not None:
            received = report.online_bytes - report.sent_bytes
            self._add(report.sent_bytes, received, report.offline_bytes, report.rounds, report.sent_head)

    def _add(self, sent: int, received: int, offline: int, rounds: int, head: str) -> None:
        self.sent_bytes += sent
        self.received_bytes += received
        self.offline_bytes += offline
        self.rounds += rounds
        self.passes += 1
        self.head = head

    def to_dict(self) -> dict[str, Any]:
        """All but `head`, which is for the eye (`OfferedModel.seen`)."""
        found = {name: value for name, value in asdict(self).items() if name != "head"}
        return found if self.retried else {name: value for name, value in found.items() if name != "retried"}


@dataclass
class RequestAnswer:
    """Values of texts, or completions, in their order; and the tokens that were read. `cached`: of these, how many the
    conversation had read before. `truncated`: how many tokens were cut off texts, by their places in the request.
    `whole`: it was not ended before."""

    travelled: Travelled = field(default_factory=Travelled)
    tokens: int = 0
    cached: int = 0
    truncated: dict[str, int] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    whole: bool = False

    def extra(self) -> dict[str, Any]:
        """What an answer says that this API does not have: what it cost, and what was cut off texts, if anything."""
        return {**self.travelled.to_dict(), **({"truncated": self.truncated} if self.truncated else {})}
