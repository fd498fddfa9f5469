"""Bytes and rounds of one private text, by plan and length: exact, and the same on every machine. Nothing is sent.

    python -m bench.costs --format json

README.md explains each figure.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from blindformer.models.compile import compile
from blindformer.models.loading.load import load
from blindformer.models.program.pricing import NETWORKS, price
from blindformer.models.weight_owners import PRIVATE, PUBLIC
from blindformer.parties.reports.estimate import price_of_pass
from rich.table import Table

from .harness import PLANS, Report, Say, carry_out, columns, megabytes, parser
from .latency import OUTPUT
from .workloads import build

LENGTHS = (32, 64, 128, 256)


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    return {"model": "minilm", "rows": [row for length in chosen.lengths for row in _rows(length, say)]}


def _rows(length: int, say: Say) -> Iterator[Report]:
    """MiniLM with public weights, with private ones by plan, and every second layer of it as a student keeps them."""
    say(f"{length} tokens")
    passed = price_of_pass(load("minilm"), length, NETWORKS["lan"])
    yield _row(length, "faithful", PUBLIC, 6, passed.rounds, passed.up_bytes + passed.down_bytes, passed.offline_bytes)
    for plan, step in [*((plan, 1) for plan in PLANS), ("fast", 2)]:
        work = build("minilm", length, queries=1)
        model: Any = work.model
        model.encoder.layer = layers = model.encoder.layer[step - 1 :: step]
        cost = price(compile(model, work.calibration, plan, outputs=[OUTPUT]).program)
        yield _row(length, plan, PRIVATE, len(layers), cost.rounds, cost.online_bytes, cost.offline_bytes)


def _row(length: int, plan: str, weights: str, layers: int, rounds: int, online: int, offline: int) -> Report:
    figures = {"rounds": rounds, "online_bytes": online, "offline_bytes": offline}
    return {"length": length, "plan": plan, "weights_are": weights, "layers": layers, **figures}


def show(report: Report) -> list[Table | str]:
    table = columns("One text through MiniLM", "length", "plan", "weights", "layers", "rounds", "online", "offline")
    for row in report["rows"]:
        cells = [str(row[name]) for name in ("length", "plan", "weights_are", "layers", "rounds")]
        table.add_row(*cells, megabytes(row["online_bytes"]), megabytes(row["offline_bytes"]))
    return [table]


def main(arguments: list[str] | None = None) -> int:
    options = parser("costs", "Bytes and rounds of one private text through MiniLM, by plan and length.")
    options.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens of a text")
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
