"""The client of a server that audits (audits.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...models.program.program import Program
from ...models.program.two_server import answer_layout, input_layout
from ...protocols.beaver.owner import join, layout_bytes, pack_shares, split, unpack_shares
from ...protocols.errors import PeerProtocolError
from .audits import input_shares, run_traffic
from .messages import ONE_RUN, SAME_VERSION, Runs
from .online import Answer, Progress, Timings, added, total
from .preprocessed import masks
from .two_party_client import Agreed, ClientParty

MOST_IN_A_ROW = 256  # audits of one query: at the highest rate, more come once in 2^106 queries


class AuditedClient(ClientParty):
    """A client of a server that audits. Whoever asks notices nothing but the time that audits take."""

    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        runs: Runs = ONE_RUN,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        spent: list[Answer] = []  # in audits, and in the run that gives the answer
        while len(spent) < MOST_IN_A_ROW:
            spent.append(super().query(sources, progress, more, runs, constants))
            if not spent[-1].timings.audits:
                return added(spent)
        raise PeerProtocolError(self.server.peer, "says of all runs that they were audits", SAME_VERSION)

    def _enter(self, agreed: Agreed, sources: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        layout = input_layout(self.program)
        self.server.send(pack_shares(split(sources, agreed.key, layout), layout))
        return input_shares(masks(agreed.key), self.program)

    def _leave(self, outputs: dict[str, Any], done: Mapping[str, Any], timings: Timings) -> dict[str, Any]:
        audited, layout = done.get("audited") is True, answer_layout(self.program)
        timings.online = total([timings.online, run_traffic(self.program, audited)])
        timings.rounds += not audited
        timings.audits += audited
        if audited:
            return {}
        return join((unpack_shares(self.server.recv(layout_bytes(layout)), layout), outputs), layout)


def client_kind(program: Program) -> type[ClientParty]:
    """The client of a program with audits, or without."""
    return AuditedClient if program.audits else ClientParty
