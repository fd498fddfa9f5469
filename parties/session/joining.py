"""One party's way into a session: its part of the model, the others, the dealer, CrypTen, the set-up; and out again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models.artifacts import ClientPart, load_client, load_helper, load_server
from ...models.artifacts.layout import parts_of
from ...models.program.program import check_offers
from ...protocols.channel import Channel
from ...protocols.crypten import PROTOCOL
from ...protocols.crypten.mesh import Mesh
from ...protocols.errors import BlindformerError
from ...protocols.streams import new_seed
from ..transport.tls import Listener
from .gathering import PartyContext, join_dealer, meet_parties
from .meeting import Address, abort
from .parties import LEADER, Parties
from .party import Party, PartyModel


def load_held(
    folder: str | Path, parties: Parties, rank: int, length: int | None = None
) -> tuple[ClientPart | None, PartyModel]:
    """What party `rank` holds of a compiled folder; and the client's part, if it owns data or gets the answers.

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
    held = PartyModel(part.program, part.constants, weights, part.parts)
    parties.check_conversation(held.program)
    owners = parties.owns_data(held.program)
    if client is None and (parties.reads(rank) or rank in owners):
        client = load_client(folder)
    check_offers(held.program, PROTOCOL)
    return client, held


@dataclass
class Joined:
    """A party in its session, with CrypTen's state set up in this process until `close`. A context manager.

    An error that ends the block is told to the other parties.
    """

    party: Party
    crypten: Any
    _undo: ExitStack

    def close(self) -> None:
        self._undo.close()

    def __enter__(self) -> Joined:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, BlindformerError):
            _abort(self.party.channels, error)
        self.close()


def join(
    context: PartyContext,
    held: PartyModel,
    addresses: Mapping[int, Address],
    listener: Listener | None,
    dealer: Address,
) -> Joined:
    """Meet the other parties and the dealer, and set the session up. Closes `listener`.

    Errors: `PeerError`, which the others have been told; CryptenError if CrypTen is in use in this process.
    """
    from ...protocols.crypten.session import CryptenSession

    with ExitStack() as undo:
        if listener is not None:
            undo.callback(listener.close)
        session, channels = meet_parties(context, held.program, addresses, listener)
        if listener is not None:
            listener.close()
        undo.callback(lambda: [channel.close() for channel in channels.values()])
        known: list[Channel] = list(channels.values())
        try:
            seed = new_seed()
            to_dealer = join_dealer(context, held.program, session, dealer, seed)
            if to_dealer is not None:
                undo.callback(to_dealer.close)
                known.append(to_dealer)
            mesh = Mesh(context.rank, channels)
            undo.callback(mesh.close)
            party = Party(context.parties, mesh, held, seed, to_dealer, limits=context.limits)
            crypten = undo.enter_context(CryptenSession(mesh, context.name, party.deal))
            party.communicator = crypten.communicator
            party.set_up()
        except BlindformerError as error:
            _abort(known, error)
            raise
        return Joined(party, crypten, undo.pop_all())


def _abort(channels: list[Channel], error: BlindformerError) -> None:
    with suppress(BlindformerError):
        abort(channels, error)
