"""Server and dealer of a delegated model as services: both hold the public weights, and do not collude."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ...models.artifacts.layout import part_place
from ...models.delegated.folder import load_weights
from ...models.delegated.head import HEAD
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..registry import DEFAULT
from ..session.dealing import left_for, receive_seed
from ..session.delegated_dealer import DelegatedDealer
from ..session.delegated_server import DelegatedServer
from ..session.delegation import ADVERSARY, PublicWeights, delegated_hello
from ..session.online import Timings
from ..session.preprocessed import GB
from ..session.rendezvous_two import greet, meet
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control
from .control import Answered
from .dealer import AskedSeeds, DealerService
from .local_options import LocalOptions
from .quota import quota_in_words, quota_of
from .server import ServerService
from .service import COLLUDING
from .session_handler import SessionHandler, abort_on_error, answered

TOGETHER = f"the server and the dealer {COLLUDING}"


class DelegatedServerService(SessionHandler):
    """One server with one model's weights."""

    role = "server"
    adversary, together = ADVERSARY, TOGETHER
    helpers = "an offline dealer, which holds the same public weights and sees no text"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        self.weights = PublicWeights(*load_weights(settings.server.folder, "server"))
        self.programs = [self.weights.manifest.digest]
        self.head = head_service(settings, scratch, local)
        # Of a private head, which could be copied, its answers count; else passes.
        self.quota = quota_of(settings.server, 1) if self.head is None else None
        self.limit = quota_in_words(self.quota)
        self.about = self.weights.about
        self.open_spool(settings.server)
        self.watch_dealer()
        if self.head is not None:
            self.head.identity, self.head.dealer, self.head.spool = self.identity, self.dealer, self.spool
            self.programs, self.limit = self.programs + self.head.programs, self.head.limit
            self.commitments, self.about = self.head.commitments, f"{self.about}, and a private head"
            self.adversary = f"{self.adversary}; in sessions of the private head {self.head.adversary}"

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        if self.head is not None and first.get("program") in self.head.programs:
            self.head.serve(channel, first, control)
            return
        control.left = self.left
        mine = partial(delegated_hello, self.weights.manifest, "server", config=self.config)
        with self.aborting(channel):
            hello = greet(channel, lambda theirs: mine(theirs.session), self.timeout, first)
            if self.spool is None:  # else the client may need no dealer
                self._check_dealer()
            self.introduce(channel, hello, control)

        def dial() -> Channel:
            self._check_dealer()
            dealer = self.settings.address("dealer")
            theirs = mine(hello.session)
            return self.local.shaped(meet(dealer, self.identity.dialling, "dealer", theirs, self.timeout))

        def report(number: int, timings: Timings) -> None:
            control.send(answered(number, timings))

        party = DelegatedServer(
            self.weights,
            self.local.shaped(channel),
            dial,
            admission=control,
            memory=self.limits.memory_gb * GB,
            check_dealer=self._check_dealer,
            count=self.counting(channel, control),
            spool=self.spool,
            client_id=channel.certificate.fingerprint,
            session=hello.session,
            signer=self.identity.signer,
        )
        with abort_on_error(self.role, party.abandon):
            party.serve(report, idle=self.limits.idle)
            party.close()

    def _check_dealer(self) -> None:
        if self.dealer is not None:
            self.dealer.check()


def head_service(settings: Settings, scratch: Path, local: LocalOptions) -> ServerService | None:
    """What serves the sessions of the model's private head, in the same processes; None: it has none."""
    if not (folder := part_place(settings.server.folder, "server") / HEAD).is_dir():
        return None
    mine = settings.server.model_copy(update={"folder": folder, "spool": None})
    return ServerService(settings.model_copy(update={"server": mine}), scratch, local)


class DelegatedDealerService(DealerService):
    """One dealer with one model's weights. It deals for private heads, too, of which it needs to know nothing."""

    adversary, together = ADVERSARY, TOGETHER
    helpers = "this is the dealer: it holds the public weights, and sees no text"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        if settings.dealer.folder is None:
            raise BlindformerError("dealer.folder: a dealer of delegated layers holds the weights; give their folder")
        self.weights = PublicWeights(*load_weights(settings.dealer.folder, "dealer"))
        self.programs = [self.weights.manifest.digest]
        self.about = self.weights.about

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        if first.get("protocol") == DEFAULT:
            super().serve(channel, first, control)
            return
        mine = partial(delegated_hello, self.weights.manifest, "dealer", config=self.config)
        with self.aborting(channel):
            hello = greet(channel, lambda theirs: mine(theirs.session), self.timeout, first)
            self.introduce(channel, hello, control)
            seeds = AskedSeeds(control)
            if channel.peer == "server":
                self._deal(channel, hello, seeds, control)
            else:
                receive_seed(channel, hello, seeds)
            channel.close()

    def _deal(self, channel: TlsChannel, hello: Hello, seeds: AskedSeeds, control: Control) -> None:
        shaped = self.local.shaped(channel)
        sent = channel.meter.sent

        def dealt(number: int, seconds: float) -> None:
            nonlocal sent
            before, sent = sent, shaped.meter.sent
            control.send(Answered(number=number, offline_s=seconds, offline_bytes=float(sent - before)))

        options = {"memory": self.limits.memory_gb * GB, "session": hello.session, "signer": self.identity.signer}
        party = DelegatedDealer(self.weights, shaped, left_for(hello, seeds), admission=control, **options)
        # The server decides how long its client may be silent; it keeps this connection that long.
        party.serve(dealt, idle=2 * self.limits.idle)
