"""Alerts and dashboard: their expressions can be parsed, and name metrics and labels that services export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import promql_parser
import pytest
from blindformer.parties.service.metrics import METRICS, Metrics
from blindformer.tests.deploy.files import DEPLOY, documents, settings
from prometheus_client import Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

MONITORING = DEPLOY / "monitoring"
SCRAPED = {"job", "instance"}  # labels that Prometheus gives


def rules() -> dict[str, dict[str, Any]]:
    (alerts,) = documents(MONITORING / "alerts.yaml")
    return {rule["alert"]: rule for group in alerts["groups"] for rule in group["rules"]}


def panels() -> dict[str, dict[str, Any]]:
    return {panel["title"]: panel for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]}


def expressions() -> list[str]:
    shown = [target["expr"] for panel in panels().values() for target in panel["targets"]]
    return [*(rule["expr"] for rule in rules().values()), *shown]


@cache
def exported() -> dict[str, set[str]]:
    """The labels of each series, of a service that has counted everything once."""
    metrics = Metrics()
    for name, metric in METRICS.items():
        if metric.kind is Gauge:
            metrics.set(name, 1)
        elif metric.kind is Histogram:
            metrics.observe(name, 1.0, "one")
        else:
            metrics.add(name, label="one")
    samples = [sample for family in text_string_to_metric_families(metrics.text()) for sample in family.samples]
    return {"up": set(), **{sample.name: set(sample.labels) for sample in samples}}


def selectors(expression: str) -> Iterator[Any]:
    nodes: list[Any] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            nodes.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "5m")), visit)
    yield from nodes


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_is_exported(expression):
    selected = list(selectors(expression))
    assert selected
    for selector in selected:
        assert selector.name in exported()
        named = {matcher.name for matcher in selector.matchers.matchers}
        assert named <= SCRAPED | exported()[selector.name]
    grouped = {label for some in re.findall(r"by \(([^)]*)\)", expression) for label in some.split(", ")}
    assert grouped <= SCRAPED.union(*(exported()[selector.name] for selector in selected))


def test_every_metric_of_the_code_is_on_the_dashboard():
    shown = {
        selector.name for panel in panels().values() for t in panel["targets"] for selector in selectors(t["expr"])
    }
    assert {name for name in METRICS if not any(s.startswith(f"blindformer_{name}") for s in shown)} == set()


def test_legends_and_summaries_name_labels_of_their_series():
    texts = [(t["expr"], t["legendFormat"], r"{{(\w+)}}") for panel in panels().values() for t in panel["targets"]]
    texts += [(rule["expr"], rule["annotations"]["summary"], r"\$labels\.(\w+)") for rule in rules().values()]
    for expression, text, form in texts:
        labels = SCRAPED.union(*(exported()[selector.name] for selector in selectors(expression)))
        assert set(re.findall(form, text)) <= labels, text


def test_prometheus_asks_services_where_they_answer():
    (config,) = documents(MONITORING / "prometheus.yml")
    (job,) = config["scrape_configs"]
    targets = [target for some in job["static_configs"] for target in some["targets"]]
    assert targets == [f"{role}:{getattr(settings(), role).metrics.port}" for role in ("server", "dealer", "gateway")]
    assert {f'up{{job="{job["job_name"]}"}} == 0'} <= {rule["expr"] for rule in rules().values()}
