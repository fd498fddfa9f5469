"""All parties of a session as threads, on a small program, over channels in memory that keep what crosses them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from blindformer.models.program.interpreter import interpret
from blindformer.parties.session.helper_topology import HelperParty, OwnerParty, OwnerShares
from blindformer.parties.session.masked_weights import Served
from blindformer.parties.session.messages import ComputeSlots, SlotsBusy
from blindformer.parties.session.n_party import Party, PartyModel
from blindformer.parties.session.online import Answer, OnQuery, Timings
from blindformer.parties.session.parties import Parties
from blindformer.parties.session.two_party_client import ClientParty
from blindformer.parties.session.two_party_server import ServerParty
from blindformer.parties.transport.handshake import abort, new_session
from blindformer.protocols.channel import Channel
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.crypten.mesh import Mesh
from blindformer.protocols.errors import BlindformerError
from blindformer.protocols.streams import new_seed
from blindformer.tests.protocols.programs import Case, Data, Draft
from blindformer.tests.shared.memory import MemoryChannel, is_message, memory_pair
from blindformer.tests.shared.threads import PartyThreads

SECRET = bytes(range(16))
IDLE = 120.0
ROLES = {"owner": "client"}  # what the certificate of a data owner who takes no part calls it


def small_case() -> Case:
    """A linear layer, a rescale, a square and a comparison; one result of [4, 8] integers."""
    data, d = Data(3), Draft()
    y = d("linear", d.client(data.ints(4, 8, bits=8)), d.weight(data.ints(8, 8, bits=8)))
    y = d("rescale", d("mul_private", y, d.weight(data.ints(8, bits=4))), bits=6, ring=64)
    return d.case(d("mul", d("less", y, threshold=40, bits=40), d("mul", y, y)))


def right(case: Case, outputs: dict[str, Any]) -> None:
    """The outputs are those of `small_case`. A rescale may round either way: its square differs by that."""
    wanted = interpret(case.program, ClearEngine(case.sources)).outputs
    assert outputs.keys() == wanted.keys()
    for name, value in wanted.items():
        assert ((outputs[name] - value).abs() <= 2 * value.abs().max().sqrt() + 2).all()


class Turnstile:
    """Admission that refuses where `refuse` says so, call by call, and then admits; once `hold` is set, if given.

    `inside`: how many compute now; `most`: the most that ever did.
    """

    def __init__(self, refuse: Iterable[object] = (), hold: threading.Event | None = None, party: str = "server"):
        self.refuse, self.hold, self.party = iter(refuse), hold, party
        self.inside = self.most = 0

    @contextmanager
    def slot(self, number: int, waiting: Callable[[int], None]) -> Iterator[None]:
        if next(self.refuse, False):
            raise SlotsBusy(self.party, 7.5, "the queue is full")
        while self.hold is not None and not self.hold.wait(0.05):
            waiting(3)
        self.inside += 1
        self.most = max(self.most, self.inside)
        yield
        self.inside -= 1


class Follower:
    """Carol, who follows two others; the test speaks for alice, the leader, who is also the querying party."""

    def __init__(self, model: PartyModel, weights: dict[str, torch.Tensor]) -> None:
        self.asker, mine = memory_pair("carol", "alice", 20)
        self.bob, to_bob = memory_pair("carol", "bob", 20)
        parties = Parties(("alice", "bob", "carol"), data="alice")
        self.party = Party(parties, Mesh(2, {0: mine, 1: to_bob}), model, new_seed())
        self.party._masked = dict(weights)  # any numbers do: they are no one's weights

    def hear(self, *messages: dict) -> None:
        for message in messages:
            self.asker.send_message(message)
        self.party.follow(20, lambda number: {})

    def close(self) -> None:
        self.asker.close()
        self.bob.close()


class Site(PartyThreads):
    """A server, a dealer, and any number of clients or of data owners with a helper.

    dealt      whether there is a dealer
    answers    of `run_session`
    answered   what the server says of each query, to `on_query`
    dealer_up  whether the dealer can be dialled; `dialled`: how often it was
    ends       a party's ends of its channels
    received   all payloads by (receiver, sender)
    """

    def __init__(
        self, case: Case, *, store: Any = None, timeout: float = 20, secret: bytes = SECRET, dealt: bool = True
    ) -> None:
        super().__init__(timeout)
        self.dealt = dealt
        self.case, self.store, self.served = case, store, Served(case, secret)
        self.answers: list[Answer] = []
        self.answered: list[tuple[int, Timings]] = []
        self.on_query: OnQuery = lambda number, timings: self.answered.append((number, timings))
        self.dealer_up, self.dialled = True, 0
        self.ends: dict[str, list[MemoryChannel]] = {}
        self.received: dict[tuple[str, str], list[bytes]] = {}

    def connect(self, a: str, b: str) -> Any:
        pair = super().connect(ROLES.get(a, a), ROLES.get(b, b))
        for me, peer, end in ((a, b, pair[0]), (b, a, pair[1])):
            assert isinstance(end, MemoryChannel)
            end.record = self.received.setdefault((me, peer), [])
            self.ends.setdefault(me, []).append(end)
        return pair

    def start(self, work: Callable[[], None], party: str) -> None:
        def alone() -> None:
            torch.set_num_threads(1)
            work()

        super().start(alone, party)

    def failed(self, party: str, error: BaseException) -> None:
        """A party tells the others what a user can read; nobody waits for a broken test."""
        if isinstance(error, BlindformerError):
            self.failures.append((party, error))
        else:
            super().failed(party, error)

    def leave_seed(self, program: Any, session: str, seed: bytes) -> None:
        if not self.dealer_up:
            raise ConnectionRefusedError("this dealer is not to be asked")
        super().leave_seed(program, session, seed)

    def dial_dealer(self, program: Any, session: str) -> Channel:
        self.dialled += 1
        return super().dial_dealer(program, session)

    def vanish(self, party: str) -> None:
        """What happens when its process is killed."""
        for end in self.ends[party]:
            end.interrupt()

    def run(self, party: str, work: Callable[[], None], channels: Callable[[], list[Any]]) -> None:
        """Start a party that tells its peers, on `channels`, how it fails."""

        def telling() -> None:
            try:
                work()
            except BlindformerError as error:
                abort(channels(), error)
                raise

        self.start(telling, party)

    def serve(self, channel: Any, session: str, client_id: str = "alice", owner: Any = None, **options: Any) -> None:
        """A server's session on `channel`. `owner`: the channel of a data owner who takes no part."""
        program = self.case.program
        outside = None if owner is None else OwnerShares(owner, program)
        party = ServerParty(
            self.served,
            channel,
            (lambda: self.dial_dealer(program, session)) if self.dealt else None,
            session=session,
            client_id=client_id,
            store=self.store,
            outside=outside,
            **options,
        )

        def work() -> None:
            party.set_up()
            party.serve(on_query=self.on_query, idle=IDLE)
            party.close()

        self.run("server", work, lambda: [*party.abandon(), *([] if owner is None else [owner])])

    def second_party(
        self, channel: Any, session: str, kind: type[ClientParty] = ClientParty, **options: Any
    ) -> ClientParty:
        """A client, or a helper, that meets the server on `channel`."""
        program = self.case.program
        leave = lambda seed: self.leave_seed(program, session, seed)  # noqa: E731
        return kind(program, self.case.constants, channel, leave if self.dealt else None, session=session, **options)

    @contextmanager
    def client(
        self, *, session: str = "", client_id: str = "alice", server: dict[str, Any] | None = None, **options: Any
    ) -> Iterator[Any]:
        """A client in a session of its own, set up; `server`: options of the server's party."""
        session = session or new_session()
        theirs, mine = self.connect("server", "client")
        self.serve(theirs, session, client_id, **(server or {}))
        party = self.second_party(mine, session, **options)
        try:
            party.set_up()
            yield party
        finally:
            party.close()

    @contextmanager
    def owner(
        self,
        *,
        session: str = "",
        slots: dict[str, ComputeSlots] | None = None,
        kind: type[OwnerParty] = OwnerParty,
        **options: Any,
    ) -> Iterator[Any]:
        """A data owner with a helper, in a session of its own, set up. `slots`: admission by party."""
        session, program = session or new_session(), self.case.program
        owner_helper, helper_owner = self.connect("owner", "helper")
        owner_server, server_owner = self.connect("owner", "server")
        helper_server, server_helper = self.connect("helper", "server")
        self.serve(server_helper, session, owner=server_owner, admission=(slots or {}).get("server"))
        second, admission = self.second_party(helper_server, session), (slots or {}).get("helper")
        helper = HelperParty(helper_owner, second, admission, self.served)

        def help_owner() -> None:
            helper.set_up()
            helper.serve(idle=IDLE)
            helper.close()

        self.run("helper", help_owner, lambda: [helper_owner, helper_server])
        party = kind(program, owner_server, owner_helper, **options)
        try:
            party.set_up()
            yield party
        finally:
            party.close()

    def ask(self, party: Any, more: bool = False) -> Answer:
        """One query, whose answer must be right."""
        answer = party.query({**self.case.client, **self.case.inputs}, more=more)
        right(self.case, answer.outputs)
        return answer

    def join(self, seconds: float = 60) -> None:
        super().join(seconds)
        assert not [thread.name for thread in self.threads if thread.is_alive()]

    def end(self) -> None:
        """Everybody has left, and nobody has failed."""
        self.join()
        for _, error in self.failures:
            raise error

    def errors(self) -> list[BlindformerError]:
        """How parties failed; all are errors that a user can read."""
        self.join()
        readable = [error for _, error in self.failures if isinstance(error, BlindformerError)]
        assert len(readable) == len(self.failures), self.failures
        return readable


def run_session(case: Case, queries: int = 1, timeout: float = 20) -> Site:
    """A client's whole session, from set-up to goodbye, on a model of its own."""
    site = Site(case, timeout=timeout, secret=new_seed())
    with site.client() as party:
        for number in range(queries):
            site.answers.append(party.query(case.client, more=number + 1 < queries))
    site.end()
    return site


def assert_fresh(site: Site) -> None:
    """Of two equal queries of a data owner with two servers: what each has received is uniform, and not the same."""
    for receiver, sender in (("server", "owner"), ("owner", "server"), ("owner", "helper"), ("server", "helper")):
        frames = [p for p in site.received[receiver, sender] if not is_message(p)]
        one, other = (b"".join(half) for half in np.array_split(np.array(frames, dtype=object), 2))
        assert one != other
        if len(one) > 4000:
            counts = np.bincount(np.frombuffer(one + other, np.uint8), minlength=256)
            assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 255 + 8 * (2 * 255) ** 0.5
