"""Client, server and dealer of delegated layers as threads of this process, as threads.py has those of `beaver`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from ...models.delegated.manifest import DelegatedModel
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, PeerGone
from ..session.dealing import left_for, receive_seed
from ..session.delegated_client import DelegatingClient
from ..session.delegated_dealer import DelegatedDealer
from ..session.delegated_server import DelegatedServer
from ..session.delegation import PublicWeights, delegated_hello
from ..transport.handshake import abort, new_session
from .threads import IDLE_SECONDS, PartyThreads


class DelegatedThreads(PartyThreads):
    """Any number of sessions. INSECURE: all secrets lie in one process.

    weights   what server and dealer compute with
    groups    the client's, with its own check
    """

    def __init__(self, model: DelegatedModel, *, timeout: float = 120) -> None:
        super().__init__(timeout)
        self.manifest = model.manifest
        self.weights = {role: PublicWeights(model.manifest, model.integers) for role in ("server", "dealer")}
        self.groups = model.client_groups()

    def client(self, *, session: str = "", server: Any = None, dealer: Any = None, **options: Any) -> DelegatingClient:
        """The client's end of a new session, set up. `server`, `dealer`: options of these ends."""
        session = session or new_session()
        theirs, mine = self.connect("server", "client")

        def dial() -> Channel:
            return self.dial(session, **(dealer or {}))

        party = DelegatedServer(self.weights["server"], theirs, dial, session=session, **(server or {}))

        def serve() -> None:
            party.serve(idle=IDLE_SECONDS)
            party.close()

        self.start(self._telling(serve, party.abandon), "server")
        options |= {"session": session}
        client = DelegatingClient(self.manifest, self.groups, mine, lambda seed: self.seed(session, seed), **options)
        try:
            client.set_up()
        except BaseException:
            mine.close()
            raise
        return client

    def seed(self, session: str, seed: bytes) -> None:
        """For the client: leave its seed with the dealer. Errors: PeerProtocolError."""
        client, dealer = self.connect("client", "dealer")
        client.send_message({"seed": seed.hex()})
        receive_seed(dealer, delegated_hello(self.manifest, "client", session), self.seeds)
        client.recv_message()
        client.close()

    def dial(self, session: str, **options: Any) -> Channel:
        """For the server: a connection that the dealer serves."""
        server, dealer = self.connect("server", "dealer")
        take = left_for(delegated_hello(self.manifest, "server", session), self.seeds)
        party = DelegatedDealer(self.weights["dealer"], dealer, take, **options)
        self.start(self._telling(lambda: party.serve(idle=IDLE_SECONDS), lambda: [dealer]), "dealer")
        return server

    def close(self) -> None:
        for channel in self.channels:
            channel.interrupt()
        self.join(5)
        for channel in self.channels:
            channel.close()

    def failed(self, party: str, error: BaseException) -> None:
        """The others were told of an error that a user can read; nobody waits for another one."""
        if isinstance(error, BlindformerError):
            self.failures.append((party, error))
        else:
            super().failed(party, error)

    def _telling(self, work: Callable[[], None], channels: Callable[[], Sequence[Channel]]) -> Callable[[], None]:
        """As services do: peers hear why this party ends."""

        def telling() -> None:
            torch.set_num_threads(1)
            try:
                work()
            except BlindformerError as error:
                with suppress(PeerGone):
                    abort(channels(), error)
                raise

        return telling
