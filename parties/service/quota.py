"""How many texts one certificate may ask in a period: counted over restarts, by all processes of a server together.

Enough answers give a copy of the model, and a client that deviates from the protocol learns more of the weights from
each (docs/threat-model.md): a limit bounds what one client can learn. Texts are counted before their answer is
computed: what is broken off counts. They are counted by the name in the certificate (its subject), so that a new key
does not start anew. Who is given certificates of several names has several counts: whoever signs them decides.

No more than `each` in any `period`. Counts are kept in slots, a few dozen a period, so room comes back a slot late. A
clock that is set back frees nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, delete, select

from ...protocols.errors import BlindformerError
from ..config import ServerSection
from ..database import Database
from ..session.compute_slots import LimitReached, span

FILE = "queries.sqlite"
SLOTS = 48
_FORMAT = 1
_TABLES = MetaData()
_ASKED = Table(
    "asked",
    _TABLES,
    Column("name", Text, primary_key=True),
    Column("at", Double, primary_key=True),
    Column("texts", Integer, nullable=False),
)


class QuotaError(BlindformerError):
    """Queries cannot be counted, so none are answered."""


class Quota:
    """`each`: texts of one name in `period` seconds, counted in `where`: a folder, or the Postgres database (URL) of
    all replicas. Made before a fork, used after it.

    Errors of all methods: `QuotaError`.
    """

    def __init__(self, where: Path | str, each: int, period: float, clock: Callable[[], float] = time.time) -> None:
        self.each, self.period = each, period
        self._slot, self._clock = period / SLOTS, clock
        place = where / FILE if isinstance(where, Path) else where
        self.database = Database(place, _TABLES, "queries", _FORMAT, self._fails)
        with self.database.read():
            pass

    def _fails(self, what: str) -> QuotaError:
        return QuotaError(f"{self.database.name}: {what}; without it no query is answered")

    def check(self, name: str, texts: int) -> None:
        """Errors: LimitReached if so many more are too many now."""
        with self.database.read() as db:
            self._room(db, name, texts)

    def spend(self, name: str, texts: int) -> None:
        """Count so many more; on the disk when this returns. Errors: LimitReached, and nothing is counted."""
        now = self._clock()
        one = self.database.insert(_ASKED).values(name=name, at=now // self._slot * self._slot, texts=texts)
        total = {"texts": _ASKED.c.texts + one.excluded.texts}
        with self.database.write(lock=f"queries of {name}") as db:
            self._room(db, name, texts)
            db.execute(delete(_ASKED).where(_ASKED.c.at <= now - self.period - self._slot))
            db.execute(one.on_conflict_do_update(index_elements=[_ASKED.c.name, _ASKED.c.at], set_=total))

    def _room(self, db: Connection, name: str, texts: int) -> None:
        now = self._clock()
        query = select(_ASKED.c.at, _ASKED.c.texts).where(_ASKED.c.name == name)
        rows = db.execute(query.where(_ASKED.c.at > now - self.period - self._slot).order_by(_ASKED.c.at)).all()
        over = sum(count for _, count in rows) + texts - self.each
        for at, count in rows:
            if over <= 0:
                return
            over, free = over - count, at + self._slot + self.period
            if over <= 0:
                raise LimitReached("server", self.each, self.period, max(1.0, free - now))
        if over > 0:
            raise QuotaError(f"server.queries_each = {self.each}: one request carries {texts} texts; raise it")


def quota_of(mine: ServerSection, texts: int) -> Quota | None:
    """The limit of a server whose requests carry `texts`; None if there is none. Errors: `QuotaError`."""
    if mine.queries_each is None:
        return None
    where = mine.database or mine.state
    if where is None:
        what = "server.queries_each: is counted over restarts, and no folder for that is given"
        raise QuotaError(f"{what}; set server.state, or say --state")
    made = Quota(where, mine.queries_each, mine.queries_period)
    if texts > made.each:
        raise QuotaError(f"server.queries_each = {made.each}: one request carries {texts} texts; raise it")
    return made


def quota_in_words(quota: Quota | None) -> str:
    """For the start of a service."""
    if quota is None:
        return "none: a certificate may ask as much as it likes (--queries-each)"
    return f"{quota.each} texts in {span(quota.period)} for each certificate's name, counted in {quota.database.name}"
