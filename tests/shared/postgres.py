"""A Postgres of the tests' own, where Debian's package is: one for all tests of a process, a database for each."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

_STARTED = "database system is ready to accept connections"


def find_programs() -> Path | None:
    """The folder with initdb and postgres; None: it is not installed."""
    on_path = shutil.which("initdb")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(on_path).resolve().parent if on_path else installed[-1].parent if installed else None


class Postgres:
    """A server on a socket in a folder of its own."""

    def __init__(self, programs: Path) -> None:
        memory = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="pg", dir=memory if memory.is_dir() else None))
        self._programs, self._names = programs, itertools.count()
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to be root
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "-D", self.data, "-U", "tests", "-A", "trust", "--no-sync")
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def start(self) -> None:
        command = [self._programs / "postgres", "-D", self.data, "-k", str(self.folder), "-c", "listen_addresses="]
        self._process = subprocess.Popen(command, user=self._user, stderr=subprocess.PIPE, text=True, cwd="/")
        assert self._process.stderr is not None
        assert any(_STARTED in line for line in self._process.stderr)

    def kill(self) -> None:
        """At once, as a machine that fails would."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.communicate()

    def new(self) -> str:
        """The URL of a database that is new, and empty."""
        name = f"tests{next(self._names)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def copy(self, url: str) -> str:
        """A snapshot: the URL of a new database with what is in this one."""
        name = f"tests{next(self._names)}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {_name(url)}")
        return self.url(name)

    def restore(self, url: str, copy: str) -> None:
        self.run(f"DROP DATABASE {_name(url)}")
        self.run(f"CREATE DATABASE {_name(url)} TEMPLATE {_name(copy)}")

    def url(self, name: str) -> str:
        return f"postgresql://tests@/{name}?host={self.folder}"

    def run(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as db:
            db.execute(statement)  # pyright: ignore[reportArgumentType,reportCallIssue]

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *words: str) -> None:
        command = [self._programs / program, *words]
        subprocess.run(command, user=self._user, check=True, stdout=subprocess.DEVNULL, cwd="/")


def _name(url: str) -> str:
    return url.split("/")[3].partition("?")[0]
