"""The three parties as threads of this process, over channels in memory: for tests, notebooks and debugging.

The same code runs as in three processes, only the wire differs. All secrets live in one process: nothing is protected.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from torch import Tensor

from ...models.compile import Compiled, decode_outputs
from ...models.program.pricing import Network
from ...models.program.program import Program
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, PeerError
from ...protocols.streams import new_seed
from ..session.client import ClientParty
from ..session.compute_slots import ComputeSlots, Unlimited
from ..session.dealer import DealerParty, MemoryPrograms, left_for, receive_seed
from ..session.meeting import my_hello, new_session
from ..session.seeds import MemorySeeds
from ..session.server import ServerParty
from ..session.weights import Served
from ..transport.memory import MemoryChannel, memory_pair
from ..transport.shaping import ShapedChannel
from .launcher import LocalAnswer, Progress

IDLE_SECONDS = 86400.0
Connect = Callable[[str, str], tuple[Channel, Channel]]  # the ends of one party and of another
Run = Callable[[Callable[[], None], str], None]  # a party's work, and whose it is, in a thread of its own


class ThreadDealer:
    """A dealer that is dialled within this process. `connect` makes a connection, `run` starts a thread."""

    def __init__(self, connect: Connect, run: Run) -> None:
        self._connect, self._run = connect, run
        self.seeds, self.programs = MemorySeeds(), MemoryPrograms()
        self.admission: ComputeSlots = Unlimited()

    def seeding(self, program: Program, session: str) -> Callable[[bytes], None]:
        """For the client: leaves its seed."""

        def leave(seed: bytes) -> None:
            client, dealer = self._connect("client", "dealer")
            hello = my_hello(program, "client", session)
            client.send_message({"seed": seed.hex()})
            receive_seed(dealer, hello, self.seeds)
            client.recv_message()
            client.close()

        return leave

    def dialling(self, program: Program, session: str) -> Callable[[], Channel]:
        """For the server: a connection that the dealer serves."""

        def dial() -> Channel:
            server, dealer = self._connect("server", "dealer")
            others = left_for(my_hello(program, "server", session), self.seeds)
            party = DealerParty(dealer, program.hash(), others, self.programs, admission=self.admission)
            self._run(lambda: party.serve(idle=IDLE_SECONDS), "dealer")
            return server

        return dial


class ThreadParties:
    """A session of three threads, open until `close`. The same face as `launcher.LocalParties`.

    `record`: {"server": []} collects the payload of every frame that the server receives from the client. `network`:
    what to imitate between the parties.
    """

    def __init__(
        self,
        compiled: Compiled,
        *,
        timeout: float = 120,
        progress: Progress | None = None,
        record: dict[str, list[bytes]] | None = None,
        network: Network | None = None,
    ) -> None:
        self.open = True
        self.compiled, self.progress = compiled, progress
        program, session = compiled.program, new_session()
        self._failures: list[BaseException] = []
        self._channels: list[MemoryChannel] = []
        self._threads: list[threading.Thread] = []

        def connect(a: str, b: str) -> tuple[Channel, Channel]:
            pair = memory_pair(a, b, timeout, record if (a, b) == ("server", "client") else None)
            self._channels += pair
            return pair if network is None else (ShapedChannel(pair[0], network), ShapedChannel(pair[1], network))

        to_client, to_server = connect("server", "client")
        dealer = ThreadDealer(connect, self._start)
        self.client = ClientParty(
            program, compiled.constants, to_server, dealer.seeding(program, session), session=session
        )

        def serve() -> None:
            dial = dealer.dialling(program, session)
            server = ServerParty(Served(compiled, new_seed()), to_client, dial, session=session)
            server.set_up()
            server.serve(idle=IDLE_SECONDS)
            server.close()

        self._start(serve, "server")
        started = time.perf_counter()
        self._try(lambda: self.client.set_up(progress))
        self.setup_s = time.perf_counter() - started
        self.setup_bytes = self.client.setup_bytes

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer:
        """Run one query. `more`: another one follows, so its correlations are made meanwhile."""
        if self.progress:
            self.progress("offline", 0, 1)
        sources = self.compiled.encode_inputs(inputs)
        try:
            answer = self._try(lambda: self.client.query(sources, self.progress, more))
        except BaseException:
            self.open = False
            raise
        return LocalAnswer(decode_outputs(self.compiled.program, answer.outputs), answer.timings, answer.others)

    def __enter__(self) -> ThreadParties:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.open = False
        self.client.close()
        for thread in self._threads:
            thread.join(5)
        for channel in self._channels:
            channel.close()

    def _start(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=self._run, args=(target,), daemon=True, name=f"blindformer {name}")
        self._threads.append(thread)
        thread.start()

    def _run(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            self._failures.append(error)
            for channel in self._channels:  # nobody waits for who is gone
                channel.interrupt()

    def _try(self, step: Callable):
        """The client's step; a failure elsewhere that caused its own is the one to report."""
        try:
            return step()
        except PeerError as error:
            for thread in self._threads:
                thread.join(1)
            causes = [e for e in self._failures if not isinstance(e, BlindformerError)] or self._failures
            raise (causes[0] if causes else error) from None
