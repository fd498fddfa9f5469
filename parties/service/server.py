"""The server as a service: what `blindformer serve` loads, and what one child does with one connection."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...models.artifacts import load_server
from ...models.artifacts.circuits import texts_of
from ...models.artifacts.server import ServerLength, ServerPart
from ...models.handover import hand_over
from ..certificates.identity import Identity
from ..config import Settings
from ..session import Served, ServerParty, Timings, serve_parts
from ..session.compute_slots import LimitReached
from ..session.helper.owner_shares import OwnerShares, seat_of, serve_owner
from ..session.mask_seed import load_secret
from ..session.meeting import meet_client, meet_dealer, my_hello
from ..session.spool import Spool
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control
from .children import Seat
from .control import Answered, ChildReport, Introduced, Limited
from .front import greet, telling
from .limits import ServiceLimits
from .quota import quota_in_words, quota_of
from .rendezvous import Rendezvous
from .running import Announcement, run

ROLE = "server"
HELPERS = {
    "dealer": "an offline dealer, which sees no input, no weight and no opened value",
    "helper": "an offline dealer, and a helper in the client's seat, which must not collude with this server",
}


def serve(
    settings: Settings, announce: Callable[[Announcement], None] | None = None, lifeline: int | None = None
) -> None:
    """Serve sessions until a signal stops it (running.run)."""
    run(
        ROLE,
        # With a helper, all sessions are its own: it sees to it that its clients share them.
        settings.server if settings.session.topology == "dealer" else settings.server.model_copy(update={"share": 1.0}),
        lambda limits, scratch: ServerService(settings, limits, scratch),
        announce,
        lifeline=lifeline,
    )


class ServerService:
    """One server with its programs, one for each length. Made in the supervisor, before the first fork.

    `scratch`: a folder of this service alone, with a short path.

    Errors: `BlindformerError`: a folder, a key or a certificate that cannot be used.
    """

    def __init__(self, settings: Settings, limits: ServiceLimits, scratch: Path) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        mine = settings.server
        self.settings, self.limits = settings, limits
        self.identity = Identity(settings.certificates.folder, ROLE)
        self.helped = settings.session.topology == "helper"
        part = load_server(mine.folder)
        parts = [self._seated(item) for item in part.values()]
        self.served = serve_parts(parts, load_secret(part.secret_file))
        for served in self.served.values():
            served.prepare()
        self.texts = max(texts_of(item.program) for item in parts)
        self.quota = quota_of(mine, self.texts)
        share = 1.0 if self.helped else mine.share
        self.spool = None if mine.spool is None else Spool(mine.spool, int(1e9 * mine.spool_gb), share)
        self.config = settings.shared_hash()
        self.facts = self.identity.facts(self.config, self.served)
        if self.helped:
            self.rendezvous = Rendezvous(scratch)
        self.helpers = HELPERS[settings.session.topology]
        self.about = f"{part.model.get('name', 'model')}, plan {part.plan.name}, lengths {_lengths(part)}"

    @property
    def limit(self) -> str:
        return quota_in_words(self.quota)

    @property
    def programs(self) -> list[str]:
        return list(self.served)

    def work(self, sock: socket.socket, control: Control) -> None:
        timeout = self.settings.session.timeout
        control.party, control.keepalive = ROLE, timeout / 3
        roles = ("client", "helper") if self.helped else ("client",)
        greeted = greet(sock, control, self.identity, roles, self.facts)
        if greeted is None:
            return
        channel, first = greeted
        with telling(ROLE, lambda: [channel]):
            served, hello = meet_client(channel, self.served, timeout, first=first, config=self.config)
            seat = seat_of(channel, served.program)
            control.introduce(channel.peer, channel.fingerprint, channel.serial, hello.session, hello.program)
        if seat == "owner":
            self._relay(channel, served, hello, control)
        else:
            self._session(channel, served, hello, control)

    def seat(self, role: str) -> Seat:
        return "relay" if self.helped and role == "client" else "session"

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        raise ValueError("a server's child says nothing of that kind")

    def gauges(self) -> Mapping[str, float]:
        return {}

    def _seated(self, part: ServerLength) -> ServerLength:
        """For two servers it is the same model with another seat (models/handover.py)."""
        return ServerLength(hand_over(part.program), part.weights, part.constants) if self.helped else part

    def _session(self, channel: TlsChannel, served: Served, hello: Hello, control: Control) -> None:
        settings, timeout = self.settings, self.settings.session.timeout
        control.left = self._left
        owners, outside = [], None
        if self.helped:
            with telling(ROLE, lambda: [channel]):
                waiting = {"waiting": "owner"}
                meet = partial(self.rendezvous.meet, alive=lambda: channel.send_message(waiting))
                owners = [meet(hello.session, channel.peer, timeout)]
                outside = OwnerShares(owners[0], served.program)
        mine = my_hello(served.program, ROLE, hello.session, config=self.config)
        dial = partial(meet_dealer, self.identity.dialling, settings.address("dealer"), mine, timeout)
        party = ServerParty(
            served,
            channel,
            dial,
            session=hello.session,
            client_id=channel.fingerprint,
            admission=control,
            spool=self.spool,
            outside=outside,
            # A helper asks for owners, whose certificates count where their shares come in.
            count=None if self.helped else self._counting(channel, served, control),
        )
        with telling(ROLE, lambda: [*party.abandon(), *owners]):
            party.set_up()
            party.serve(lambda number, timings: control.tell(_answered(number, timings)), idle=self.limits.idle)
            party.close()

    def _relay(self, channel: TlsChannel, served: Served, hello: Hello, control: Control) -> None:
        with telling(ROLE, lambda: [channel]):
            timeout, idle = self.settings.session.timeout, self.limits.idle
            count = self._counting(channel, served, control)
            serve_owner(channel, served.program, self.rendezvous, hello.session, timeout, idle, count)
            channel.close()

    def _counting(self, channel: TlsChannel, served: Served, control: Control) -> Callable[[], None] | None:
        """Counts a query of this peer; None if nobody counts."""
        quota, texts = self.quota, texts_of(served.program)
        if quota is None:
            return None

        def count() -> None:
            try:
                quota.spend(channel.name, texts)
            except LimitReached as limit:
                control.tell(Limited(what=str(limit)))
                raise

        return count

    def _left(self) -> int | None:
        return None if self.spool is None else self.spool.left()


def _lengths(part: ServerPart) -> str:
    return ", ".join(str(length) for length in sorted(part.lengths))


def _answered(number: int, timings: Timings) -> Answered:
    return Answered(
        number=number,
        offline_s=timings.offline_s,
        online_s=timings.online_s,
        offline_bytes=float(timings.offline_bytes),
        sent=float(timings.online.sent),
        received=float(timings.online.received),
    )
