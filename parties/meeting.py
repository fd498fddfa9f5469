"""How the three parties of a session find each other: who dials whom, and what they agree on before any share is sent.

    client -> server   hello, with the session's id, which the client draws
    server -> dealer   hello, with the same id
    client -> dealer   hello, with the same id: the dealer pairs the two connections by it, in whatever order they come

The hash of the program stands for the model's shape, the plan and the scales: who has another one is turned away here.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from ..models.program import Program
from ..protocols.channel import Channel
from ..protocols.errors import PeerError, PeerGone, PeerProtocolError, PeerRefused
from .frames import say_why
from .handshake import Hello, hello
from .stream import StreamChannel
from .tls import Listener, dial

Address = tuple[str, int]
Refused = Callable[[PeerError], None]
SESSION_BYTES = 16
HELLO_SECONDS = 10.0
LOAD_SECONDS = 30.0
SESSIONS_WAITING = 64  # sessions of which the dealer has met one party and not the other

_SAME_SESSION = "the client draws a session's id and the server passes it on: use the same version on both sides"


def my_hello(program: Program, role: str, session: str = "", protocol: str = "beaver") -> Hello:
    """What this party says first. An empty `session` takes the peer's."""
    return Hello(
        blindformer=_version(),
        role=role,
        program=program.hash(),
        ring=program.ring,
        plan=program.plan,
        protocol=protocol,
        session=session,
    )


def meet_as_client(
    program: Program, context: ssl.SSLContext, server: Address, dealer: Address, timeout: float
) -> tuple[StreamChannel, StreamChannel]:
    """Dial both and return (server's channel, dealer's channel). `timeout`: seconds of silence allowed from now on."""
    mine = my_hello(program, "client", secrets.token_hex(SESSION_BYTES))
    to_server = _dial(server, context, "server", mine, timeout)
    try:
        return to_server, _dial(dealer, context, "dealer", mine, timeout)
    except PeerError as error:
        say_why(to_server, error)
        to_server.close()
        raise


def meet_as_server(
    program: Program,
    listener: Listener,
    context: ssl.SSLContext,
    dealer: Address,
    timeout: float,
    refused: Refused | None = None,
    wait: float | None = None,
) -> tuple[StreamChannel, StreamChannel]:
    """The next client and, for its session, the dealer: (client's channel, dealer's channel).

    `refused` is told of peers turned away while waiting goes on; without it the first one raises. `wait`: seconds for a
    client to come, None for ever.
    """
    to_client, theirs = _accept(program, listener, "server", ("client",), refused, wait, timeout)
    mine = my_hello(program, "server", theirs.session)
    try:
        return to_client, _dial(dealer, context, "dealer", mine, timeout)
    except PeerError as error:
        say_why(to_client, error)
        to_client.close()
        raise


def meet_as_dealer(
    program: Program,
    listener: Listener,
    timeout: float,
    refused: Refused | None = None,
    wait: float | None = None,
    waiting: dict[str, dict[str, StreamChannel]] | None = None,
) -> tuple[StreamChannel, StreamChannel]:
    """The first session of which both parties have come: (server's channel, client's channel).

    `waiting`: sessions half met, to be handed to the next call by a dealer that serves many.
    """
    waiting = {} if waiting is None else waiting
    while True:
        channel, theirs = _accept(program, listener, "dealer", ("client", "server"), refused, wait, timeout)
        met = waiting.setdefault(theirs.session, {})
        if theirs.role in met:
            met.pop(theirs.role).close()  # it dialled again: its first connection is dead, or another's guess
        met[theirs.role] = channel
        if len(met) == 2:
            del waiting[theirs.session]
            return met["server"], met["client"]
        if len(waiting) > SESSIONS_WAITING:
            oldest = next(iter(waiting))
            for stale in waiting.pop(oldest).values():
                stale.close()


def _dial(address: Address, context: ssl.SSLContext, role: str, mine: Hello, timeout: float) -> StreamChannel:
    # The peer listens before it has loaded its model, so that the others can start: it is given time to answer.
    patience = max(timeout, LOAD_SECONDS)
    channel = dial(*address, context, role, timeout=patience, retry_seconds=5, handshake_seconds=patience)
    try:
        hello(channel, mine, role)
        channel.timeout = timeout
    except PeerError:
        channel.close()
        raise
    return channel


def _accept(
    program: Program,
    listener: Listener,
    role: str,
    expected: tuple[str, ...],
    refused: Refused | None,
    wait: float | None,
    timeout: float,
) -> tuple[StreamChannel, Hello]:
    """The next peer with a good certificate, the expected role and the same program, and what it said."""
    while True:
        channel = listener.accept(wait, expected, refused)
        channel.timeout = min(timeout, HELLO_SECONDS)  # its certificate is good, but it must not hold up the others
        try:
            theirs = hello(channel, my_hello(program, role), channel.peer)
            _check_session(channel, theirs.session)
        except PeerError as error:
            channel.close()
            if refused is None:
                raise
            refused(error)
            continue
        channel.timeout = timeout
        return channel, theirs


def _check_session(channel: Channel, session: str) -> None:
    if len(session) != 2 * SESSION_BYTES:
        error = PeerProtocolError(channel.peer, "named no valid session", _SAME_SESSION)
        say_why(channel, error)
        raise error


def tell(channels: list[StreamChannel], error: PeerError) -> None:
    """Tell the other peers of a session why it ends, and hang up. Takes a second at most for each."""
    for channel in channels:
        channel.timeout = min(channel.timeout, 1.0)
        # Who is gone cannot hear it; who refused us knows.
        if channel.peer != error.party or not isinstance(error, PeerGone | PeerRefused):
            say_why(channel, error)
        channel.close()


def _version() -> str:
    try:
        return version("blindformer")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"
