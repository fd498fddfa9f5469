"""How N parties find each other and their dealer, and one party's way into a session and out again.

Each party dials those before it in their order, and then the dealer. The leader draws the session's id; parties that
dial the leader learn it there, and name it to the others. The hellos compare version, CrypTen's version, program, ring,
plan, and the hash of the parties: a party that counts others differently, or gives an input to another party, is
refused before any share is sent. Before the leader begins at the dealer, the others have told it that their seeds are
there.

The dealer is a service (service/dealer.py). A party is none: a service has a process for each connection, and a
session's process here has one connection to every other party, which no other process can take over: the keys of TLS
cannot be handed on, and CrypTen's state belongs to a process. A party also brings what it owns, so it takes part as a
client does: for one session.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...models.artifacts import ClientPart, load_client, load_helper, load_server
from ...models.artifacts.layout import parts_of
from ...models.program.program import Program, check_offers
from ...protocols.channel import Channel
from ...protocols.crypten import PROTOCOL
from ...protocols.crypten.mesh import Mesh
from ...protocols.crypten.versions import crypten_version
from ...protocols.devices import CPU
from ...protocols.errors import BlindformerError, PeerError, PeerProtocolError, PeerRefused, PeerTimeout
from ...protocols.streams import new_seed
from ...versions import spoken_version
from ..transport.frames import send_error
from ..transport.handshake import (
    HELLO_SECONDS,
    LOAD_SECONDS,
    Address,
    Hello,
    Refused,
    abort,
    answer_hello,
    introduce,
    new_session,
)
from ..transport.stream import StreamChannel
from ..transport.tls import Listener
from .messages import SAME_VERSION, patient, receive_expected
from .n_party import Party, PartyModel
from .parties import DEALER, LEADER, Parties
from .rendezvous_two import my_hello, seed_dealer


@dataclass(frozen=True)
class PartyContext:
    """One party among others. `wait`: seconds for the others to come; `timeout`: of silence, from then on.

    `refused` gets the error of each peer that is refused while this side goes on waiting.
    """

    parties: Parties
    rank: int
    tls: ssl.SSLContext
    wait: float = 60.0
    timeout: float = 60.0
    refused: Refused = lambda error: None
    device: torch.device = CPU

    @property
    def name(self) -> str:
        return self.parties.names[self.rank]

    @property
    def patience(self) -> float:
        """Seconds for a peer that listens already, and answers when it is done with others."""
        return max(self.wait, self.timeout, LOAD_SECONDS)

    def hello(self, program: Program, session: str) -> Hello:
        """This party's hello."""
        mine = my_hello(program, self.name, session, protocol=PROTOCOL.name, config=self.parties.hash())
        return mine.model_copy(update={"blindformer": f"{spoken_version()}+crypten.{crypten_version()}"})


def meet_parties(
    context: PartyContext, program: Program, addresses: Mapping[int, Address], listener: Listener | None
) -> tuple[str, dict[int, StreamChannel]]:
    """The session's id, and a channel to every other party by rank.

    `addresses`: of the parties before this one. `listener`: for those after it. Errors: `PeerError`, naming the missing
    party, and how long this side waited.
    """
    session = new_session() if context.rank == LEADER else ""
    channels: dict[int, StreamChannel] = {}
    try:
        for rank in range(context.rank):
            name = context.parties.names[rank]
            mine = context.hello(program, session)
            channels[rank], theirs = introduce(addresses[rank], context.tls, name, mine, context.timeout, context.wait)
            session = session or theirs.session
            if not session:
                raise PeerProtocolError(name, "named no valid session", SAME_VERSION)
        missing = set(range(context.rank + 1, context.parties.size))
        end = time.monotonic() + context.wait
        while missing:
            assert listener is not None
            channel = _accept(context, listener, missing, end, context.hello(program, session))
            if channel is not None:
                rank = context.parties.rank(channel.peer)
                channels[rank] = channel
                missing.discard(rank)
    except BaseException as error:
        for channel in channels.values():
            if isinstance(error, PeerError):
                send_error(channel, error)
            channel.close()
        if isinstance(error, PeerError) and listener is not None:
            _turn_away(context, listener, error)
        raise
    for channel in channels.values():
        channel.timeout = context.timeout
    return session, channels


def join_dealer(
    context: PartyContext, program: Program, session: str, address: Address, seed: bytes
) -> StreamChannel | None:
    """The leader's channel to the dealer; the others leave their seed there and hang up (None)."""
    mine = context.hello(program, session)
    if context.rank == LEADER:
        return introduce(address, context.tls, DEALER, mine, context.timeout, context.wait)[0]
    seed_dealer(context.tls, address, mine, context.timeout, seed, context.wait)
    return None


def _turn_away(context: PartyContext, listener: Listener, error: PeerError) -> None:
    """Tell parties that wait to be accepted, or connect in the next second, why there will be no session."""
    end = time.monotonic() + 1.0
    with suppress(PeerTimeout):
        while True:
            channel = listener.accept(max(0.0, end - time.monotonic()), context.parties.names, context.refused)
            send_error(channel, error)
            channel.close()


def _accept(
    context: PartyContext, listener: Listener, missing: set[int], end: float, mine: Hello
) -> StreamChannel | None:
    """The next party that connects; None if it is refused."""
    names, later = [context.parties.names[rank] for rank in sorted(missing)], context.parties.names[context.rank + 1 :]
    try:
        channel = listener.accept(max(0.0, end - time.monotonic()), later, context.refused)
    except PeerTimeout:
        what = f"did not connect in {context.wait:g} seconds"
        raise PeerTimeout(", ".join(names), what, "start it, or wait longer") from None
    if channel.peer not in names:
        what = "is here already, from another process; every party takes part once"
        error = PeerRefused(channel.peer, what, "give each party a rank and a certificate of its own")
        send_error(channel, error)
        channel.close()
        context.refused(error)
        return None
    channel.timeout = min(context.patience, HELLO_SECONDS)
    try:
        answer_hello(channel, lambda theirs: mine, (channel.peer,))
    except BaseException:
        channel.close()
        raise
    return channel


def load_model(
    folder: str | Path, parties: Parties, rank: int, length: int | None = None
) -> tuple[ClientPart | None, PartyModel]:
    """Party `rank`'s part of a compiled folder; and the client's part, if it owns data or gets the answers.

    The leader reads the server's part, a party that neither owns data nor gets answers the helper's; DIR may hold
    them all. Errors: ArtifactError, PartiesError, ProgramError.
    """
    client, weights = None, {}
    if rank == LEADER:
        part = load_server(folder).for_length(length)
        weights = part.weights
    elif parties.reads(rank) or "helper" not in parts_of(folder):
        client = load_client(folder)
        part = client.for_length(length)
    else:
        part = load_helper(folder).for_length(length)
    model = PartyModel(part.program, part.constants, weights, part.parts)
    parties.check_conversation(model.program)
    owners = parties.owns_data(model.program)
    if client is None and (parties.reads(rank) or rank in owners):
        client = load_client(folder)
    check_offers(model.program, PROTOCOL)
    return client, model


@contextmanager
def join_session(
    context: PartyContext,
    model: PartyModel,
    addresses: Mapping[int, Address],
    listener: Listener | None,
    dealer: Address,
) -> Iterator[tuple[Party, Any]]:
    """A session with the other parties and the dealer: this party, set up, and CrypTen's state, which is in this
    process until the block ends. Closes `listener`. The other parties get the error that ends set-up or block.

    Errors: `PeerError`; CryptenError if CrypTen is in use in this process.
    """
    from ...protocols.crypten.session import CryptenSession

    with listener or nullcontext():
        session, channels = meet_parties(context, model.program, addresses, listener)
    with ExitStack() as undo:
        known: list[Channel] = [undo.enter_context(channel) for channel in channels.values()]
        try:
            seed = new_seed()
            to_dealer = join_dealer(context, model.program, session, dealer, seed)
            if to_dealer is None:
                channels[LEADER].send_message({"seeded": True})
            else:
                known.append(undo.enter_context(to_dealer))
                for channel in channels.values():
                    with patient(channel, context.patience):
                        receive_expected(channel, ("seeded",))
            mesh = Mesh(context.rank, channels)
            undo.callback(mesh.close)
            party = Party(context.parties, mesh, model, seed, to_dealer, device=context.device)
            crypten = undo.enter_context(CryptenSession(mesh, context.name, party.deal))
            party.communicator = crypten.communicator
            party.set_up()
            yield party, crypten
        except BlindformerError as error:
            with suppress(BlindformerError):
                abort(known, error)
            raise
