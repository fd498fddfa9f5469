"""From the settings of a deployment (parties/config.py) to its N parties, and to where each of them listens."""

from __future__ import annotations

from ..certificates.issuing import ROLES
from ..config import Address, PartySection, Settings
from ..session.parties import Parties, PartiesError

MODEL, DATA = "model", "data"


def parties_of(settings: Settings) -> Parties:
    """The parties of [crypten.parties], in order. Errors: PartiesError."""
    sections = settings.crypten.parties
    names = tuple(sections)
    owners: dict[str, str] = {}
    for number, (name, section) in enumerate(sections.items()):
        where = f"crypten.parties.{name}"
        if name in ROLES:
            raise PartiesError(f"{where}: {name} is a role of other protocols, with other certificates; choose another")
        if section.address is None and number < len(sections) - 1:
            raise PartiesError(f"{where}: has no address, and the parties after it dial it; write address = ")
        if MODEL in section.owns and number:
            raise PartiesError(f"{where}: owns the model, and is not the first; put it before {names[0]}")
        for item in section.owns:
            if item in owners:
                raise PartiesError(f"{where}: owns {item}, which {owners[item]} owns; name one of them")
            owners[item] = name
    answering = [name for name, section in sections.items() if section.answers]
    if len(answering) > 1:
        raise PartiesError(f"crypten.parties: {' and '.join(answering)} get the answers; name one of them")
    owners.pop(MODEL, None)
    return Parties(names, recipient=(answering or [""])[0], data=owners.pop(DATA, ""), owners=owners)


def addresses_of(settings: Settings) -> dict[int, Address]:
    """Where each party is dialled, by rank, of those that are."""
    sections = enumerate(settings.crypten.parties.values())
    return {rank: section.address for rank, section in sections if section.address is not None}


def listening(section: PartySection) -> Address:
    """Where a party listens: as told, else where it is dialled."""
    found = section.listen or section.address
    assert found is not None
    return found
