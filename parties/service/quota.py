"""What a server remembers of a certificate's name: how many texts it asks in a period, and whether it has deviated.

Texts are counted over restarts, by all processes of a server together.

Enough answers give a copy of the model, and a client that deviates from the protocol learns more of the weights from
each (docs/threat-model.md): a limit bounds what one client can learn. Texts are counted before their answer is
computed: what is broken off counts. They are counted by the name in the certificate (its subject), so that a new key
does not start anew. Who is given certificates of several names has several counts: whoever signs them decides.

No more than `each` in any `period`. Counts are kept in slots, a few dozen a period, so room comes back a slot late. A
clock that is set while the machine runs frees nothing: it is read once, and seconds since the machine's start are added
from then on. The clock of a machine that was started anew is believed, but never that it is earlier. A database that
servers share is asked for its clock, which is believed in the same way.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Column, Connection, Double, Integer, MetaData, Table, Text, delete, extract, func, select

from ...protocols.errors import BlindformerError, PeerRefused
from ..config import ServerSection, Settings
from ..database import Database
from ..session.messages import LimitReached, span

FILE, DEVIATIONS = "queries.sqlite", "deviations.sqlite"
SLOTS = 48
_FORMAT = 2
_TABLES = MetaData()
_ASKED = Table(
    "asked",
    _TABLES,
    Column("name", Text, primary_key=True),
    Column("at", Double, primary_key=True),
    Column("texts", Integer, nullable=False),
)
_STARTS = Table(
    "starts",
    _TABLES,
    Column("boot", Text, primary_key=True),  # of a machine
    Column("uptime", Double, nullable=False),  # seconds, when the clock was read
    Column("at", Double, nullable=False),  # what it said
)
_DEVIATIONS = MetaData()
_DEVIATED = Table(
    "deviated", _DEVIATIONS, Column("name", Text, primary_key=True), Column("at", Double, nullable=False)
)  # seconds since 1970
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_THIS_PROCESS = f"process {secrets.token_hex(16)}"  # where a system does not name its starts


class QuotaError(BlindformerError):
    """Queries cannot be counted, so none are answered."""


class Quota:
    """`each`: texts of one name in `period` seconds, counted in `where`: a folder, or the Postgres database (URL) of
    several servers. Made before a fork, used after it.

    Errors of all methods: `QuotaError`.
    """

    def __init__(
        self, where: Path | str, each: int, period: float, clock: Callable[[Connection], float] | None = None
    ) -> None:
        self.each, self.period = each, period
        self._slot = period / SLOTS
        self._clock = clock or (_since_start if isinstance(where, Path) else _of_database)
        place = where / FILE if isinstance(where, Path) else where
        self.database = Database(place, _TABLES, "queries", _FORMAT, self._fails, _note_start)
        with self.database.read():
            pass

    def _fails(self, what: str) -> QuotaError:
        return QuotaError(f"{self.database.name}: {what}; without it no query is answered")

    def check(self, name: str, texts: int, each: int | None = None) -> None:
        """`each`: this name's own limit. Errors: LimitReached if so many more are too many now."""
        with self.database.read() as db:
            self._room(db, name, texts, self._clock(db), each or self.each)

    def spend(self, name: str, texts: int) -> None:
        """Count so many more; on the disk when this returns. Errors: LimitReached, and nothing is counted."""
        self._add(name, texts, self.each)

    def count(self, name: str, texts: int) -> None:
        """The same of what has been answered already, whatever the limit."""
        self._add(name, texts, None)

    def _add(self, name: str, texts: int, each: int | None) -> None:
        with self.database.write(lock=f"queries of {name}") as db:
            now = self._clock(db)
            one = self.database.insert(_ASKED).values(name=name, at=now // self._slot * self._slot, texts=texts)
            total = {"texts": _ASKED.c.texts + one.excluded.texts}
            if each is not None:
                self._room(db, name, texts, now, each)
            db.execute(delete(_ASKED).where(_ASKED.c.at <= now - self.period - self._slot))
            db.execute(one.on_conflict_do_update(index_elements=[_ASKED.c.name, _ASKED.c.at], set_=total))

    def _room(self, db: Connection, name: str, texts: int, now: float, each: int) -> None:
        query = select(_ASKED.c.at, _ASKED.c.texts).where(_ASKED.c.name == name)
        rows = db.execute(query.where(_ASKED.c.at > now - self.period - self._slot).order_by(_ASKED.c.at)).all()
        over = sum(count for _, count in rows) + texts - each
        for at, count in rows:
            if over <= 0:
                return
            over, free = over - count, at + self._slot + self.period
            if over <= 0:
                raise LimitReached("server", each, self.period, max(1.0, free - now))
        if over > 0:
            raise QuotaError(f"server.queries_each = {each}: one request carries {texts} texts or images; raise it")


def uptime() -> tuple[str, float]:
    """The name of this machine's last start, and the seconds since then: no clock that is set changes them."""
    try:
        return _BOOT_ID.read_text().strip(), time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return _THIS_PROCESS, time.monotonic()


def _note_start(db: Connection) -> None:
    """Once for each start of the machine: what its clock says, or the latest time that is on record."""
    boot, seconds = uptime()
    if db.dialect.name == "sqlite" and db.execute(select(_STARTS).where(_STARTS.c.boot == boot)).first() is None:
        at = max(time.time(), _latest(db))
        db.execute(delete(_STARTS))
        db.execute(_STARTS.insert().values(boot=boot, uptime=seconds, at=at))


def _since_start(db: Connection) -> float:
    boot, seconds = uptime()
    query = select(_STARTS).where(_STARTS.c.boot == boot)
    if (read := db.execute(query).first()) is None:  # where starts have no names: another process's is on record
        _note_start(db)
        read = db.execute(query).one()
    return read.at + max(0.0, seconds - read.uptime)


def _of_database(db: Connection) -> float:
    return max(float(db.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one()), _latest(db))


def _latest(db: Connection) -> float:
    """The latest time that counts were made at, or that the clock was read."""
    return max(db.execute(select(func.max(table.c.at))).scalar() or 0.0 for table in (_ASKED, _STARTS))


def quota_of(mine: ServerSection, texts: int) -> Quota | None:
    """The limit of a server whose requests carry `texts`; None if there is none. Errors: `QuotaError`."""
    if mine.queries_each is None:
        return None
    if (where := mine.database or mine.state) is None:
        what = "server.queries_each: is counted over restarts, and no folder for that is given"
        raise QuotaError(f"{what}; set server.state, or say --state")
    quota = Quota(where, mine.queries_each, mine.queries_period)
    if texts > quota.each:
        raise QuotaError(f"server.queries_each = {quota.each}: one request carries {texts} texts or images; raise it")
    return quota


def quota_in_words(quota: Quota | None) -> str:
    """For the start of a service."""
    if quota is None:
        return "none: a certificate may ask as much as it likes (--queries-each)"
    each = f"{quota.each} texts, images or tokens in {span(quota.period)}"
    return f"{each} for each certificate's name, counted in {quota.database.name}"


class DeviationsError(BlindformerError):
    """Who has deviated cannot be read or noted, so nobody is served."""


class Deviations:
    """Who has deviated from the protocol, as an audit has shown (session/audits.py): no certificate of that name is
    served again. Kept in `where`, as of `Quota`.

    An audit finds one changed message with a probability below one. What deters is that it counts from then on: over
    restarts, and by all processes of a server together.

    Errors of all methods: `DeviationsError`.
    """

    def __init__(self, where: Path | str) -> None:
        place = where / DEVIATIONS if isinstance(where, Path) else where
        self.database = Database(place, _DEVIATIONS, "deviations", 1, self._fails)
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
    if (where := settings.server.database or settings.server.state) is None:
        what = "session.audits: who is found deviating is not served again, and no folder is given to note that in"
        raise DeviationsError(f"{what}; set server.state, or say --state")
    return Deviations(where)
