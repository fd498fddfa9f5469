"""What came of a query, and what it took."""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from typing import Any

import psutil

from ...protocols.channel import Meter


@dataclass
class Timings:
    """Seconds and traffic of one query at one party. `online` and `offline` are bytes sent and received.

    `offline_s`: how long the query waited for its correlations; next to nothing where they were made ahead (`ahead`, at
    the client), and then nothing of them travelled in the query. `sent_head`: the first bytes that left for the server,
    at a client of one, in base64.
    """

    offline_s: float = 0.0
    online_s: float = 0.0
    rounds: int = 0
    online: Meter = field(default_factory=Meter)
    offline_bytes: int = 0
    peak_rss_mb: float = 0.0
    ahead: bool = False
    sent_head: str = ""


@dataclass
class Answer:
    """A query's answer at one party: the outputs by name, its timings, and what others say of themselves.

    Outputs are ring integers (None at a party that learns nothing), or of a session that decodes them float32.
    """

    outputs: dict[str, Any]
    timings: Timings
    others: dict[str, float] = field(default_factory=dict)


def peak_rss_mb() -> float:
    """The most memory this process ever held, MB."""
    try:  # Linux: getrusage would count what the parent process held before exec
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20
