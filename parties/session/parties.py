"""The parties of a session: their order, the owner of each input, the recipient of the answers. All hold the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ...models.lowering.client_graph import inputs_behind
from ...models.program.program import Program
from ...protocols.crypten.context import LEADER
from ...protocols.crypten.engine import FIRST_OWNER
from ...protocols.errors import BlindformerError
from ..certificates.issuing import ROLES
from ..config import Settings

DEALER = "dealer"
FEWEST, MOST = 2, 64
MODEL, DATA = "model", "data"  # what a party may own
NAMES = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")


class PartiesError(BlindformerError):
    """Parties that cannot form a session."""


@dataclass(frozen=True)
class Parties:
    """`names` in order of rank; the first owns the model. `owners`: a party by input name; `data` owns the other inputs
    (default: the second party). `recipient`: of the answers (default: the first data owner)."""

    names: tuple[str, ...]
    owners: Mapping[str, str] = field(default_factory=dict)
    recipient: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        if not FEWEST <= len(self.names) <= MOST:
            raise PartiesError(f"parties: {len(self.names)} are named, and a session takes {FEWEST} to {MOST}")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise PartiesError(f"parties: {twice[0]} is named twice; every party has a name and a rank of its own")
        if DEALER in self.names:
            raise PartiesError(f"parties: {DEALER} is the dealer's name, who must not be a party; choose another")
        known = ", ".join(self.names)
        roles = [("outputs", self.recipient), ("data", self.data)]
        for what, name in [*self.owners.items(), *roles]:
            if name and name not in self.names:
                raise PartiesError(f"{what}: {name} is no party; choose one of {known}")

    @property
    def size(self) -> int:
        return len(self.names)

    @property
    def recipient_rank(self) -> int:
        return self.rank(self.recipient) if self.recipient else self.asker

    @property
    def asker(self) -> int:
        """The party that starts queries: the first that owns data."""
        named = set(self.owners.values()) | ({self.data} if self.data else set())
        return min((self.rank(name) for name in named), default=FIRST_OWNER)

    def rank(self, name: str) -> int:
        """Errors: PartiesError."""
        if name not in self.names:
            raise PartiesError(f"{name}: is no party of this session; choose one of {', '.join(self.names)}")
        return self.names.index(name)

    def reads(self, rank: int) -> bool:
        """Whether a party owns inputs or gets answers: then it needs the client's part of any model."""
        known = {self.asker, self.recipient_rank, *(self.rank(name) for name in self.owners.values())}
        return rank in known

    def owns_data(self, program: Program) -> set[int]:
        """Ranks of the parties that have inputs of this program."""
        return set(self.sources(program).values())

    def input_rank(self, name: str) -> int:
        owner = self.owners.get(name) or self.data
        return self.rank(owner) if owner else FIRST_OWNER

    def sources(self, program: Program) -> dict[str, int]:
        """The rank of each value of a data owner. Errors: PartiesError for a value that needs two owners' inputs."""
        if program.parts:  # all of one owner (check_conversation)
            return {name: rank for part in program.parts.values() for name, rank in self.sources(part).items()}
        unknown = [name for name in self.owners if name not in program.inputs]
        if unknown:
            raise PartiesError(f"{unknown[0]}: is no input of this model; it takes {', '.join(program.inputs)}")
        owners = {}
        for name, needed in inputs_behind(program).items():
            ranks = {self.input_rank(item) for item in needed} or {self.asker}
            if len(ranks) > 1:
                both = " and ".join(self.names[rank] for rank in sorted(ranks))
                raise PartiesError(
                    f"{', '.join(sorted(needed))}: {both} cannot own them apart, because the model combines them "
                    "first; give them to one party"
                )
            owners[name] = ranks.pop()
        return owners

    def check_conversation(self, program: Program) -> None:
        """In a conversation one party owns all data and gets the answers. Errors: PartiesError."""
        if program.parts and self.owns_data(program) | {self.recipient_rank} != {self.asker}:
            raise PartiesError("parties: one party talks, so it owns all data and gets the answers; name one for both")

    def hash(self) -> str:
        """The hash that the hellos compare, hex."""
        shown = {**asdict(self), "owners": dict(self.owners), "recipient": self.recipient_rank}
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()


def parties_of(settings: Settings) -> Parties:
    """The parties of [crypten.parties], in order. Errors: PartiesError."""
    sections = settings.crypten.parties
    names = tuple(sections)
    owners: dict[str, str] = {}
    for number, (name, section) in enumerate(sections.items()):
        where = f"crypten.parties.{name}"
        if name in ROLES:
            raise PartiesError(f"{where}: {name} is a role of other protocols, with other certificates; choose another")
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


def numbered(count: int) -> Parties:
    """`count` parties with default names. Errors: PartiesError."""
    return Parties(tuple([*NAMES, *(f"party{i}" for i in range(len(NAMES), count))][: max(count, 0)]))


__all__ = ["DEALER", "LEADER", "NAMES", "Parties", "PartiesError", "numbered", "parties_of"]
