"""Which correlations both parties have. The client proposes its least number; the server takes it, or names its own.

    client -> server   session and number
    server -> client   taken: marked as used at the server; now the client marks it
                    or missing: the server's least ready number from there on, which the client proposes next

If the client dies between the two marks, the number is lost to both, for the server never takes it twice. A client
whose folder is older than it should be proposes numbers that are used at the server; a server whose folder is older is
never asked for numbers that are used at the client. So one current ledger is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .ledger import Entry
from .spool import Spool

Number = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


class Ref(BaseModel):
    """One query's correlations, by the session that made them and their number in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", strict=True)]
    number: Number


@dataclass(frozen=True)
class Missing:
    """The server has not this number. `known`: it knows the session, and `next` is its least ready number from there
    on (None: it has no more of it)."""

    known: bool
    next: int | None


def answer_proposal(spool: Spool, ref: Ref, program: str, weights: str, client: str) -> Entry | Missing:
    """At the server: mark what the client proposes as used, if it is ready and was made with this client.

    Errors: `SpoolError`, `CorrelationError`.
    """
    if spool.ledger.find(ref.session) != (program, weights, client):
        return Missing(False, None)
    entry = spool.mark_used(ref.session, ref.number)
    return entry or Missing(True, spool.ledger.next_ready(ref.session, ref.number + 1))


class Proposals:
    """At the client: what to propose next. `unknown` sessions are left alone: another server may have them."""

    def __init__(self, spool: Spool, program: str, weights: str) -> None:
        self.spool, self.program, self.weights = spool, program, weights
        self._unknown: set[str] = set()
        self._least: dict[str, int] = {}  # by session: the server has nothing below

    def next(self, after: Ref | None = None) -> Ref | None:
        """The least ready number of the oldest session that has one; `after`: leave out what comes before it."""
        for session in self.spool.ledger.sessions(self.program, self.weights):
            if session in self._unknown:
                continue
            least = self._least.get(session, 0)
            if after is not None and after.session == session:
                least = max(least, after.number + 1)
            number = self.spool.ledger.next_ready(session, least)
            if number is not None:
                return Ref(session=session, number=number)
        return None

    def learn(self, ref: Ref, missing: Missing) -> None:
        """The server has not what was proposed, and never will."""
        if missing.known:
            self.spool.ledger.doubt(ref.session, ref.number, missing.next)
        if missing.next is None:
            self._unknown.add(ref.session)
        else:
            self._least[ref.session] = missing.next
