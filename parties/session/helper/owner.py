"""The data owner: numpy-sized work, no masked weights, no correlations. The same face as `session.ClientParty`."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from ....models.program.pricing import price
from ....models.program.program import Program
from ....models.program.two_server import answer_layout, for_two_servers, input_layout
from ....protocols.beaver.owner import Layout, join, layout_bytes, pack_shares, split, unpack_shares
from ....protocols.channel import Channel, Meter
from ....protocols.errors import PeerError
from ....protocols.operations.reveal import RevealedRows
from ....protocols.streams import new_seed
from ..compute_slots import SlotsBusy
from ..meeting import Address, meet, my_hello, new_session, tell
from ..messages import Announce, Handed, PartRun, Shares, Waiting, amount, hear, hear_of
from ..online import Progress
from ..timings import Answer, Timings, peak_rss_mb

REPORTED = ("helper_offline_s", "helper_online_s", "helper_peak_rss_mb", "server_offline_s", "server_online_s",
            "server_peak_rss_mb", "dealer_s", "dealer_peak_rss_mb")  # fmt: skip


class OwnerParty:
    """The data owner in one session with `server` and `helper`.

    `program`: the one of two servers (models/program/two_server.py). `waiting` is told of what the helper says while it
    lets this side wait: {"waiting": place in a queue}. `counts`: the server counts queries, before anything else is
    sent.

    Errors: `PeerError` ends the session, and both have been told why. `SlotsBusy` and `LimitReached` end the query, of
    which nothing has been sent: ask again.
    """

    def __init__(
        self,
        program: Program,
        server: Channel,
        helper: Channel,
        *,
        waiting: Waiting | None = None,
        counts: bool = False,
    ) -> None:
        self.program, self.server, self.helper, self.waiting = program, server, helper, waiting
        self.counts = counts
        self.number = 0  # of the next query
        self.setup_bytes = 0  # the helper has the masked weights
        self.helper_setup_bytes = 0

    def set_up(self, progress: Progress | None = None) -> None:
        """Wait until the helper has met server and dealer."""
        self.helper_setup_bytes = int(amount(hear(self.helper, ("open",), self.waiting), "setup_bytes"))

    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        part_run: PartRun | None = None,
        following: PartRun | None = None,
        constants: Mapping[str, Tensor] | None = None,
        revealed: RevealedRows | None = None,
    ) -> Answer:
        """Run one query on encoded sources. `more`, `part_run`, `following`, `revealed`: as of `ClientParty.query`;
        this side has no use for `constants`."""
        turns = {"turn": part_run or PartRun(), "following": following or PartRun(), "revealed": revealed}
        try:
            return self._query(sources, progress, Handed(more=more, **turns))
        except PeerError as error:
            tell([self.helper, self.server], error)
            raise

    def announce(self, part_run: PartRun) -> None:
        """As `ClientParty.announce`, by the helper."""
        self.helper.send_message(Announce(announce=self.number, turn=part_run).model_dump())

    def close(self) -> None:
        for channel in (self.helper, self.server):
            with suppress(PeerError):  # if it is gone already, there is nobody to say goodbye to
                channel.send_message({"bye": True})
            channel.close()

    def _query(self, sources: Mapping[str, Tensor], progress: Progress | None, handed: Handed) -> Answer:
        number, started, program = self.number, time.perf_counter(), self.program.part(handed.turn.part)
        before = (self.server.meter.snapshot(), self.helper.meter.snapshot())
        shares = Shares(query=number, part=handed.turn.part, revealed=handed.revealed)
        if self.counts:
            self.server.send_message({"count": shares.message()})
            self._hear(self.server, "counted", number)
        self.helper.send_message({"query": number, **handed.message()})
        self._hear(self.helper, "ready", number)
        offline, started = time.perf_counter() - started, time.perf_counter()
        self._send_shares(sources, shares)
        self.number += 1
        if progress:
            progress("online", 1, 2)
        layout = answer_layout(program, handed.revealed)
        report, theirs = self._receive(self.helper, number, layout)
        _, ours = self._receive(self.server, number, layout)
        if progress:
            progress("online", 2, 2)
        traffic = [channel.meter.since(then) for channel, then in zip((self.server, self.helper), before, strict=True)]
        timings = Timings(
            offline_s=offline,
            online_s=time.perf_counter() - started,
            rounds=int(amount(report, "rounds")),
            online=Meter(sent=sum(m.sent for m in traffic), received=sum(m.received for m in traffic)),
            offline_bytes=price(program).offline_bytes,
            peak_rss_mb=peak_rss_mb(),
        )
        return Answer(join((ours, theirs), layout), timings, {name: amount(report, name) for name in REPORTED})

    def _send_shares(self, sources: Mapping[str, Tensor], shares: Shares) -> None:
        """The tensor to one, the seed to the other. A seed is drawn for each query, and used for no other."""
        seed, inputs = new_seed(), input_layout(self.program.part(shares.part))
        self.server.send_message(shares.message())
        self.server.send(pack_shares(split(sources, seed, inputs), inputs))
        self.helper.send_message({"seed": seed.hex()})

    def _receive(
        self, channel: Channel, number: int, layout: Layout | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        reply, layout = self._hear(channel, "answer", number), layout or answer_layout(self.program)
        return reply, unpack_shares(channel.recv(layout_bytes(layout)), layout)

    def _hear(self, channel: Channel, name: str, number: int) -> dict[str, Any]:
        return hear_of(channel, name, number, self.waiting)


def ask_two_servers(
    program: Program,
    context: ssl.SSLContext,
    server: Address,
    helper: Address,
    timeout: float,
    *,
    config: str = "",
    waiting: Waiting | None = None,
) -> OwnerParty:
    """Dial both servers and open a session. `program`: the compiled one, or handed over already.

    `config`: Settings.shared_hash(). Errors: `PeerError`, `SlotsBusy`; whoever was met by then has been told.
    """
    program = for_two_servers(program)
    mine = my_hello(program, "client", new_session(), config=config)
    met = [meet(server, context, "server", mine, timeout)]
    try:
        counts = hear(met[0], ("open",)).get("counts") is True
        met.append(meet(helper, context, "helper", mine, timeout))
        party = OwnerParty(program, *met, waiting=waiting, counts=counts)
        party.set_up()
    except PeerError as error:
        tell(met, error)
        raise
    except SlotsBusy:
        for channel in met:
            channel.close()
        raise
    return party
