"""Topology `helper`: the helper's service, and what the server does for data owners who take no part themselves.

Each connection to the server has a process of its own, so an owner's shares come into one process and are needed in the
one that serves the helper. Whoever of the two comes first leaves a Unix socket under the session's name and waits; the
other one calls it. The owner's process then passes on shares and answers.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...models.artifacts import load_helper, load_with_adapters
from ...models.program.pricing import price
from ...models.program.program import Program
from ...models.program.two_server import answer_layout, for_two_servers, input_layout
from ...protocols.beaver.owner import layout_bytes
from ...protocols.channel import Channel
from ...protocols.devices import find_device
from ...protocols.errors import (
    BlindformerError,
    PeerError,
    PeerGone,
    PeerProtocolError,
    PeerRefused,
    PeerTimeout,
)
from ..config import Settings
from ..launch import LocalOptions
from ..session.helper_topology import HelperParty
from ..session.messages import SAME_VERSION, Shares, out_of_place, patient, read, refusing
from ..session.online import count_of, may_reveal
from ..session.preprocessed import BackgroundTask
from ..session.preprocessing_store import PreprocessingStore
from ..session.rendezvous_two import my_hello, seed_dealer
from ..session.two_party_client import ClientParty
from ..session.weight_transfer import MaskedCache
from ..transport.frames import send_error
from ..transport.handshake import answer_of, meet
from ..transport.stream import PlainWire, StreamChannel
from ..transport.tls import TlsChannel
from .child import Control
from .service import TOGETHER, Service, adapters_in_words

OWNER, SESSION = "client", "helper"  # by the role of who sits at the other end of the process's own connection
_OTHER = {OWNER: SESSION, SESSION: OWNER}


BEAT = 1.0  # seconds
PATH_BYTES = 107 - 33  # what the system allows for a socket's name, less a session's id
RELAY_SECONDS = 86400.0  # the session's own process knows what takes too long; the owner's only waits for it
Count = Callable[[int], None]


class HelperService(Service):
    """One helper with its programs, one for each length."""

    role = "helper"
    helpers, together = "an offline dealer, and the server", TOGETHER["helper"]

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        mine = settings.helper
        self.device = find_device(mine.device)
        adapted = load_with_adapters(load_helper, mine.folder, "helper", mine.adapters)
        part, parts = adapted[""], [item for part in adapted.values() for item in part.lengths.values()]
        lengths = [replace(item, program=for_two_servers(item.program)) for item in parts]
        self.parts = {item.program.hash(): item for item in lengths}
        self.hellos = {hash: my_hello(one.program, self.role, config=self.config) for hash, one in self.parts.items()}
        for item in lengths:
            for name in item.program.parts or ("",):
                price(item.program.part(name))  # kept for the children
        self.store = None if mine.store is None else PreprocessingStore(mine.store)
        self.about = f"{lengths[0].program.model or 'model'}, lengths {', '.join(map(str, sorted(part.lengths)))}"
        self.about += adapters_in_words(adapted)

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        settings, timeout, context = self.settings, self.timeout, self.identity.dialling
        with self.aborting(channel):
            hello = self.greet(channel, first)
            self.introduce(channel, hello, control)
        part, mine = self.parts[hello.program], answer_of(self.hellos, hello)
        with self.aborting(channel):
            met = BackgroundTask(lambda: meet(settings.address("server"), context, "server", mine, timeout), "server")
            server = met.result([channel], 0)
        client = ClientParty(
            part.program,
            part.constants,
            server,
            partial(seed_dealer, context, settings.address("dealer"), mine, timeout),
            session=hello.session,
            cache=MaskedCache(settings.helper.cache, settings.helper.folder),
            store=self.store,
            device=self.device,
        )
        client.signer = self.identity.signer
        party = HelperParty(channel, client, control, part)
        with self.aborting(channel, server):
            party.set_up()
            party.serve(control.answered, idle=self.limits.idle)
            party.close()


class RendezvousError(BlindformerError):
    """The server's processes of one session cannot meet."""


class Rendezvous:
    """`folder`: of this service alone, mode 0700. Errors: `RendezvousError` if its path is too long for a socket."""

    def __init__(self, folder: Path) -> None:
        if len(os.fsencode(folder)) > PATH_BYTES:
            raise RendezvousError(f"{folder}: is too long a path for a Unix socket; set TMPDIR to a shorter one")
        self.folder = folder

    def meet(self, session: str, role: str, timeout: float, alive: Callable[[], None] = lambda: None) -> StreamChannel:
        """The channel to the process that serves the other peer of this session; `role`: of our own peer.

        `alive` is called every second of waiting, to tell our own peer, and to see whether it is still there.

        Its `peer` is who is spoken to through it: the owner ("client") for the session's process, and for the owner's
        process the server itself.

        Errors: `PeerTimeout` if the other peer does not come, `PeerRefused` if there are two of one kind.
        """
        other = _OTHER[role]
        sock = self._call(session) or self._wait(session, other, timeout, alive)
        channel = StreamChannel(PlainWire(sock), "server" if role == OWNER else OWNER, timeout)
        try:
            channel.send_message({"seat": role})
            if channel.recv_message().get("seat") != other:
                what = f"is in this session already, as {role}"
                raise PeerRefused(role, what, "draw a new session's id for every session")
        except PeerError:
            channel.close()
            raise
        return channel

    def _call(self, session: str) -> socket.socket | None:
        """The one that came first; None if nobody has."""
        caller = socket.socket(socket.AF_UNIX)
        try:
            caller.connect(str(self.folder / session))
        except FileNotFoundError:
            caller.close()
            return None
        except OSError:
            caller.close()
            raise PeerGone("client", "its session is over", "open a new session") from None
        return caller

    def _wait(self, session: str, other: str, timeout: float, alive: Callable[[], None]) -> socket.socket:
        place, draft = self.folder / session, self.folder / secrets.token_hex(8)
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.bind(str(draft))
            waiting.listen(1)
            try:
                os.link(draft, place)  # it listens before it has its name; and a name is given once
            except FileExistsError:
                if (first := self._call(session)) is not None:  # both came at once
                    return first
                raise PeerGone(other, "has left again", "open a new session") from None
            finally:
                draft.unlink()
            try:
                end = time.monotonic() + timeout
                while (left := end - time.monotonic()) > 0:
                    waiting.settimeout(min(left, BEAT))
                    with contextlib.suppress(TimeoutError):
                        return waiting.accept()[0]
                    alive()
                what = f"did not come to the server in {timeout:g} seconds"
                raise PeerTimeout(other, what, f"see the {other}'s own message, then open a new session")
            finally:
                with contextlib.suppress(FileNotFoundError):
                    place.unlink()


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
                send_error(owner, error)
                raise error
            part = program.part(asked.part)
            shares = owner.recv(layout_bytes(input_layout(part)))
        except PeerError as error:
            send_error(session, error)
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
        send_error(owner, error)
        raise
