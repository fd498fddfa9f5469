"""The helper: a client's session with server and dealer, on shares that a data owner sends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ....models.program.two_server import answer_layout, input_layout
from ....protocols.beaver.owner import pack_shares, seed_shares
from ....protocols.channel import Channel
from ....protocols.errors import PeerGone
from ..client import Answer, ClientParty
from ..compute_slots import ComputeSlots, SlotsBusy, Unlimited
from ..messages import Seed, amount, busy_message, read, read_number, requests
from ..online import OnQuery
from .heartbeat import Heartbeat


class HelperParty:
    """Answers one owner's queries with `party`, a client's end of a session on the handed-over program.

    Errors of `set_up` and `serve`: `PeerError`, and whatever ends a client's session.
    """

    def __init__(self, owner: Channel, party: ClientParty, admission: ComputeSlots | None = None) -> None:
        self.owner, self.party, self.admission = owner, party, admission or Unlimited()
        self._inputs, self._answers = input_layout(party.program), answer_layout(party.program)
        # Without the owner there is nobody to compute for: whoever waits for the server is woken up.
        self._heartbeat = Heartbeat(owner, party.server.interrupt)
        party.waiting = self._waiting

    def set_up(self) -> None:
        """Do what a client does to open a session, while the owner waits."""
        with self._heartbeat:
            self.party.set_up()
        self.owner.send_message({"open": True, "setup_bytes": self.party.setup_bytes})

    def serve(self, on_query: OnQuery | None = None, idle: float | None = None) -> None:
        """Answer queries until the owner says goodbye. `idle`: seconds it may be silent between two of them."""
        expected = 0
        for message in requests(self.owner, idle):
            number = read_number(self.owner, message, "query", expected, expected)
            expected += self._query(number, message.get("more") is True, on_query)

    def close(self) -> None:
        self.party.close()
        self.owner.close()

    def _query(self, number: int, more: bool, on_query: OnQuery | None) -> bool:
        """False if a server has no room: the owner has sent no share yet, and may ask again."""
        try:
            with self._heartbeat, self.admission.slot(number, self._queued):
                sources = _Awaited(self._inputs, lambda: self._fetch(number))
                answer = self.party.query(sources, more=more)
                with self._heartbeat.silent():
                    self.owner.send_message({"answer": number, **_report(answer)})
                    self.owner.send(pack_shares(answer.outputs, self._answers))
                if on_query:
                    on_query(number, answer.timings)
        except SlotsBusy as busy:
            self.owner.send_message(busy_message(busy))
            return False
        return True

    def _fetch(self, number: int) -> Mapping[str, Tensor]:
        """Both servers are ready: now the owner sends its shares, this side's as a seed."""
        with self._heartbeat.silent():
            self.owner.send_message({"ready": number})
            message = self.owner.recv_message()
        if message.get("bye"):
            raise PeerGone(self.owner.peer, "left before it sent its shares", "see its own message")
        seed = read(self.owner, Seed, message).seed
        return seed_shares(bytes.fromhex(seed), self._inputs)

    def _queued(self, place: int) -> None:
        self._heartbeat.place = place

    def _waiting(self, message: dict) -> None:
        self._queued(int(amount(message, "queued")))


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


class _Awaited(Mapping[str, Tensor]):
    """Shares that are fetched when the first of them is read, which is when the online phase begins."""

    def __init__(self, names: Mapping[str, Any], fetch: Callable[[], Mapping[str, Tensor]]) -> None:
        self._names, self._fetch = names, fetch
        self._shares: Mapping[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._shares is None:
            self._shares = self._fetch()
        return self._shares[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
