"""A server, a dealer and any number of clients in threads, on a small program, over channels in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from blindformer.models.program.interpreter import interpret
from blindformer.parties.local.threads import ThreadDealer
from blindformer.parties.session.client import Answer, ClientParty
from blindformer.parties.session.meeting import new_session, tell
from blindformer.parties.session.server import ServerParty
from blindformer.parties.session.timings import Timings
from blindformer.parties.session.weights import Served
from blindformer.parties.transport.memory import MemoryChannel, memory_pair
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.protocols.programs import Case, Data, Draft

SECRET = bytes(range(16))
IDLE = 120.0


def small_case() -> Case:
    """A linear layer, a rescale, a square and a comparison; one result of [4, 8] integers."""
    data, d = Data(3), Draft()
    y = d("linear", d.client(data.ints(4, 8, bits=8)), d.weight(data.ints(8, 8, bits=8)))
    y = d("rescale", d("mul_private", y, d.weight(data.ints(8, bits=4))), bits=6, ring=64)
    return d.case(d("mul", d("less", y, threshold=40, bits=40), d("mul", y, y)))


def expected(case: Case) -> dict[str, Any]:
    return interpret(case.program, ClearEngine(case.sources)).outputs


class Site:
    """`answered`: what the server says of each query. `failures`: how its sessions and the dealer's have ended, where
    they ended badly. `dealer_up`: whether the dealer can be dialled."""

    def __init__(self, case: Case, *, spool: Any = None, timeout: float = 20, secret: bytes = SECRET) -> None:
        self.case, self.spool, self.timeout = case, spool, timeout
        self.served = Served(case, secret)
        self.channels: list[MemoryChannel] = []
        self.failures: list[BaseException] = []
        self.answered: list[tuple[int, Timings]] = []
        self.dealer_up, self.dialled = True, 0
        self.dealer = ThreadDealer(self.connect, self.start)
        self.threads: list[threading.Thread] = []

    def connect(self, a: str, b: str) -> tuple[MemoryChannel, MemoryChannel]:
        pair = memory_pair(a, b, self.timeout)
        self.channels += pair
        return pair

    def start(self, work: Callable[[], None], name: str) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:
                self.failures.append(error)

        self.threads.append(threading.Thread(target=guarded, daemon=True, name=name))
        self.threads[-1].start()

    def serve(self, channel: Any, session: str, client_id: str = "alice", **options: Any) -> None:
        """A server's session on `channel`, in a thread."""

        def dial() -> Any:
            self.dialled += 1
            return self.dealer.dialling(self.case.program, session)()

        party = ServerParty(
            self.served, channel, dial, session=session, client_id=client_id, spool=self.spool, **options
        )

        def run() -> None:
            try:
                party.set_up()
                party.serve(on_query=lambda number, timings: self.answered.append((number, timings)), idle=IDLE)
            except BlindformerError as error:
                tell(party.abandon(), error)
                raise
            party.close()

        self.start(run, "server")

    @contextmanager
    def client(
        self, *, client_id: str = "alice", server: dict[str, Any] | None = None, **options: Any
    ) -> Iterator[ClientParty]:
        """A client in a session of its own, set up; `server`: options of the server's party."""
        session = new_session()
        theirs, mine = self.connect("server", "client")
        self.serve(theirs, session, client_id, **(server or {}))
        seed = self.dealer.seeding(self.case.program, session)

        def leave(own: bytes) -> None:
            if not self.dealer_up:
                raise ConnectionRefusedError("this dealer is not to be asked")
            seed(own)

        party = ClientParty(self.case.program, self.case.constants, mine, leave, session=session, **options)
        try:
            party.set_up()
            yield party
        finally:
            party.close()

    def ask(self, party: ClientParty, more: bool = False) -> Answer:
        """One query, whose answer must be right."""
        answer = party.query(self.case.client, more=more)
        wanted = expected(self.case)
        assert answer.outputs.keys() == wanted.keys()
        for name, value in wanted.items():
            # A rescale may round either way: its square differs by that.
            assert ((answer.outputs[name] - value).abs() <= 2 * value.abs().max().sqrt() + 2).all()
        return answer

    def end(self) -> None:
        """Everybody has left, and nobody has failed."""
        for thread in self.threads:
            thread.join(self.timeout)
            assert not thread.is_alive()
        for error in self.failures:
            raise error

    def errors(self) -> list[BlindformerError]:
        """How parties failed; all are errors that a user can read."""
        for thread in self.threads:
            thread.join(self.timeout)
            assert not thread.is_alive()
        found = [error for error in self.failures if isinstance(error, BlindformerError)]
        assert len(found) == len(self.failures), self.failures
        return found
