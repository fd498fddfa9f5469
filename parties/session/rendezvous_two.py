"""How the three parties of a session connect: who dials whom, what they compare before any share is sent, and how the
dealer gets a client's seed.

    client -> server   hello, with the session's id, which the client draws
    client -> dealer   hello, with the same id; leaves its seed there and hangs up
    server -> dealer   hello, with the same id: the dealer gives each seed to one server's connection

With a helper, the client dials server and helper, and the helper acts as the client above, with the same id.

The hash of the program stands for the model's shape, the plan and the scales: a party with another one is refused here.
The dealer runs the program that the other two name, so it answers any program's hello, and compares the two names.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from ...models.program.program import Program
from ...models.program.two_server import for_audits, for_two_servers, is_for_two_servers
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, PeerProtocolError, PeerRefused
from ...versions import spoken_version
from ..config import SessionSection
from ..transport.frames import send_error
from ..transport.handshake import Address, Hello, greet, introduce, make_hello
from ..transport.stream import StreamChannel
from .messages import SAME_VERSION, read_seed, receive_expected


def agreed_program(program: Program, session: SessionSection) -> Program:
    """The program that the parties of a session run, of the one that was compiled. Errors: ProgramError."""
    if session.topology == "helper":
        return for_two_servers(program)
    return for_audits(program, session.audits) if session.audits else program


def rate_in_words(audits: float) -> str:
    """A rate of audits, exactly."""
    short = f"{audits:g}"
    return short if float(short) == audits else repr(audits)


def my_hello(
    program: Program,
    role: str,
    session: str = "",
    protocol: str = "beaver",
    config: str = "",
    topology: str = "dealer",
) -> Hello:
    """As `make_hello`, of a program that is compiled for sessions. `topology`: for a helper the program says it."""
    topology = "helper" if is_for_two_servers(program) else topology
    about = {
        "topology": topology,
        "ring": program.ring,
        "plan": program.plan,
        "audits": rate_in_words(program.audits),
    }
    return make_hello(role, protocol, program.hash(), session, config, **about)


def part_of(channel: Channel, program: Program) -> str:
    """What a peer that asks for `program` does at the server: "party" (computes, as P1) or "owner" (sends shares).

    Errors: `PeerRefused` if its role does not fit the program; the peer gets the reason.
    """
    if is_for_two_servers(program):
        return "party" if channel.peer == "helper" else "owner"
    if channel.peer == "client":
        return "party"
    what = f"is a {channel.peer}, and this program's data owner takes part itself"
    error = PeerRefused(channel.peer, what, "choose the same topology for all parties")
    send_error(channel, error)
    raise error


REMEMBERED = 4096  # sessions that have had their seed


class SeedError(BlindformerError):
    """The dealer has no seed of `party` for a session, or has had one."""

    def __init__(self, party: str, what: str) -> None:
        self.party = party
        super().__init__(what)


class Seeds(Protocol):
    """Hands the seed that each other party left to the connection of its session's leader, once. Of two parties the
    other one is the client, or the helper in its place."""

    def put(self, session: str, program: str, seed: bytes, party: str = "client") -> None:
        """Errors: `SeedError` if there was one already."""
        ...

    def take(self, session: str, program: str, party: str = "client") -> bytes:
        """Remove and return the seed. Errors: `SeedError` if there is none, or it is for another program."""
        ...


class KeptSeed(NamedTuple):
    owner: str
    program: str
    seed: bytes
    end: float


class MemorySeeds:
    """Seeds within one process: at most `limit`, at most `each` of one owner, for `seconds`. Of the last 4,096 none is
    followed by a second one of its party and session, whether it was used or not; a server's store knows all of its
    own. When full, the oldest seed of the owner with most seeds goes."""

    limit, each, seconds = 256, 64, 600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._kept: OrderedDict[tuple[str, str], KeptSeed] = OrderedDict()  # by session and party
        self._had: OrderedDict[tuple[str, str], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, session: str, program: str, seed: bytes, party: str = "client", owner: str = "") -> None:
        key = (session, party)
        with self._lock:
            self._expire()
            if key in self._had:
                raise SeedError(party, "its seed for this session was left already; start a new session")
            counts = Counter(kept.owner for kept in self._kept.values())
            if counts[owner] >= self.each:
                self._drop_oldest(owner)
            elif len(self._kept) >= self.limit:
                self._drop_oldest(counts.most_common(1)[0][0])
            self._had[key] = None
            if len(self._had) > REMEMBERED:
                self._had.popitem(last=False)
            self._kept[key] = KeptSeed(owner, program, seed, self._clock() + self.seconds)

    def take(self, session: str, program: str, party: str = "client") -> bytes:
        with self._lock:
            self._expire()
            kept = self._kept.pop((session, party), None)
        if kept is None or kept.program != program:
            raise SeedError(party, "its seed for this session is not here, or was used; start a new session")
        return kept.seed

    def _drop_oldest(self, owner: str) -> None:
        del self._kept[next(key for key, kept in self._kept.items() if kept.owner == owner)]

    def _expire(self) -> None:
        now = self._clock()
        for key in [key for key, kept in self._kept.items() if kept.end <= now]:
            del self._kept[key]


def seed_dealer(
    context: ssl.SSLContext, dealer: Address, mine: Hello, timeout: float, seed: bytes, wait: float | None = None
) -> None:
    """Leave a party's seed with the dealer; all but the leader do. `wait`: as `introduce`. Errors: `PeerError`."""
    channel, _ = introduce(dealer, context, "dealer", mine, timeout, wait)
    try:
        channel.send_message({"seed": seed.hex()})
        if receive_expected(channel, ("seeded",))["seeded"] is not True:
            raise PeerProtocolError("dealer", "did not say that it has this side's seed", SAME_VERSION)
    finally:
        channel.close()


def receive_seed(channel: Channel, hello: Hello, seeds: Seeds, party: str = "client") -> None:
    """At the dealer, on the connection of a party that does not lead, after the hello: keep its seed. The caller closes
    the connection.

    Errors: `PeerError`, which the caller sends to the peer.
    """
    seed = read_seed(channel)
    try:
        seeds.put(hello.session, hello.program, seed, party)
    except SeedError as error:
        raise PeerProtocolError(channel.peer, "cannot be dealt to", str(error)) from None
    channel.send_message({"seeded": True})


def left_for(leader: Hello, seeds: Seeds, parties: Iterable[str] = ("client",)) -> Callable[[], list[bytes]]:
    """Takes the seeds that the other parties, in order of rank, left for the session of a leader that said hello."""
    return lambda: [seeds.take(leader.session, leader.program, party) for party in parties]


def meet_as_dealer(
    channel: StreamChannel,
    timeout: float,
    *,
    protocol: str = "beaver",
    topology: str = "",
    config: str = "",
    first: dict[str, Any] | None = None,
) -> Hello:
    """At the dealer, on a channel that a peer opened: the peer's hello. `topology`: if the settings name one. It needs
    no CrypTen, whose version N parties name, too. Errors: `PeerError`; the peer gets the reason."""

    def choose(theirs: Hello) -> Hello:
        same = theirs.blindformer.partition("+")[0] == spoken_version()
        version = theirs.blindformer if same else spoken_version()
        mine = {"blindformer": version, "role": "dealer", "protocol": protocol, "topology": topology, "config": config}
        return theirs.model_copy(update=mine)

    return greet(channel, choose, timeout, first)
