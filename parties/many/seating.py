"""From the settings of a deployment (parties/config.py) to a roster, and to where each party listens."""

from __future__ import annotations

from ..certificates.issuing import ROLES
from ..config import Address, PartySection, Settings
from ..session.parties import Parties, PartiesError

MODEL, DATA = "model", "data"


def roster_of(settings: Settings) -> Parties:
    """The parties of [crypten.parties], in order. Errors: PartiesError."""
    seats = settings.crypten.parties
    names = tuple(seats)
    owners: dict[str, str] = {}
    for number, (name, seat) in enumerate(seats.items()):
        where = f"crypten.parties.{name}"
        if name in ROLES:
            raise PartiesError(f"{where}: {name} is a role of other protocols, with other certificates; choose another")
        if seat.address is None and number < len(seats) - 1:
            raise PartiesError(f"{where}: has no address, and the parties after it dial it; write address = ")
        if MODEL in seat.owns and number:
            raise PartiesError(f"{where}: owns the model, and is not the first; put it before {names[0]}")
        for item in seat.owns:
            if item in owners:
                raise PartiesError(f"{where}: owns {item}, which {owners[item]} owns; name one of them")
            owners[item] = name
    answering = [name for name, seat in seats.items() if seat.answers]
    if len(answering) > 1:
        raise PartiesError(f"crypten.parties: {' and '.join(answering)} get the answers; name one of them")
    owners.pop(MODEL, None)
    return Parties(names, recipient=(answering or [""])[0], data=owners.pop(DATA, ""), owners=owners)


def addresses_of(settings: Settings) -> dict[int, Address]:
    """Where each party is dialled, by rank, of those that are."""
    seats = enumerate(settings.crypten.parties.values())
    return {rank: seat.address for rank, seat in seats if seat.address is not None}


def listening(seat: PartySection) -> Address:
    """Where a party listens: as told, else where it is dialled."""
    found = seat.listen or seat.address
    assert found is not None
    return found
