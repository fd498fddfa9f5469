"""Client, server and dealer as threads of this process, over channels in memory.

The same code runs as in three processes, only the wire differs. All secrets live in one process: nothing is protected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import torch
from blindformer.models.compile import Compiled
from blindformer.models.delegated.manifest import DelegatedModel
from blindformer.models.program.program import Program
from blindformer.parties.client.two_party import TwoPartySession
from blindformer.parties.session.audits import Draw, client_kind, is_drawn
from blindformer.parties.session.dealing import DealerParty
from blindformer.parties.session.delegated_client import DelegatingClient
from blindformer.parties.session.delegated_server import DelegatedDealer, DelegatedServer
from blindformer.parties.session.delegation import PROTOCOL, PublicWeights
from blindformer.parties.session.masked_weights import Served
from blindformer.parties.session.messages import ComputeSlots, Unlimited
from blindformer.parties.session.online import Progress
from blindformer.parties.session.rendezvous_two import MemorySeeds, left_for, my_hello, receive_seed
from blindformer.parties.session.two_party_server import ServerParty
from blindformer.parties.transport.handshake import abort, make_hello, new_session
from blindformer.protocols.channel import Channel
from blindformer.protocols.devices import CPU, find_device
from blindformer.protocols.errors import BlindformerError, PeerError, PeerGone
from blindformer.protocols.streams import new_seed
from blindformer.tests.shared.memory import MemoryChannel, memory_pair

IDLE_SECONDS = 86400.0
ROLES = ("server", "client", "dealer")


class PartyThreads:
    """Threads of this process, channels in memory between them, and a dealer that they dial.

    timeout       seconds of silence allowed on a channel
    failures      whose thread has failed, and how
    dealer_slots  may the dealer compute now
    draw          which runs are audits
    devices       by party, where it computes (default: the processor)
    """

    def __init__(
        self, timeout: float, draw: Draw = is_drawn, devices: Mapping[str, torch.device] | None = None
    ) -> None:
        self.timeout, self.draw = timeout, draw
        self.devices = {**dict.fromkeys(ROLES, CPU), **(devices or {})}
        self.channels: list[MemoryChannel] = []
        self.threads: list[threading.Thread] = []
        self.failures: list[tuple[str, BaseException]] = []
        self.seeds = MemorySeeds()
        self.programs: dict[str, Program] = {}
        self.dealer_slots: ComputeSlots = Unlimited()

    def connect(self, a: str, b: str) -> tuple[Channel, Channel]:
        """The ends of a connection: party `a`'s and party `b`'s."""
        pair = memory_pair(a, b, self.timeout)
        self.channels += pair
        return pair

    def start(self, work: Callable[[], None], party: str) -> None:
        """Do a party's work in a thread of its own."""

        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.failed(party, error)

        thread = threading.Thread(target=guarded, daemon=True, name=f"blindformer {party}")
        self.threads.append(thread)
        thread.start()

    def failed(self, party: str, error: BaseException) -> None:
        """Note it, and interrupt all channels: nobody waits for who is gone."""
        self.failures.append((party, error))
        for channel in self.channels:
            channel.interrupt()

    def leave_seed(self, program: Program, session: str, seed: bytes) -> None:
        """For the client: leave its seed with the dealer."""
        client, dealer = self.connect("client", "dealer")
        client.send_message({"seed": seed.hex()})
        receive_seed(dealer, my_hello(program, "client", session), self.seeds)
        client.recv_message()
        client.close()

    def dial_dealer(self, program: Program, session: str) -> Channel:
        """For the server: a connection that the dealer serves."""
        server, dealer = self.connect("server", "dealer")
        others = left_for(my_hello(program, "server", session), self.seeds)
        more: dict[str, Any] = {"admission": self.dealer_slots, "draw": self.draw, "device": self.devices["dealer"]}
        party = DealerParty(dealer, program.hash(), others, self.programs, **more)
        self.start(lambda: party.serve(idle=IDLE_SECONDS), "dealer")
        return server

    def join(self, seconds: float) -> None:
        """Wait until all threads have ended, for each so many seconds at most."""
        for thread in self.threads:
            thread.join(seconds)


class ThreadParties(PartyThreads, TwoPartySession):
    """A session of three threads. INSECURE: all secrets lie in one process. `threads`: torch's are the caller's;
    `device`: where all parties compute, or (`devices`) some."""

    def __init__(
        self,
        compiled: Compiled,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        draw: Draw = is_drawn,
        device: str = "cpu",
        devices: Mapping[str, torch.device] | None = None,
    ) -> None:
        PartyThreads.__init__(self, timeout, draw, devices or dict.fromkeys(ROLES, find_device(device)))
        self.compiled = compiled
        program, session = compiled.program, new_session()
        to_client, to_server = self.connect("server", "client")
        self.client = client_kind(program)(
            program,
            compiled.constants,
            to_server,
            lambda seed: self.leave_seed(program, session, seed),
            session=session,
            device=self.devices["client"],
        )

        def serve() -> None:
            served = Served(compiled, new_seed(), device=self.devices["server"])
            server = ServerParty(served, to_client, lambda: self.dial_dealer(program, session), session=session)
            server.set_up()
            server.serve(idle=IDLE_SECONDS)
            server.close()

        self.start(serve, "server")
        started = time.perf_counter()
        self.party = self.client
        with self.working():
            self.client.set_up(progress)
        seconds = time.perf_counter() - started
        TwoPartySession.__init__(self, compiled, compiled.plan.name, self.client, seconds, progress)

    def close(self) -> None:
        super().close()
        self.join(5)
        for channel in self.channels:
            channel.close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A failure elsewhere that caused the client's own is the one to report."""
        try:
            yield
        except PeerError as error:
            self.join(1)
            failures = [failure for _, failure in self.failures]
            causes = [failure for failure in failures if not isinstance(failure, BlindformerError)] or failures
            TwoPartySession.close(self)
            raise (causes[0] if causes else error) from None
        except BaseException:
            TwoPartySession.close(self)
            raise


def in_threads(private: Any) -> Any:
    """A private model whose sessions are `ThreadParties`; that of the reference stays as it is."""
    local = private._local
    if not local.entry.reference:
        private._local = replace(local, entry=replace(local.entry, local=ThreadParties))
    return private


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
        receive_seed(dealer, make_hello("client", PROTOCOL, self.manifest.digest, session), self.seeds)
        client.recv_message()
        client.close()

    def dial(self, session: str, **options: Any) -> Channel:
        """For the server: a connection that the dealer serves."""
        server, dealer = self.connect("server", "dealer")
        take = left_for(make_hello("server", PROTOCOL, self.manifest.digest, session), self.seeds)
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
