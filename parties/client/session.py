"""A session of parties on this machine, whatever their protocol: what it is asked, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

from torch import Tensor

from ..session.online import Answer


class LocalSession(ABC):
    """Open until `close`; a context manager. `setup_s`, `setup_bytes`: what it took before the first query."""

    open = False
    setup_s = 0.0
    setup_bytes = 0

    @abstractmethod
    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> Answer:
        """Run one query. `more`: another one follows, so its correlations may be made meanwhile."""

    @abstractmethod
    def close(self) -> None:
        """End what runs for this session. Safe to call twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
