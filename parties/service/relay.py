"""The server's process for a data owner who takes no part: it passes shares and answers on to the session's process."""

from __future__ import annotations

from collections.abc import Callable

from ...models.program.program import Program
from ...models.program.two_server import answer_layout, input_layout
from ...protocols.beaver.owner import layout_bytes
from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerProtocolError
from ..session.messages import SAME_VERSION, out_of_place, patient, refusing
from ..transport.frames import say_why
from .rendezvous import OWNER, Rendezvous

RELAY_SECONDS = 86400.0  # the session's own process knows what takes too long; the owner's only waits for it
Count = Callable[[], None]


def serve_owner(
    owner: Channel,
    program: Program,
    rendezvous: Rendezvous,
    session: str,
    timeout: float,
    idle: float | None = None,
    count: Count | None = None,
) -> int:
    """All that the owner's process does after the hello; returns the number of queries. Errors: `PeerError`."""
    owner.send_message({"open": True} if count is None else {"open": True, "counts": True})
    link = rendezvous.meet(session, OWNER, timeout, lambda: owner.send_message({"waiting": "helper"}))
    try:
        return relay(owner, link, program, idle, count)
    finally:
        link.close()


def relay(
    owner: Channel, session: Channel, program: Program, idle: float | None = None, count: Count | None = None
) -> int:
    """In the owner's process: pass on shares and answers until it says goodbye; returns the number of queries.

    count   called once for each query, when the owner says that it is going to ask, and before its shares are taken:
            `LimitReached` refuses it

    Errors: `PeerError` of either side; the other one has been told why, and the owner in the session's own words.
    """
    done = counted = 0
    while True:
        try:
            with patient(owner, idle):
                message = owner.recv_message()
            if message.get("bye"):
                return done
            if count is not None and "count" in message:
                with refusing(owner):
                    if counted == done:  # else it asks again, of a helper that was busy
                        count()
                        counted += 1
                    owner.send_message({"counted": done})
                continue
            if count is not None and counted == done:
                error = PeerProtocolError(owner.peer, "sent shares of a query that it had not counted", SAME_VERSION)
                say_why(owner, error)
                raise error
            part = message.get("part", "")
            if not isinstance(part, str) or part not in (program.parts or ("",)):
                error = out_of_place(owner)
                say_why(owner, error)
                raise error
            asked = program.part(part)
            shares = owner.recv(layout_bytes(input_layout(asked)))
        except PeerError as error:
            say_why(session, error)
            raise
        try:
            session.send_message(message)
            session.send(shares)
            with patient(session, RELAY_SECONDS):
                reply = session.recv_message()
            answer = session.recv(layout_bytes(answer_layout(asked)))
        except PeerError as error:
            # Our own other process has failed: this is the server's error, in the words it used.
            what = error.what.removeprefix("stopped and said: ")
            owner.send_message({"error": {"kind": type(error).__name__, "what": what}})
            owner.close()
            raise
        owner.send_message(reply)
        owner.send(answer)
        done += 1
