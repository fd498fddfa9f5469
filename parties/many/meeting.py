"""How N parties and a dealer find each other: each dials those before it in the roster, and the dealer.

The leader draws the session's id; who dials the leader learns it there, and names it to the others. The hellos compare
version, CrypTen's version, program, ring, plan, and the roster's hash: so a party that counts others differently, or
gives an input to somebody else, is turned away before any share is sent.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from ...models.program import Program
from ...protocols.crypten.versions import crypten_version
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError, PeerRefused, PeerTimeout
from ...versions import spoken_version
from ..session.meeting import HELLO_SECONDS, LOAD_SECONDS, SESSION_BYTES, Address, Refused, my_hello, new_session
from ..session.messages import SAME_VERSION
from ..transport.frames import say_why
from ..transport.handshake import Hello, answer_hello, hello
from ..transport.stream import StreamChannel
from ..transport.tls import Listener, dial
from .ahead import AheadLimits
from .roster import DEALER, LEADER, Roster

PROTOCOL = "crypten"


def _ignore(error: PeerError) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True)
class Place:
    """Where one party stands. `wait`: seconds for the others to come; `timeout`: of silence, from then on.

    `config`: what else all must have in common (Settings.shared_hash()); the roster is compared in any case.
    `refused` is told of whoever is turned away while waiting goes on. `limits`: what others may make it hold ahead.
    """

    roster: Roster
    rank: int
    context: ssl.SSLContext
    wait: float = 60.0
    timeout: float = 60.0
    config: str = ""
    refused: Refused = _ignore
    limits: AheadLimits = field(default_factory=AheadLimits)

    @property
    def name(self) -> str:
        return self.roster.names[self.rank]

    @property
    def patience(self) -> float:
        """For a peer that listens already, and will answer when it is done with others."""
        return max(self.wait, self.timeout, LOAD_SECONDS)


def hello_of(program: Program, role: str, roster: Roster, session: str, config: str = "") -> Hello:
    """What a party says of itself."""
    made = my_hello(program, role, session, protocol=PROTOCOL, config=roster.hash() + config)
    return made.model_copy(update={"blindformer": f"{spoken_version()}+crypten.{crypten_version()}"})


def meet_parties(
    place: Place, program: Program, addresses: Mapping[int, Address], listener: Listener | None
) -> tuple[str, dict[int, StreamChannel]]:
    """The session's id, and a channel to every other party by rank.

    `addresses`: of the parties before this one. `listener`: for those after it. Errors: `PeerError`, naming who did not
    come, and how long this side waited.
    """
    session = new_session() if place.rank == LEADER else ""
    channels: dict[int, StreamChannel] = {}

    def mine() -> Hello:
        return hello_of(program, place.name, place.roster, session, place.config)

    try:
        for rank in range(place.rank):
            channels[rank] = _dial(place, addresses[rank], place.roster.names[rank])
            theirs = hello(channels[rank], mine(), place.roster.names[rank])
            session = session or theirs.session
            if len(session) != 2 * SESSION_BYTES:
                raise PeerProtocolError(place.roster.names[rank], "named no valid session", SAME_VERSION)
        missing = set(range(place.rank + 1, place.roster.size))
        if missing:
            assert listener is not None
            end = time.monotonic() + place.wait
            while missing:
                channel = _accept(place, listener, missing, end, mine)
                if channel is not None:
                    rank = place.roster.rank(channel.peer)
                    channels[rank] = channel
                    missing.discard(rank)
    except BaseException as error:
        for channel in channels.values():
            if isinstance(error, PeerError):
                say_why(channel, error)
            channel.close()
        if isinstance(error, PeerError) and listener is not None:
            _turn_away(place, listener, error)
        raise
    for channel in channels.values():
        channel.timeout = place.timeout
    return session, channels


def meet_dealer(place: Place, program: Program, session: str, address: Address, seed: bytes) -> StreamChannel | None:
    """Leave this party's seed with the dealer. The leader keeps the channel, the others hang up (None)."""
    channel = _dial(place, address, DEALER)
    try:
        hello(channel, hello_of(program, place.name, place.roster, session, place.config), DEALER)
        channel.send_message({"seed": seed.hex()})
        if channel.recv_message().get("seeded") is not True:
            raise PeerProtocolError(DEALER, "did not say that it has this side's seed", SAME_VERSION)
    except BaseException:
        channel.close()
        raise
    if place.rank == LEADER:
        channel.timeout = place.timeout
        return channel
    channel.close()
    return None


def _dial(place: Place, address: Address, name: str) -> StreamChannel:
    patience = place.patience
    try:
        return dial(
            *address, place.context, name, timeout=patience, retry_seconds=place.wait, handshake_seconds=patience
        )
    except PeerGone as error:
        what = f"{error.what} after {place.wait:g} seconds of trying"
        raise PeerTimeout(name, what, "start it, wait longer, or check the address") from None


def _turn_away(place: Place, listener: Listener, error: PeerError) -> None:
    """Tell those who wait at the door, or come in the next second, why there will be no session."""
    end = time.monotonic() + 1.0
    with suppress(PeerTimeout):
        while True:
            channel = listener.accept(max(0.0, end - time.monotonic()), place.roster.names, place.refused)
            say_why(channel, error)
            channel.close()


def _accept(
    place: Place, listener: Listener, missing: set[int], end: float, mine: Callable[[], Hello]
) -> StreamChannel | None:
    """The next party that comes; None for one that is turned away."""
    names = [place.roster.names[rank] for rank in sorted(missing)]
    try:
        later = place.roster.names[place.rank + 1 :]
        channel = listener.accept(max(0.0, end - time.monotonic()), later, place.refused)
    except PeerTimeout:
        what = f"did not connect in {place.wait:g} seconds"
        raise PeerTimeout(", ".join(names), what, "start it, or wait longer") from None
    channel.timeout = min(place.patience, HELLO_SECONDS)
    if channel.peer not in names:
        what = "is here already, from another process; every party takes part once"
        error = PeerRefused(channel.peer, what, "give each party a rank and a certificate of its own")
        say_why(channel, error)
        channel.close()
        place.refused(error)
        return None
    try:
        answer_hello(channel, lambda _: mine(), (channel.peer,))
    except BaseException:
        channel.close()
        raise
    return channel
