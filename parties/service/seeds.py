"""The dealer's seeds between processes: a client leaves one, its server has it used, once (session/dealing.py).

The two connections have a process each, so the seed goes through the supervisor, which keeps it until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..session.dealing import MemorySeeds, SeedError
from .child import Control
from .control import ChildReport, Introduced, Keep, Take


class PassedSeeds(MemorySeeds):
    """In the supervisor."""

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        """The answer to `Keep` and `Take`. Errors: ValueError if this peer's process may not say that."""
        whose = {Keep: ("client", "helper"), Take: ("server",)}
        if not isinstance(report, Keep | Take) or peer.role not in whose[type(report)]:
            raise ValueError("a report that has no place here")
        if (report.session, report.program) != (peer.session, peer.program):
            raise ValueError("a report of another session")
        try:
            if isinstance(report, Take):
                return {"seed": self.take(report.session, report.program).hex()}
            self.put(report.session, report.program, bytes.fromhex(report.seed), peer.owner)
            return {"kept": True}
        except SeedError as error:
            return {"refused": str(error)}


class AskedSeeds:
    """In a child: `session.Seeds`, kept by the supervisor."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def put(self, session: str, program: str, seed: bytes) -> None:
        self._ask(Keep(session=session, program=program, seed=seed.hex()), "kept")

    def take(self, session: str, program: str) -> bytes:
        return bytes.fromhex(self._ask(Take(session=session, program=program), "seed"))

    def _ask(self, report: ChildReport, wanted: str) -> Any:
        answer = self._control.ask(report)
        if wanted not in answer:
            raise SeedError(str(answer["refused"]))
        return answer[wanted]
