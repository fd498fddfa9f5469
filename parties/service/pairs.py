"""Seeds on their way through the dealer: a client leaves one, its session's server has it used, once.

The two connections have a process each, so the seed goes through the supervisor, which keeps it until then: bounded in
number and in time, and gone when it is handed out. A session is never seeded twice, used or not.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from ..session import SeedError
from .child import Control
from .control import ChildReport, Introduced, Keep, Take

LIMIT, LIMIT_EACH = 256, 64  # seeds kept, in all and of one certificate
SECONDS = 600.0
REMEMBERED = 4096  # sessions that had their seed

_AGAIN = "this session has had its client's seed already; start a new session"
_NONE = "no client of this session has left its seed, or it was used; start a new session"


class Pairs:
    """In the supervisor."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, tuple[str, str, str, float]] = OrderedDict()  # owner, program, seed, end
        self._had: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        """The answer to `Keep` and `Take`. Errors: ValueError if this peer's process may not say that."""
        seats = {Keep: ("client", "helper"), Take: ("server",)}
        if not isinstance(report, Keep | Take) or peer.role not in seats[type(report)]:
            raise ValueError("a report that has no place here")
        if (report.session, report.program) != (peer.session, peer.program):
            raise ValueError("a report of another session")
        self._expire()
        return self._keep(report, peer.owner) if isinstance(report, Keep) else self._take(report)

    def _keep(self, report: Keep, owner: str) -> Mapping[str, Any]:
        if report.session in self._had:
            return {"refused": _AGAIN}
        held = Counter(kept[0] for kept in self._kept.values())
        crowded = (
            owner if held[owner] >= LIMIT_EACH else held.most_common(1)[0][0] if len(self._kept) >= LIMIT else None
        )
        if crowded is not None:  # its oldest goes: a client whose session never comes pushes out its own
            del self._kept[next(session for session, kept in self._kept.items() if kept[0] == crowded)]
        self._had[report.session] = None
        if len(self._had) > REMEMBERED:
            self._had.popitem(last=False)
        self._kept[report.session] = (owner, report.program, report.seed, self._clock() + SECONDS)
        return {"kept": True}

    def _take(self, report: Take) -> Mapping[str, Any]:
        found = self._kept.pop(report.session, None)
        if found is None or found[1] != report.program:
            return {"refused": _NONE}
        return {"seed": found[2]}

    def _expire(self) -> None:
        now = self._clock()
        for session in [session for session, kept in self._kept.items() if kept[3] <= now]:
            del self._kept[session]


class AskedSeeds:
    """In a child: `session.Seeds`, kept by the supervisor."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def put(self, session: str, program: str, seed: bytes) -> None:
        self._said(self._control.ask(Keep(session=session, program=program, seed=seed.hex())), "kept")

    def take(self, session: str, program: str) -> bytes:
        return bytes.fromhex(self._said(self._control.ask(Take(session=session, program=program)), "seed"))

    @staticmethod
    def _said(answer: Mapping[str, Any], name: str) -> Any:
        if name not in answer:
            raise SeedError(str(answer.get("refused", _NONE)))
        return answer[name]
