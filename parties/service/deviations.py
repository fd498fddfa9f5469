"""Who has deviated from the protocol, as an audit has shown (session/audits.py): no certificate of that name is served
again.

An audit finds one changed message with a probability below one. What deters is that it counts from then on: over
restarts, and by all processes of a server together. As with quota.py, names in certificates count, so that a new key
does not start anew; who signs certificates decides whether somebody comes back under another name.
"""

from __future__ import annotations

import time
from pathlib import Path

from sqlalchemy import Column, Double, MetaData, Table, Text, select

from ...protocols.errors import BlindformerError, PeerRefused
from ..config import Settings
from ..database import Database

FILE = "deviations.sqlite"
_FORMAT = 1
_TABLES = MetaData()
_DEVIATED = Table(
    "deviated", _TABLES, Column("name", Text, primary_key=True), Column("at", Double, nullable=False)
)  # seconds since 1970


class DeviationsError(BlindformerError):
    """Who has deviated cannot be read or noted, so nobody is served."""


class Deviations:
    """Kept in `where`: a folder, or the Postgres database (URL) of several servers. Made before a fork, used after it.

    Errors of all methods: `DeviationsError`.
    """

    def __init__(self, where: Path | str) -> None:
        place = where / FILE if isinstance(where, Path) else where
        self.database = Database(place, _TABLES, "deviations", _FORMAT, self._fails)
        with self.database.read():
            pass

    def _fails(self, what: str) -> DeviationsError:
        return DeviationsError(f"{self.database.name}: {what}; without it no client is served")

    def note(self, name: str) -> None:
        """On the disk when this returns."""
        with self.database.write() as db:
            insert = self.database.insert(_DEVIATED).values(name=name, at=time.time())
            db.execute(insert.on_conflict_do_nothing())

    def check(self, name: str) -> None:
        """Errors: PeerRefused for a client that has deviated."""
        with self.database.read() as db:
            at = db.execute(select(_DEVIATED.c.at).where(_DEVIATED.c.name == name)).scalar()
        if at is not None:
            day = time.strftime("%Y-%m-%d", time.gmtime(at))
            what = f"has deviated from the protocol, as an audit showed on {day}, and is not served any more"
            raise PeerRefused("client", what, "find out why; a certificate of another name is served")


def deviations_of(settings: Settings) -> Deviations | None:
    """None for a server without audits. Errors: `DeviationsError`."""
    if not settings.session.audits:
        return None
    where = settings.server.database or settings.server.state
    if where is None:
        what = "session.audits: who is found deviating is not served again, and no folder is given to note that in"
        raise DeviationsError(f"{what}; set server.state, or say --state")
    return Deviations(where)
