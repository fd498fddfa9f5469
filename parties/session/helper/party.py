"""The helper: a client's session with server and dealer, on shares that a data owner sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from ....models.program.program import Program
from ....models.program.two_server import answer_layout, input_layout
from ....protocols.beaver.owner import pack_shares, seed_shares
from ....protocols.channel import Channel
from ....protocols.errors import PeerError, PeerGone
from ..ahead import Ahead
from ..blocks import may_reveal, may_run, rows_of_a_run
from ..client import ClientParty
from ..compute_slots import ComputeSlots, Unlimited
from ..messages import Announce, Handed, PartRun, Seed, amount, out_of_place, read, read_number, refusing, requests
from ..online import OnQuery
from ..timings import Answer
from ..weights import PublicPart, constants_of

T = TypeVar("T")


class HelperParty:
    """Answers one owner's queries with `party`, a client's end of a session on the handed-over program. `held`: the
    public numbers of its parts, if it has several.

    Errors of `set_up` and `serve`: `PeerError`, and whatever ends a client's session.
    """

    def __init__(
        self, owner: Channel, party: ClientParty, admission: ComputeSlots | None = None, held: PublicPart | None = None
    ) -> None:
        self.owner, self.party, self.admission = owner, party, admission or Unlimited()
        self.held = held
        self._rows = 0  # kept by queries that were run
        self._place = 0  # in the server's queue
        party.waiting = self._waiting

    def set_up(self) -> None:
        """Do what a client does to open a session, while the owner waits."""
        self._meanwhile(self.party.set_up)
        self.owner.send_message({"open": True, "setup_bytes": self.party.setup_bytes})

    def serve(self, on_query: OnQuery | None = None, idle: float | None = None) -> None:
        """Answer queries until the owner says goodbye. `idle`: seconds it may be silent between two of them."""
        expected = 0
        for message in requests(self.owner, idle):
            if "announce" in message:
                part_run = read(self.owner, Announce, message).turn
                self._check(part_run)
                self._meanwhile(lambda part_run=part_run: self.party.announce(part_run))
                continue
            number = read_number(self.owner, message, "query", expected, expected)
            handed = read(self.owner, Handed, {name: value for name, value in message.items() if name != "query"})
            expected += self._query(number, handed, on_query)

    def close(self) -> None:
        self.party.close()
        self.owner.close()

    def _query(self, number: int, handed: Handed, on_query: OnQuery | None) -> bool:
        """False if a server has no room: the owner has sent no share yet, and may ask again."""
        more, part_run, following = handed.more, handed.turn, handed.following
        self._check(part_run, *((following,) if more else ()))
        if not may_reveal(self.party.program.part(part_run.part), handed.revealed):
            raise out_of_place(self.owner)
        constants = None if self.held is None else constants_of(self.held, part_run.part, part_run.rows)
        program = self.party.program.part(part_run.part)
        waiting = lambda place: self.owner.send_message({"waiting": place})  # noqa: E731
        with refusing(self.owner), self.admission.slot(number, waiting):
            agreed = self._meanwhile(lambda: self.party.agree(more, part_run, following, handed.revealed))
            shares = self._fetch(number, program)
            answer = self._meanwhile(lambda: self.party.run(agreed, shares, constants=constants))
            self._rows = part_run.rows + rows_of_a_run(program)
            self.owner.send_message({"answer": number, **_report(answer)})
            self.owner.send(pack_shares(answer.outputs, answer_layout(program, handed.revealed)))
            if on_query:
                on_query(number, answer.timings)
            return True
        return False

    def _check(self, part_run: PartRun, *others: PartRun) -> None:
        """Errors: `PeerProtocolError` for turns that the program has not, or of rows that are not kept."""
        if part_run.rows > self._rows or not all(may_run(self.party.program, one) for one in (part_run, *others)):
            raise out_of_place(self.owner)

    def _fetch(self, number: int, program: Program) -> Mapping[str, Tensor]:
        """Both servers are ready: now the owner sends its shares, this side's as a seed."""
        self.owner.send_message({"ready": number})
        message = self.owner.recv_message()
        if message.get("bye"):
            raise PeerGone(self.owner.peer, "left before it sent its shares", "see its own message")
        seed = read(self.owner, Seed, message).seed
        return seed_shares(bytes.fromhex(seed), input_layout(program))

    def _meanwhile(self, work: Callable[[], T]) -> T:
        """The owner hears that this side lives. Without it there is nobody to compute for: the work is broken off."""
        self._place, job = 0, Ahead(work, "helper")
        try:
            while not job.join(self.owner.timeout / 3):
                self.owner.send_message({"waiting": self._place})
        except PeerError:
            self.party.server.interrupt()
            job.join(None)
            raise
        return job.result([self.owner], "")

    def _waiting(self, message: dict[str, Any]) -> None:
        self._place = int(amount(message, "queued"))


def _report(answer: Answer) -> dict[str, float]:
    """What the owner is told of a query, for display."""
    timings = answer.timings
    mine = {
        "rounds": timings.rounds,
        "helper_offline_s": timings.offline_s,
        "helper_online_s": timings.online_s,
        "helper_peak_rss_mb": timings.peak_rss_mb,
    }
    return {**answer.others, **mine}
