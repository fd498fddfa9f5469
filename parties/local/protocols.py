"""Which protocols run a session of processes on this machine, and how: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ...models.artifacts import save
from ...models.artifacts.writing import text_length
from ...models.compile import Compiled
from ...protocols.errors import BlindformerError
from ..many.launcher import ManyLocal
from ..many.roster import Roster, RosterError, numbered
from ..reports.report import Report, beaver_report, ckks_local_report, each_in_words, many_report, requests_in_words
from .launcher import LocalAnswer, LocalParties

REFERENCE = "clear"  # in this process; hides nothing


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
    """`save(compiled, folder)` writes what `start(folder, roster, **options)` opens a session of; `report(roster)`
    makes reports of its queries.

    `texts(compiled)`: texts or images that fill one query. `costs(reports, "a text")`: in a line, what
    queries cost.
    `who`: who takes part, in words. `fixed`: how many parties it has, if that is not for the user to say. `insecure`:
    why it is, in one line.
    """

    start: Callable[..., LocalSession]
    report: Callable[[Roster], Callable[..., Report]]
    who: str = "{parties} parties and an offline dealer, semi-honest, 128 bits"
    save: Callable[[Compiled, Path], Any] = save
    texts: Callable[[Compiled], int] = lambda compiled: 1
    costs: Callable[[list[Report], str], str] = each_in_words
    check: Callable[[], None] = lambda: None
    fixed: int | None = None
    insecure: str = ""


def _beaver(folder: Path, roster: Roster, **options: Any) -> LocalParties:
    return LocalParties(folder, **options)


def _crypten(folder: Path, roster: Roster, *, first_party: bool = False, **options: Any) -> ManyLocal:
    return ManyLocal(folder, roster, first_party=first_party, **options)


def _encrypted(folder: Path, roster: Roster, **options: Any) -> LocalSession:
    from .encrypted import LocalEncrypted

    return LocalEncrypted(folder, **options)


def _save_encrypted(compiled: Compiled, folder: Path) -> None:
    from ...models.encrypted import circuit_for

    save(compiled, folder, circuits={text_length(compiled.program): circuit_for(compiled)})


def _texts_encrypted(compiled: Compiled) -> int:
    from ...models.encrypted import circuit_for

    circuit, _ = circuit_for(compiled)
    return circuit.packing.room


def _many(protocol: str, roster: Roster) -> Callable[..., Report]:
    return partial(many_report, roster=roster, protocol=protocol)


def _check_crypten() -> None:
    from ...protocols.crypten.versions import check_versions

    check_versions()


KINDS: dict[str, Kind] = {
    "beaver": Kind(
        _beaver,
        lambda roster: beaver_report,
        who="two parties and an offline dealer, semi-honest, 128 bits",
        fixed=2,
    ),
    "ckks": Kind(
        _encrypted,
        lambda roster: ckks_local_report,
        who="one server, which computes on ciphertexts   CKKS, 128 bits",
        save=_save_encrypted,
        texts=_texts_encrypted,
        costs=requests_in_words,
        fixed=2,
    ),
    "crypten": Kind(_crypten, partial(_many, "crypten"), check=_check_crypten),
    "crypten-insecure": Kind(
        partial(_crypten, first_party=True),
        partial(_many, "crypten-insecure"),
        check=_check_crypten,
        insecure="the model's owner makes all correlations, as CrypTen's default provider has it, so it can read the "
        "data; for comparison only",
    ),
}


def find_kind(protocol: str, parties: int = 2) -> Kind:
    """Errors: BlindformerError for an unknown name, a number of parties that it cannot have, a missing library."""
    if protocol not in KINDS:
        names = ", ".join(sorted([*KINDS, REFERENCE]))
        raise BlindformerError(f"protocol {protocol}: no session runs on it; choose one of {names}")
    kind = KINDS[protocol]
    if kind.fixed not in (None, parties):
        raise RosterError(f"{parties} parties: protocol {protocol} has {kind.fixed}; use protocol crypten")
    numbered(parties)
    kind.check()
    return kind
