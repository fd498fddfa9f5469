"""The helper as a service: what `blindformer helper` loads, and what one child does with one owner's connection."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...models.artifacts import load_helper
from ...models.program.pricing import price
from ...models.program.two_server import for_two_servers
from ..config import Settings
from ..session.background import BackgroundTask
from ..session.helper_topology import HelperParty
from ..session.rendezvous_two import meet, meet_client, my_hello, seed_dealer
from ..session.spool import Spool
from ..session.two_party_client import ClientParty
from ..session.weight_transfer import MaskedCache
from ..transport.tls import TlsChannel
from .child import Control
from .local_options import LocalOptions
from .sessions import SessionService, answered


class HelperService(SessionService):
    """One helper with its programs, one for each length."""

    role = "helper"
    helpers = "an offline dealer, and the server, with which this helper must not collude"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        mine = settings.helper
        part = load_helper(mine.folder)
        seated = [replace(item, program=for_two_servers(item.program)) for item in part.lengths.values()]
        self.parts = {item.program.hash(): item for item in seated}
        self.programs = list(self.parts)
        for item in seated:
            for name in item.program.parts or ("",):
                price(item.program.part(name))  # kept for the children
        self.spool = None if mine.spool is None else Spool(mine.spool)
        self.about = f"{seated[0].program.model or 'model'}, lengths {', '.join(map(str, sorted(part.lengths)))}"

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        settings, timeout, context = self.settings, self.timeout, self.identity.dialling
        with self.telling(channel):
            part, hello = meet_client(channel, self.parts, timeout, role=self.role, config=self.config, first=first)
            self.introduce(channel, hello, control)
        mine = my_hello(part.program, self.role, hello.session, config=self.config)
        with self.telling(channel):
            met = BackgroundTask(lambda: meet(settings.address("server"), context, "server", mine, timeout), "server")
            server = met.result([channel], 0)
        client = ClientParty(
            part.program,
            part.constants,
            server,
            partial(seed_dealer, context, settings.address("dealer"), mine, timeout),
            session=hello.session,
            cache=MaskedCache(settings.helper.cache, settings.helper.folder),
            spool=self.spool,
        )
        control.left = self.left
        party = HelperParty(channel, client, control, part)
        with self.telling(channel, server):
            party.set_up()
            party.serve(lambda number, timings: control.tell(answered(number, timings)), idle=self.limits.idle)
            party.close()
