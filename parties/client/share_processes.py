"""Sessions that fill a preprocessing store beside the caller's, each in a process of this machine.

Threads of one process would share a core where the client computes much: without a dealer, or as its own. A process
gets its share and all settings on stdin, for a command line can be read by others, and logs how much it has stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from ..launch import LocalOptions
from ..launch.processes import LaunchError, Line, PartyProcesses

KEPT, DONE = "kept", "done"  # events: of the store at `place`, `number` queries' correlations; the whole share


class ShareProcesses(PartyProcesses):
    """Running until the end of the context. `shares`: one for each; `kept`: by process, of each of so many `stores` how
    many queries' correlations are kept. Errors: LaunchError."""

    less = "fewer sessions"

    def __init__(self, shares: Sequence[Mapping[str, Any]], stores: int) -> None:
        super().__init__()
        self.kept = [[0] * stores for _ in shares]
        self._by_role = {f"session {number}": kept for number, kept in enumerate(self.kept, 2)}
        try:
            for role, share in zip(self._by_role, shares, strict=True):
                self._start(role, ["precompute", *LocalOptions().words()])
                self._running[role].send(json.dumps(share))
        except BaseException:
            self.close(0)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def wait(self, on_news: Callable[[], None]) -> LaunchError | None:
        """Until all have ended; `on_news` is called whenever more is kept. Why one of them has not made its share."""
        with self._news:
            while not all(running.ended for running in self._running.values()):
                self._news.wait()
                on_news()
        failed = next((role for role in self._running if (role, DONE) not in self._said), None)
        return None if failed is None else self.cause(failed, "")

    def _hear(self, role: str, line: Line | None) -> None:
        if line is not None and line.get("event") == KEPT:
            self._by_role[role][line["place"]] = line["number"]
        super()._hear(role, line)
