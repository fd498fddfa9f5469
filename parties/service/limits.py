"""What a service may hold at once, and for how long. Nobody outside can make it hold more."""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field

from ...cores import cores
from ..config import ServiceSection


class ServiceLimits(ServiceSection):
    """The settings of a service, and bounds that are no settings. Counts, and times in seconds.

    One certificate has a `share`, as it is one customer: one that opens session after session (a bug is enough, it need
    not be malice) must leave room for the others. `query_seconds` bounds the sum of a query's silences, each of which
    the timeout bounds: else a peer that says its word just in time, a hundred rounds in a row, holds a worker for
    hours.
    """

    workers: int = Field(default_factory=cores)

    pending: int = 256
    """Connections whose peer has not shown yet that it speaks TLS: a socket each."""
    pending_seconds: float = 10.0
    handshakes: int = 6
    """Children in the handshake: 4 MB each, measured; 6 MB when they have a session."""
    handshake_seconds: float = 20.0
    """From the fork to the end of the hello."""
    pressed_seconds: float = 5.0
    """The same, while others wait for their turn."""
    probes: int = 2
    """Measurements (`blindformer doctor`) at once, and for so long:"""
    probe_seconds: float = 70.0

    @classmethod
    def of(cls, mine: ServiceSection, **bounds: Any) -> ServiceLimits:
        """`bounds`: over the defaults of those that are no settings."""
        given = {name: getattr(mine, name) for name in ServiceSection.model_fields}
        return cls(**{name: value for name, value in given.items() if value is not None}, **bounds)

    @property
    def sessions_each(self) -> int:
        return max(1, math.ceil(self.share * self.sessions))

    @property
    def queue_each(self) -> int:
        return max(1, math.ceil(self.share * self.queue))
