"""How the registry's protocols run a session of processes on this machine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...models.compile import Compiled
from ...protocols.errors import BlindformerError
from ..launch import LOCAL
from ..registry import ProtocolEntry, RunsHere, find, find_talking, of_parties, resolve, runs_here
from ..reports.report import AnsweredQuery, Report
from ..session.online import Answer
from ..session.parties import Parties, PartiesError, numbered
from .session import LocalSession

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation


@dataclass(frozen=True)
class LocalProtocol:
    """A protocol, among these parties."""

    entry: ProtocolEntry
    parties: Parties

    @property
    def _runs(self) -> RunsHere:
        assert self.entry.local is not None
        return self.entry.local

    @property
    def has_threads(self) -> bool:
        """Whether its parties can be threads of this process, for tests."""
        return bool(self._runs.threads)

    def open(self, compiled: Compiled, *, in_threads: bool = False, **options: Any) -> LocalSession:
        """`options`: threads, timeout, progress, and those of a protocol's own."""
        if self.entry.parties is None:
            options["parties"] = self.parties
        return resolve(self._runs.threads if in_threads else self._runs.start)(compiled, **options)

    def talk(self, folder: Path | str, told: Any = None, **options: Any) -> AbstractContextManager[Conversation]:
        """With a language model that compile_chat_folder wrote. `told`: of each pass. `options`: timeout, progress, and
        those of the protocol's own.

        Errors: BlindformerError.
        """
        find_talking(self.entry.name)
        if self.entry.parties is None:
            options["parties"] = self.parties
        if self.entry.served:
            options.setdefault("server", LOCAL)
        return resolve(self.entry.talks)(folder, told, **options)

    def compile_for(self, count: int, make: Callable[[int], Compiled]) -> Compiled:
        """What `make(rows)` compiles, for as many of `count` inputs a query as are taken at the price of one.

        Errors: those of `make`, and ProgramError, TooDeep where the protocol cannot run it.
        """
        compiled = make(1)
        fill = resolve(self._runs.texts)(compiled) if self._runs.texts and count > 1 else 1
        return compiled if min(count, fill) == 1 else make(min(count, fill))

    def report(self, compiled: Compiled, session: LocalSession, answer: Answer) -> Report:
        setup = {"setup_s": session.setup_s, "setup_bytes": session.setup_bytes, "parties": self.parties}
        query = AnsweredQuery(compiled.program, compiled.plan.name, answer.timings, answer.others, **setup)
        return resolve(self._runs.report)(query)

    def costs(self, reports: list[Report], what: str) -> str:
        """In a line: what queries of one `what`, such as "a text", cost."""
        return resolve(self._runs.costs)(reports, what)


def find_local(protocol: str, parties: Parties | int = 2) -> LocalProtocol:
    """Errors: BlindformerError for an unknown name, a number of parties that it cannot have, a missing library."""
    if protocol not in runs_here():
        raise BlindformerError(f"protocol {protocol}: no session runs on it; choose one of {', '.join(runs_here())}")
    found = find(protocol)
    count = parties.size if isinstance(parties, Parties) else parties
    if found.parties not in (None, count):
        others = " or ".join(of_parties())
        raise PartiesError(f"{count} parties: protocol {protocol} has {found.parties}; use protocol {others}")
    made = LocalProtocol(found, parties if isinstance(parties, Parties) else numbered(count))
    if found.local and found.local.check:
        resolve(found.local.check)()
    return made
