"""What a service may hold at once, and for how long. Nobody outside can make it hold more."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class ServiceLimits:
    """Counts, and times in seconds."""

    sessions: int = 32
    workers: int = field(default_factory=cores)
    """Queries computing at once."""
    queue: int = 64
    """Queries that may wait for a worker."""
    share: float = 0.15
    """Of the sessions and of the queue, what one certificate may hold: a certificate is one customer, and one that
    opens session after session (a bug is enough, it need not be malice) must leave room for the others."""
    idle: float = 600.0
    """A session may be silent so long between two queries."""
    query_seconds: float = 900.0
    """A query may hold a worker so long. The timeout bounds each silence, not their sum: without this, a peer that
    says its word just in time, a hundred rounds in a row, holds a worker for hours."""
    grace: float = 30.0
    """Running queries have so long to finish when the service stops."""

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

    @property
    def sessions_each(self) -> int:
        return max(1, math.ceil(self.share * self.sessions))

    @property
    def queue_each(self) -> int:
        return max(1, math.ceil(self.share * self.queue))
