"""How the registry's protocols run a session of processes on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...models.compile import Compiled
from ...protocols.errors import BlindformerError
from ..registry import of_parties, protocols, reference, resolve, runs_here
from ..reports.report import Report
from ..session.parties import Parties, PartiesError, numbered
from .clear import ClearSession
from .launcher import LocalAnswer, LocalParties
from .members import ManyLocal
from .threads import ThreadParties

REFERENCE = reference()  # in this process; hides nothing


class LocalSession(Protocol):
    """Queries to parties on this machine: a context manager."""

    @property
    def open(self) -> bool: ...
    @property
    def setup_s(self) -> float: ...
    @property
    def setup_bytes(self) -> int: ...
    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer: ...
    def close(self) -> None: ...
    def __enter__(self) -> LocalSession: ...
    def __exit__(self, *exc: object) -> None: ...


@dataclass(frozen=True)
class Kind:
    """What registry.RunsHere names, imported."""

    start: Callable[..., LocalSession]
    report: Callable[..., Report]
    texts: Callable[[Compiled], int]
    costs: Callable[[list[Report], str], str]
    threads: Callable[..., LocalSession] | None


def find_kind(protocol: str, parties: int = 2) -> Kind:
    """Errors: BlindformerError for an unknown name, a number of parties that it cannot have, a missing library."""
    if protocol not in runs_here():
        raise BlindformerError(f"protocol {protocol}: no session runs on it; choose one of {', '.join(runs_here())}")
    entry = protocols()[protocol]
    assert entry.local is not None
    if entry.parties not in (None, parties):
        others = " or ".join(of_parties())
        raise PartiesError(f"{parties} parties: protocol {protocol} has {entry.parties}; use protocol {others}")
    numbered(parties)
    if entry.local.check:
        resolve(entry.local.check)()
    local = entry.local
    return Kind(
        start=resolve(local.start),
        report=resolve(local.report),
        texts=resolve(local.texts),
        costs=resolve(local.costs),
        threads=resolve(local.threads) if local.threads else None,
    )


# What the entries name.


def start_clear(compiled: Compiled, roster: Parties, **options: Any) -> ClearSession:
    return ClearSession(compiled)


def start_two(compiled: Compiled, roster: Parties, **options: Any) -> LocalParties:
    return LocalParties(compiled, **options)


def start_threads(compiled: Compiled, roster: Parties, *, threads: int = 1, **options: Any) -> ThreadParties:
    """INSECURE: all secrets lie in one process. `threads` are torch's, and the caller's own here."""
    return ThreadParties(compiled, **options)


def start_many(compiled: Compiled, roster: Parties, **options: Any) -> ManyLocal:
    return ManyLocal(compiled, roster, **options)


def start_first_party(compiled: Compiled, roster: Parties, **options: Any) -> ManyLocal:
    """INSECURE: the first party is the dealer, too."""
    return ManyLocal(compiled, roster, first_party=True, **options)


def start_encrypted(compiled: Compiled, roster: Parties, **options: Any) -> LocalSession:
    from .encrypted import LocalEncrypted

    return LocalEncrypted(compiled, **options)


def one_text(compiled: Compiled) -> int:
    return 1


def texts_encrypted(compiled: Compiled) -> int:
    from ...models.encrypted import circuit_for

    circuit, _ = circuit_for(compiled)
    return circuit.packing.room
