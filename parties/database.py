"""Records that are on the disk before they count: in a file of SQLite, or in a Postgres database that servers share.

Each operation opens a connection of its own, so that a Database may be shared by threads, by processes, and across a
fork. A commit that was not confirmed is an error, whatever became of it: then nothing is used that it stands for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from ..protocols.errors import BlindformerError

PATIENCE = 30.0  # seconds for another process that writes, or for a database that is slow
CONNECT_SECONDS = 10
POSTGRES = "postgresql"
_FORMATS = Table("blindformer", MetaData(), Column("name", Text, primary_key=True), Column("format", Integer))


class Database:
    """The tables of one purpose, in one format.

    where    a file of SQLite, made when it is first used; or a URL, postgresql://user@host/database
    named    what they hold: where a database serves several purposes, each has its own format
    fail     makes the error of a line that says what is wrong and what to do
    prepare  called once, with a connection in a transaction that nobody shares

    Errors of all methods: those that `fail` makes.
    """

    def __init__(
        self,
        where: Path | str,
        tables: MetaData,
        named: str,
        format: int,
        fail: Callable[[str], BlindformerError],
        prepare: Callable[[Connection], None] = lambda db: None,
    ) -> None:
        self.file = where if isinstance(where, Path) else None
        self.tables, self.named, self.format, self.fail, self.prepare = tables, named, format, fail, prepare
        self._where, self._checked = where, False

    @cached_property
    def url(self) -> URL:
        return URL.create("sqlite", database=str(self.file)) if self.file else read_url(self._where, self.fail)

    @property
    def name(self) -> str:
        """For messages: no password is in it."""
        if self.file:
            return str(self.file)
        try:
            return make_url(str(self._where)).render_as_string(hide_password=True)
        except (ArgumentError, ValueError):
            return "server.database"

    @contextmanager
    def write(self, lock: str = "") -> Iterator[Connection]:
        """One transaction, on the disk when this ends without an error. `lock`: no other of this name runs beside it;
        of a file, none at all does."""
        with self.read() as db:
            db.execute(text("BEGIN IMMEDIATE" if self.file else "BEGIN"))
            if lock and not self.file:
                db.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": lock})
            yield db
            db.execute(text("COMMIT"))

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in no transaction."""
        try:
            self._own_file()
            with self._engine.connect() as db:
                if self.file:
                    # A journal that is deleted (the default) may come back after a power cut unless its folder is
                    # synced, and undo the last commit: a mask used twice. A truncated one cannot.
                    for setting in ("journal_mode = TRUNCATE", "synchronous = EXTRA", "foreign_keys = ON"):
                        db.exec_driver_sql(f"PRAGMA {setting}")
                if not self._checked:
                    self._check(db)
                yield db
        except (SQLAlchemyError, OSError) as error:
            raise self.fail(_explain(error)) from None

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that may say what to do on a conflict."""
        return sqlite.insert(table) if self.file else postgresql.insert(table)

    @cached_property
    def _engine(self) -> Engine:
        options: dict[str, Any] = {"timeout": PATIENCE}
        if not self.file:
            limit = f"{PATIENCE * 1000:.0f}"
            names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
            settings = [f"-c {name}={limit}" for name in names] + ["-c synchronous_commit=on"]
            options = {
                "connect_timeout": CONNECT_SECONDS,
                "tcp_user_timeout": limit,
                "options": " ".join(settings),
            }
        return create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=options)

    def _own_file(self) -> None:
        if self.file is None or self._checked:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        if os.name == "posix" and self.file.stat().st_mode & 0o077:
            raise self.fail(f"can be read by others; run: chmod 600 {self.file}")

    def _check(self, db: Connection) -> None:
        """Check the format, or make the tables, under a lock: no other process makes them or writes."""
        if not self.file:
            self._check_server(db)
        db.execute(text("BEGIN IMMEDIATE" if self.file else "BEGIN"))
        if not self.file:
            db.execute(text("SELECT pg_advisory_xact_lock(hashtext('blindformer'))"))
            _FORMATS.create(db, checkfirst=True)
        stored = self._format(db)
        if stored not in (0, self.format):
            raise self.fail(f"has format {stored}, this version reads {self.format}; use another folder or database")
        if not stored:
            self.tables.create_all(db)
            self._note_format(db)
        elif not self.file:
            db.execute(text(f"LOCK TABLE {', '.join(self.tables.tables)} IN EXCLUSIVE MODE"))
        self.prepare(db)
        db.execute(text("COMMIT"))
        self._checked = True

    def _check_server(self, db: Connection) -> None:
        """Require that Postgres confirms only what is on its disk."""
        for name in ("fsync", "full_page_writes"):
            if db.execute(text(f"SHOW {name}")).scalar() != "on":
                raise self.fail(f"may forget what it has confirmed: set {name} = on at that server")

    def _format(self, db: Connection) -> int:
        """0: there is nothing yet."""
        if self.file:
            return db.exec_driver_sql("PRAGMA user_version").scalar_one()
        return db.execute(select(_FORMATS.c.format).where(_FORMATS.c.name == self.named)).scalar() or 0

    def _note_format(self, db: Connection) -> None:
        if self.file:
            db.exec_driver_sql(f"PRAGMA user_version = {self.format}")
        else:
            noted = postgresql.insert(_FORMATS).values(name=self.named, format=self.format)
            db.execute(noted.on_conflict_do_nothing())


def read_url(value: object, fail: Callable[[str], Exception]) -> URL:
    """The URL of a Postgres database, its server's certificate to be checked unless it says otherwise or is local.

    Errors: those that `fail` makes, which repeat no password.
    """
    form = "postgresql://USER@HOST/DATABASE"
    try:
        url = make_url(str(value))
    except (ArgumentError, ValueError):
        raise fail(f"is no address of a database; write {form}") from None
    if url.drivername not in (POSTGRES, f"{POSTGRES}+psycopg") or not url.database:
        raise fail(f"is no address of a Postgres database; write {form}")
    if find_spec("psycopg") is None:
        raise fail("needs psycopg; run: pip install 'blindformer[scale]'")
    if url.host not in (None, "localhost", "127.0.0.1", "::1") and "sslmode" not in url.query:
        url = url.update_query_dict({"sslmode": "verify-full", "sslrootcert": "system"})
    return url.set(drivername=f"{POSTGRES}+psycopg")


def _explain(error: SQLAlchemyError | OSError) -> str:
    cause = getattr(error, "orig", None) or error
    reason = " ".join(str(getattr(cause, "strerror", None) or cause).split())
    if "full" in reason or "No space" in reason:
        return "the disk is full; free space, then go on: what is recorded stays good"
    if "locked" in reason or "lock timeout" in reason:
        return "another process holds it; see what uses it"
    if "malformed" in reason or "not a database" in reason:
        return "is damaged; move it away and make what it counted anew (never restore an old copy on both sides)"
    if "statement timeout" in reason or "Timeout" in type(cause).__name__ or "timeout expired" in reason:
        return f"does not answer in time; nothing was used (patience: {PATIENCE:.0f} seconds)"
    if type(cause).__module__.startswith("psycopg"):
        return f"cannot be reached ({reason[:160]}); see whether Postgres runs there and lets this user in"
    return f"cannot be used ({reason[:160]}); see whether the folder is there and may be written to"
