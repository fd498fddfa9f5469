"""What a service counts: every metric is declared here once, and read by /metrics (metrics.py) from a snapshot."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """`label`: the name of its one label, empty for none."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str = ""


METRICS: dict[str, Metric] = {
    "connections": Metric("counter", "Connections by what became of them in the lobby and the handshake", "outcome"),
    "sessions_opened": Metric("counter", "Sessions opened, by the peer's role", "role"),
    "queries": Metric("counter", "Queries answered"),
    "busy": Metric("counter", "Times a peer was told to come back later, by what it wanted", "wanted"),
    "limited": Metric("counter", "Queries refused because a certificate has asked all that it may"),
    "errors": Metric("counter", "Connections that ended with an error, by its type", "kind"),
    "children_killed": Metric("counter", "Children ended by the supervisor or a signal, by reason", "reason"),
    "bytes": Metric("counter", "Payload of answered queries, by direction and phase", "direction"),
    "seconds": Metric("histogram", "Seconds of a query, by phase", "phase"),
    "lobby": Metric("gauge", "Connections that have not shown a TLS hello yet"),
    "handshakes": Metric("gauge", "Connections in the handshake"),
    "sessions": Metric("gauge", "Open sessions"),
    "running": Metric("gauge", "Queries that hold a worker"),
    "queued": Metric("gauge", "Queries that wait for a worker"),
    "correlations_left": Metric("gauge", "Correlations made ahead and not used yet"),
    "key_bytes": Metric("gauge", "What clients' evaluation keys may take on disk, of encrypted queries"),
    "seeds": Metric("gauge", "Clients' seeds that the dealer keeps for their servers"),
    "certificate_expires": Metric(
        "gauge", "When the first of its certificate, CA and list of revoked ones ends, seconds since 1970"
    ),
    "started": Metric("gauge", "When the service started, seconds since 1970"),
    "stopping": Metric("gauge", "1 while the service drains"),
}
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # seconds
LABELS_MOST = 50  # values of one label: a child may invent error kinds


@dataclass
class Histogram:
    """`counts[i]`: observations up to BUCKETS[i], the last of any size; not cumulative."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS, value)] += 1
        self.total += value


class Stats:
    """Numbers by metric and label value."""

    def __init__(self) -> None:
        self._numbers: dict[str, dict[str, float]] = {name: {} for name in METRICS}
        self._histograms: dict[str, dict[str, Histogram]] = {}

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        self._check(name, "counter")
        numbers = self._numbers[name]
        if label not in numbers and len(numbers) >= LABELS_MOST:
            label = "other"
        numbers[label] = numbers.get(label, 0) + amount

    def set(self, name: str, value: float) -> None:
        self._check(name, "gauge")
        self._numbers[name][""] = value

    def observe(self, name: str, value: float, label: str) -> None:
        self._check(name, "histogram")
        self._histograms.setdefault(name, {}).setdefault(label, Histogram()).observe(value)

    def value(self, name: str, label: str = "") -> float:
        return self._numbers[name].get(label, 0)

    def snapshot(self) -> dict[str, Any]:
        """Plain JSON: {metric: {label value: number or {counts, total}}}. Counters without a label begin at 0."""
        found: dict[str, Any] = {}
        for name, metric in METRICS.items():
            if metric.kind == "histogram":
                found[name] = {label: vars(h) for label, h in self._histograms.get(name, {}).items()}
            else:
                zero = {"": 0.0} if metric.kind == "counter" and not metric.label else {}
                found[name] = zero | self._numbers[name]
        return found

    @staticmethod
    def _check(name: str, kind: str) -> None:
        if METRICS[name].kind != kind:
            raise ValueError(f"{name} is a {METRICS[name].kind}, not a {kind}")
