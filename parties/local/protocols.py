"""How the registry's protocols run a session of processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ...models.artifacts import save
from ...models.artifacts.writing import text_length
from ...models.compile import Compiled
from ...protocols.errors import BlindformerError
from ..registry import of_parties, protocols, reference, resolve, runs_here, sessions
from ..reports.report import Report
from ..session.parties import Parties, PartiesError, numbered
from .launcher import LocalAnswer, LocalParties
from .members import ManyLocal

REFERENCE = reference()  # in this process; hides nothing


class PartySession(Protocol):
    """Queries to parties on this machine."""

    @property
    def open(self) -> bool: ...
    @property
    def setup_s(self) -> float: ...
    @property
    def setup_bytes(self) -> int: ...
    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer: ...
    def close(self) -> None: ...


class LocalSession(PartySession, Protocol):
    """Of processes: a context manager."""

    def __enter__(self) -> PartySession: ...
    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class Kind:
    """What registry.RunsHere names, imported."""

    start: Callable[..., LocalSession]
    report: Callable[..., Report]
    save: Callable[[Compiled, Path], Any]
    texts: Callable[[Compiled], int]
    costs: Callable[[list[Report], str], str]


def find_kind(protocol: str, parties: int = 2) -> Kind:
    """Errors: BlindformerError for an unknown name, a number of parties that it cannot have, a missing library."""
    if protocol not in sessions():
        raise BlindformerError(f"protocol {protocol}: no session runs on it; choose one of {', '.join(runs_here())}")
    entry = protocols()[protocol]
    assert entry.local is not None
    if entry.parties not in (None, parties):
        others = " or ".join(of_parties())
        raise PartiesError(f"{parties} parties: protocol {protocol} has {entry.parties}; use protocol {others}")
    numbered(parties)
    if entry.local.check:
        resolve(entry.local.check)()
    return Kind(**{field.name: resolve(getattr(entry.local, field.name)) for field in fields(Kind)})


# What the entries name.


def start_two(folder: Path, roster: Parties, **options: Any) -> LocalParties:
    return LocalParties(folder, **options)


def start_many(folder: Path, roster: Parties, **options: Any) -> ManyLocal:
    return ManyLocal(folder, roster, **options)


def start_first_party(folder: Path, roster: Parties, **options: Any) -> ManyLocal:
    """INSECURE: the first party is the dealer, too."""
    return ManyLocal(folder, roster, first_party=True, **options)


def start_encrypted(folder: Path, roster: Parties, **options: Any) -> LocalSession:
    from .encrypted import LocalEncrypted

    return LocalEncrypted(folder, **options)


def save_encrypted(compiled: Compiled, folder: Path) -> None:
    from ...models.encrypted import circuit_for

    save(compiled, folder, circuits={text_length(compiled.program): circuit_for(compiled)})


def one_text(compiled: Compiled) -> int:
    return 1


def texts_encrypted(compiled: Compiled) -> int:
    from ...models.encrypted import circuit_for

    circuit, _ = circuit_for(compiled)
    return circuit.packing.room
