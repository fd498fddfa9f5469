"""What a service counts: every metric is declared here once."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase

M = TypeVar("M", bound=MetricWrapperBase)


class Metric(NamedTuple):
    """`label`: the name of its one label, empty for none."""

    kind: type[MetricWrapperBase]
    help: str
    label: str = ""


METRICS: dict[str, Metric] = {
    "connections": Metric(Counter, "Connections by what became of them in the lobby and the handshake", "outcome"),
    "sessions_opened": Metric(Counter, "Sessions opened, by the peer's role", "role"),
    "queries": Metric(Counter, "Queries answered"),
    "busy": Metric(Counter, "Times a peer was asked to retry later, by what it wanted", "wanted"),
    "limited": Metric(Counter, "Queries refused because a certificate has asked all that it may"),
    "errors": Metric(Counter, "Connections that ended with an error, by its type", "kind"),
    "children_killed": Metric(Counter, "Children ended by the supervisor or a signal, by reason", "reason"),
    "bytes": Metric(Counter, "Payload of answered queries, by direction and phase", "direction"),
    "seconds": Metric(Histogram, "Seconds of a query, by phase", "phase"),
    "lobby": Metric(Gauge, "Connections that have not shown a TLS hello yet"),
    "handshakes": Metric(Gauge, "Connections in the handshake"),
    "sessions": Metric(Gauge, "Open sessions"),
    "running": Metric(Gauge, "Queries that hold a worker"),
    "queued": Metric(Gauge, "Queries that wait for a worker"),
    "correlations_left": Metric(Gauge, "Preprocessed correlations, not used yet"),
    "key_bytes": Metric(Gauge, "What clients' evaluation keys may take on disk, of encrypted queries"),
    "seeds": Metric(Gauge, "Clients' seeds that the dealer keeps for their servers"),
    "certificate_expires": Metric(
        Gauge, "When the first of its certificate, CA and list of revoked ones ends, seconds since 1970"
    ),
    "replicas": Metric(Gauge, "Replicas that are ready, behind this address"),
    "started": Metric(Gauge, "When the service started, seconds since 1970"),
    "stopping": Metric(Gauge, "1 while the service drains"),
}
BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # seconds
LABELS_MOST = 50  # values of one label: a child may invent error kinds

disable_created_metrics()


class Metrics:
    """Numbers by metric and label value. A gauge is shown from its first value on: what a service lacks is not 0."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._labels: dict[str, set[str]] = {name: set() for name in METRICS}
        self._metrics = {name: self._make(name, metric) for name, metric in METRICS.items()}

    def add(self, name: str, amount: float = 1, label: str = "") -> None:
        self._find(name, Counter, label).inc(amount)

    def set(self, name: str, value: float) -> None:
        gauge = self._find(name, Gauge)
        if not self._labels[name]:
            self._labels[name].add("")
            self._registry.register(gauge)
        gauge.set(value)

    def observe(self, name: str, value: float, label: str) -> None:
        self._find(name, Histogram, label).observe(value)

    def text(self) -> str:
        """As Prometheus reads it."""
        return generate_latest(self._registry).decode()

    def _make(self, name: str, metric: Metric) -> MetricWrapperBase:
        name, labels = f"blindformer_{name}", [metric.label] if metric.label else []
        if metric.kind is Histogram:
            return Histogram(name, metric.help, labels, buckets=BUCKETS, registry=self._registry)
        return metric.kind(name, metric.help, labels, registry=None if metric.kind is Gauge else self._registry)

    def _find(self, name: str, kind: type[M], label: str = "") -> M:
        metric, labels = self._metrics[name], self._labels[name]
        if not isinstance(metric, kind):
            raise ValueError(f"{name} is a {METRICS[name].kind.__name__}, not a {kind.__name__}")
        if not METRICS[name].label:
            return metric
        if label not in labels and len(labels) >= LABELS_MOST:
            label = "other"
        labels.add(label)
        return metric.labels(label)
