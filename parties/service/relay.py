"""The server's process for a data owner who takes no part: it passes shares and answers on to the session's process."""

from __future__ import annotations

from collections.abc import Callable

from ...models.program.program import Program
from ...models.program.two_server import answer_layout, input_layout
from ...protocols.beaver.owner import layout_bytes
from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerProtocolError
from ..session.messages import SAME_VERSION, Shares, out_of_place, patient, read, refusing
from ..session.part_runs import count_of, may_reveal
from ..transport.frames import say_why
from .rendezvous import OWNER, Rendezvous

RELAY_SECONDS = 86400.0  # the session's own process knows what takes too long; the owner's only waits for it
Count = Callable[[int], None]


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

    count   called once for each query, with the tokens that it reveals, when the owner says that it is going to ask,
            and before its shares are taken: `LimitReached` refuses it

    Errors: `PeerError` of either side; the other one has been told why, and the owner in the session's own words.
    """
    done, counted, tokens = 0, None, 0  # what the next query was counted for
    while True:
        try:
            with patient(owner, idle):
                message = owner.recv_message()
            if message.get("bye"):
                return done
            if count is not None and "count" in message:
                asked = _read(owner, program, message["count"])
                more = count_of(program.part(asked.part), asked.revealed) - tokens
                with refusing(owner):
                    if more > 0:  # else it asks again, of a helper that was busy
                        count(more)
                    counted, tokens = asked, tokens + max(0, more)
                    owner.send_message({"counted": done})
                continue
            asked = _read(owner, program, message)
            if count is not None and counted != asked:
                error = PeerProtocolError(owner.peer, "sent shares of a query that it had not counted", SAME_VERSION)
                say_why(owner, error)
                raise error
            part = program.part(asked.part)
            shares = owner.recv(layout_bytes(input_layout(part)))
        except PeerError as error:
            say_why(session, error)
            raise
        try:
            session.send_message(message)
            session.send(shares)
            with patient(session, RELAY_SECONDS):
                reply = session.recv_message()
            answer = session.recv(layout_bytes(answer_layout(part, asked.revealed)))
        except PeerError as error:
            # Our own other process has failed: this is the server's error, in the words it used.
            what = error.what.removeprefix("stopped and said: ")
            owner.send_message({"error": {"kind": type(error).__name__, "what": what}})
            owner.close()
            raise
        owner.send_message(reply)
        owner.send(answer)
        done, counted, tokens = done + 1, None, 0


def _read(owner: Channel, program: Program, message: object) -> Shares:
    """Errors: `PeerProtocolError` of what the program has not; the owner has been told."""
    try:
        asked = read(owner, Shares, message if isinstance(message, dict) else {})
        if asked.part in (program.parts or ("",)) and may_reveal(program.part(asked.part), asked.revealed):
            return asked
        raise out_of_place(owner)
    except PeerProtocolError as error:
        say_why(owner, error)
        raise
