"""Server and dealer of a delegated model as services: both hold the public weights, and do not collude."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ...models.artifacts.layout import part_place
from ...models.delegated import HEAD
from ...models.delegated.weights import load_weights
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..launch import LocalOptions
from ..registry import DEFAULT
from ..session.delegated_server import DelegatedDealer, DelegatedServer
from ..session.delegation import ADVERSARY, PROTOCOL, PublicWeights
from ..session.preprocessed import GB
from ..transport.handshake import Hello, make_hello
from ..transport.tls import TlsChannel
from .child import Control
from .dealer import DealerService
from .quota import quota_in_words, quota_of
from .service import COLLUDING, Service
from .two_party import ServerService

TOGETHER = f"the server and the dealer {COLLUDING}"


class DelegatedServerService(Service):
    """One server with one model's weights."""

    role = "server"
    adversary, together = ADVERSARY, TOGETHER
    helpers = "an offline dealer, which holds the same public weights and sees no text"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        self.weights = PublicWeights(*load_weights(settings.server.folder, "server"))
        self.hellos = hellos_of(self)
        self.head = head_service(settings, scratch, local)
        # Of a private head, which could be copied, its answers count; else passes.
        self.quota = quota_of(settings.server, 1) if self.head is None else None
        self.limit = quota_in_words(self.quota)
        self.about = self.weights.about
        self.open_store(settings.server)
        self.watch_dealer()
        if self.head is not None:
            self.head.identity, self.head.dealer, self.head.store = self.identity, self.dealer, self.store
            self.hellos, self.limit = self.hellos | self.head.hellos, self.head.limit
            self.commitments, self.about = self.head.commitments, f"{self.about}, and a private head"
            self.adversary = f"{self.adversary}; in sessions of the private head {self.head.adversary}"

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        if self.head is not None and first.get("program") in self.head.programs:
            self.head.serve(channel, first, control)
        else:
            super().serve(channel, first, control)

    def greet(self, channel: TlsChannel, first: dict[str, Any]) -> Hello:
        hello = super().greet(channel, first)
        if self.store is None:  # else the client may need no dealer
            self.check_dealer()
        return hello

    def party(self, channel: TlsChannel, hello: Hello, control: Control) -> DelegatedServer:
        return DelegatedServer(
            self.weights,
            self.local.shaped(channel),
            partial(self.dial_dealer, hello),
            admission=control,
            memory=self.limits.memory_gb * GB,
            check_dealer=self.check_dealer,
            count=self.counting(channel, control),
            store=self.store,
            client_id=channel.certificate.fingerprint,
            session=hello.session,
            signer=self.identity.signer,
        )


def hellos_of(service: DelegatedServerService | DelegatedDealerService) -> dict[str, Hello]:
    manifest = service.weights.manifest
    mine = make_hello(service.role, PROTOCOL, manifest.digest, config=service.config, ring=manifest.ring)
    return {manifest.digest: mine}


def head_service(settings: Settings, scratch: Path, local: LocalOptions) -> ServerService | None:
    """What serves the sessions of the model's private head, in the same processes; None: it has none."""
    if not (folder := part_place(settings.server.folder, "server") / HEAD).is_dir():
        return None
    mine = settings.server.model_copy(update={"folder": folder, "store": None})
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
        self.hellos = hellos_of(self)
        self.about = self.weights.about

    def greet(self, channel: TlsChannel, first: dict[str, Any]) -> Hello:
        if first.get("protocol") == DEFAULT:
            return super().greet(channel, first)
        return Service.greet(self, channel, first)

    def dealing(self, channel: Channel, hello: Hello, others: Callable[[], list[bytes]], **how: Any) -> Any:
        if hello.protocol == DEFAULT:
            return super().dealing(channel, hello, others, **how)
        return DelegatedDealer(self.weights, channel, others, **how)
