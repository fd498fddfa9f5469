"""The server of protocol beaver as a service: what it loads, and what a child does with one connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...models.artifacts import load_server, load_with_adapters
from ...protocols.devices import find_device
from ...protocols.errors import PeerDeviated, PeerRefused
from ..config import Settings
from ..launch import LocalOptions
from ..session.helper_topology import OwnerShares
from ..session.masked_weights import Served, load_secret, serve_parts
from ..session.online import most_revealed
from ..session.pair_corrections import check_pair
from ..session.rendezvous_two import (
    agreed_program,
    my_hello,
    part_of,
)
from ..session.two_party_server import ServerParty
from ..transport.frames import send_error
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control, abort_on_error
from .helper import Rendezvous, serve_owner
from .quota import deviations_of, quota_in_words, quota_of
from .service import TOGETHER, Service, adapters_in_words
from .supervisor import ConnectionKind

RESERVE_SECONDS = 1.0  # of a query's time in a worker, to give the worker back
HELPERS = {
    "dealer": "an offline dealer, which sees no input, no weight and no opened value",
    "helper": "an offline dealer, and a helper in the client's seat",
    "pair": "no dealer: each client makes the correlated randomness with the server",
}


class ServerService(Service):
    """One server with its programs, one for each length.

    Errors: as `Service`, and those of a key and of the folder of counts.
    """

    role = "server"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        mine = settings.server
        self.helped = settings.session.topology == "helper"
        if self.helped:  # all sessions are the helper's: it sees to it that its clients share them
            self.limits = self.limits.model_copy(update={"share": 1.0})
        adapted = load_with_adapters(load_server, mine.folder, "server", mine.adapters)
        part, parts = adapted[""], [item for part in adapted.values() for item in part.values()]
        # With a helper, or with audits, it is the same model (models/program/two_server.py).
        parts = [replace(item, program=agreed_program(item.program, settings.session)) for item in parts]
        self.served = serve_parts(parts, load_secret(part.secret_file), find_device(mine.device))
        topology = settings.session.topology
        mine_of = partial(my_hello, role=self.role, config=self.config, topology=topology)
        self.hellos = {hash: mine_of(one.program) for hash, one in self.served.items()}
        self.dealt = topology != "pair"
        if self.helped:
            self.roles, self.rendezvous = ("client", "helper"), Rendezvous(scratch)
        for served in self.served.values():
            served.prepare()
        self.commitments = sorted({served.masked.catalogue.commitment for served in self.served.values()})
        if self.dealt:
            self.watch_dealer()
        else:
            for served in self.served.values():
                check_pair(served.program, served.device)
        self.deviations = deviations_of(settings)
        self.quota = quota_of(mine, max(most_revealed(item.program) for item in parts))
        self.open_store(mine)
        self.helpers, self.together, self.limit = HELPERS[topology], TOGETHER[topology], quota_in_words(self.quota)
        if rate := settings.session.audits:
            self.adversary = (
                f"{self.adversary}; a client that changes messages is found with probability {rate:g} a run"
            )
        lengths = ", ".join(map(str, sorted(part.lengths)))
        self.about = (
            f"{part.model.get('name', 'model')}, plan {part.plan.name}, lengths {lengths}{adapters_in_words(adapted)}"
        )

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        with self.aborting(channel):
            hello = self.greet(channel, first)
            served = self.served[hello.program]
            part = part_of(channel, served.program)
            self._check_name(channel)
            if not self.able:
                self.check_dealer()
            self.introduce(channel, hello, control)
        (self._relay if part == "owner" else self._session)(channel, served, hello, control)

    def kind(self, role: str) -> ConnectionKind:
        return "relay" if self.helped and role == "client" else "session"

    def _session(self, channel: TlsChannel, served: Served, hello: Hello, control: Control) -> None:
        owners, outside = [], None
        if self.helped:
            with self.aborting(channel):
                waiting = {"waiting": "owner"}
                alive = partial(channel.send_message, waiting)
                owners = [self.rendezvous.meet(hello.session, channel.peer, self.timeout, alive=alive)]
                outside = OwnerShares(owners[0], served.program)
        party = ServerParty(
            served,
            self.local.shaped(channel),
            partial(self.dial_dealer, hello) if self.dealt else None,
            session=hello.session,
            client_id=channel.certificate.fingerprint,
            admission=control,
            signer=self.identity.signer,
            store=self.store,
            outside=outside,
            # A helper asks for owners, whose certificates count where their shares come in.
            count=None if self.helped else self.counting(channel, control),
            check_peer=partial(self._check_name, channel),
            check_dealer=self.check_dealer,
            seconds=self.limits.query_seconds - min(RESERVE_SECONDS, self.limits.query_seconds / 10),
        )
        with abort_on_error(self.role, lambda: [*party.abandon(), *owners]), self._noting(channel):
            party.set_up()
            party.serve(control.answered, idle=self.limits.idle)
            party.close()

    def _check_name(self, channel: TlsChannel) -> None:
        """Errors: PeerRefused for a client that has deviated; it has been told."""
        if self.deviations is not None:
            try:
                self.deviations.check(channel.certificate.name)
            except PeerRefused as refusal:
                send_error(channel, refusal)
                raise

    @contextmanager
    def _noting(self, channel: TlsChannel) -> Iterator[None]:
        """A deviation is on the disk before its client is told."""
        try:
            yield
        except PeerDeviated:
            if self.deviations is not None:
                self.deviations.note(channel.certificate.name)
            raise

    def _relay(self, channel: TlsChannel, served: Served, hello: Hello, control: Control) -> None:
        with self.aborting(channel):
            count = self.counting(channel, control)
            serve_owner(channel, served.program, self.rendezvous, hello.session, self.timeout, self.limits.idle, count)
            channel.close()
