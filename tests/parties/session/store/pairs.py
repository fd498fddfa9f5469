"""Both parties' stores, and keys that tell where they come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blindformer.parties.session.preprocessing_store import PreprocessingStore

PROGRAM, WEIGHTS, SESSION, CLIENT = "ab" * 32, "cd" * 16, "0f" * 16, "ef" * 32


def key_of(side: str, session: str, number: int) -> bytes:
    return hashlib.sha256(f"{side} {session} {number}".encode()).digest()


def content(session: str, number: int) -> list[bytes]:
    """What the dealer sent, in frames."""
    return [b"corrections ", f"{session} {number}".encode()]


def add_both(server: PreprocessingStore, client: PreprocessingStore, number: int, session: str = SESSION) -> None:
    server.add(session, number, key_of("server", session, number), content(session, number))
    client.add(session, number, key_of("client", session, number))


def make_pair(
    root: Path, count: int, session: str = SESSION, database: str | None = None
) -> tuple[PreprocessingStore, PreprocessingStore]:
    """(server's store, client's store) with `count` queries made ahead."""
    server, client = PreprocessingStore(root / "server", database=database), PreprocessingStore(root / "client")
    server.begin(session, PROGRAM, WEIGHTS, CLIENT)
    client.begin(session, PROGRAM, WEIGHTS)
    for number in range(count):
        add_both(server, client, number, session)
    return server, client
