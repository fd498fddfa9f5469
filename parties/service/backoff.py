"""How long to wait before a process that ended is started again."""

from __future__ import annotations

PAUSES = (0.2, 1.0, 5.0, 30.0)  # seconds


class Backoff:
    """The oftener it ended, the longer the pause, until `reset` says that it has done well."""

    def __init__(self) -> None:
        self._ends = 0

    def ended(self) -> float:
        """Count one more end; seconds to wait now."""
        self._ends += 1
        return PAUSES[min(self._ends, len(PAUSES)) - 1]

    def reset(self) -> None:
        self._ends = 0
