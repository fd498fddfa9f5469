"""The helper as a service: what `blindformer helper` loads, and what one child does with one owner's connection."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...models.artifacts import HelperLength, load_helper
from ...models.handover import hand_over
from ...models.pricing import price
from ..certificates.identity import Identity
from ..config import Settings
from ..session import ClientParty, Timings
from ..session.helper.heartbeat import Heartbeat
from ..session.helper.party import HelperParty
from ..session.meeting import meet_client, meet_server, my_hello, seed_dealer
from ..session.spool import Spool
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control
from .children import Seat
from .control import Answered, ChildReport, Introduced
from .front import greet, telling
from .limits import ServiceLimits

ROLE = "helper"


class HelperService:
    """One helper with its programs, one for each length. Made in the supervisor, before the first fork.

    Errors: `BlindformerError`: a folder or a certificate that cannot be used.
    """

    helpers = "an offline dealer, and the server, with which this helper must not collude"
    limit = ""  # the server counts, by the owners' certificates

    def __init__(self, settings: Settings, limits: ServiceLimits, scratch: Path) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        mine = settings.helper
        self.settings, self.limits = settings, limits
        self.identity = Identity(settings.certificates.folder, ROLE)
        part = load_helper(mine.folder)
        seated = [HelperLength(hand_over(item.program), item.constants) for item in part.lengths.values()]
        self.parts = {item.program.hash(): item for item in seated}
        for item in seated:
            price(item.program)  # kept for the children
        self.config = settings.shared_hash()
        self.facts = self.identity.facts(self.config, self.parts)
        self.spool = None if mine.spool is None else Spool(mine.spool)
        self.about = f"{seated[0].program.model or 'model'}, lengths {', '.join(map(str, sorted(part.lengths)))}"

    @property
    def programs(self) -> list[str]:
        return list(self.parts)

    def work(self, sock: socket.socket, control: Control) -> None:
        timeout = self.settings.session.timeout
        control.party, control.keepalive = ROLE, timeout / 3
        greeted = greet(sock, control, self.identity, ("client",), self.facts)
        if greeted is None:
            return
        owner, first = greeted
        with telling(ROLE, lambda: [owner]):
            part, hello = meet_client(owner, self.parts, timeout, role=ROLE, config=self.config, first=first)
            control.introduce(owner.peer, owner.fingerprint, owner.serial, hello.session, hello.program)
        self._session(owner, part, hello, control)

    def seat(self, role: str) -> Seat:
        return "session"

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        raise ValueError("a helper's child says nothing of that kind")

    def gauges(self) -> Mapping[str, float]:
        return {}

    def _session(self, owner: TlsChannel, part: HelperLength, hello: Hello, control: Control) -> None:
        settings, timeout = self.settings, self.settings.session.timeout
        context = self.identity.dialling
        mine = my_hello(part.program, ROLE, hello.session, config=self.config)
        with telling(ROLE, lambda: [owner]), Heartbeat(owner, lambda: None):
            server = meet_server(context, settings.address("server"), mine, timeout)
        client = ClientParty(
            part.program,
            part.constants,
            server,
            partial(seed_dealer, context, settings.address("dealer"), mine, timeout),
            session=hello.session,
            cache=settings.helper.cache,
            spool=self.spool,
        )
        control.left = self._left
        party = HelperParty(owner, client, control)
        with telling(ROLE, lambda: [owner, server]):
            party.set_up()
            party.serve(lambda number, timings: control.tell(_answered(number, timings)), idle=self.limits.idle)
            party.close()

    def _left(self) -> int | None:
        return None if self.spool is None else self.spool.left()


def _answered(number: int, timings: Timings) -> Answered:
    return Answered(
        number=number,
        offline_s=timings.offline_s,
        online_s=timings.online_s,
        offline_bytes=float(timings.offline_bytes),
        sent=float(timings.online.sent),
        received=float(timings.online.received),
    )
