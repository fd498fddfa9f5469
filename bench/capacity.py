"""Whether a service under load does what its simulation says: bench.load's deployment, and the same in virtual time.

    python -m bench.capacity --clients 8 --seconds 60

The simulation knows what one client alone cost in the same run, and nothing of many. All parties and clients share the
cores of this machine in both, less what other processes used. README.md says what each figure
means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from blindformer.cores import cores
from blindformer.models.artifacts import load_server
from blindformer.parties.reports.capacity import costs_of
from blindformer.parties.reports.estimate import estimate
from blindformer.parties.reports.queueing import Demand, Fleet, QueryCosts, Simulated, simulate
from blindformer.parties.reports.virtual import need_simpy
from rich.table import Table

from .commands import Say, publish, run_command
from .load import Load, arguments_of, run_in
from .provenance import Measured

HALVINGS = 20
FIGURES = ("per_second", "latency_p50_s", "latency_p95_s")


@dataclass(frozen=True, slots=True)
class CapacityReport(Measured):
    """`agreement`: what was simulated over what was measured, figure by figure."""

    model: str
    length: int
    plan: str
    workers: int
    clients: int
    costs: QueryCosts
    measured: dict[str, Load]
    simulated: dict[str, Simulated]
    agreement: dict[str, dict[str, float]]


def costs_alone(load: Load, expected: QueryCosts, fleet: Fleet) -> tuple[QueryCosts, list[float]]:
    """What a query took one client alone. Each party's CPU seconds, as the system counted them, in the proportion of
    the phases that is `expected`; and what a query waits for beyond computing: so much that the simulation of one
    client takes as long as it did. And how queries differ: their seconds over the mean."""
    share = {role: load.cpu_s[role] / load.queries for role in ("server", "client", "dealer")}
    costs = replace(
        expected.times(0.0),
        server_offline=share["server"] * expected.server_offline / expected.server,
        server_online=share["server"] * expected.server_online / expected.server,
        client_offline=share["client"] * expected.client_offline / expected.client,
        client_online=share["client"] * expected.client_online / expected.client,
        dealer=share["dealer"],
    )
    cuts = load.latency_twentieths_s
    factors = [cut * len(cuts) / sum(cuts) for cut in cuts]
    took = load.seconds / load.queries
    low, high = 0.0, took
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        seen = simulate(replace(costs, online_wait=middle), fleet, Demand(200 * took, clients=1, factors=factors))
        low, high = (low, middle) if seen.latency_mean_s > took else (middle, high)
    return replace(costs, online_wait=low), factors


def _fleet(load: Load, workers: int) -> Fleet:
    """This machine, less what other processes used meanwhile: nothing, if it is quiet."""
    free = max(0.1, cores() - load.others_cores)
    return Fleet(cores=free, workers=workers, dealer_workers=cores(), one_machine=True)


def run(options: argparse.Namespace, say: Say) -> CapacityReport:
    """Errors: BlindformerError."""
    need_simpy()
    with tempfile.TemporaryDirectory(prefix="blindformer-capacity-") as folder:
        report = run_in(Path(folder), options, say)
        say("simulate")
        part = load_server(Path(folder) / "compiled").for_length()
        expected = costs_of(estimate(part.program, "loopback"))
    measured = {"single": report.single, "many": report.many}
    fleets = {name: _fleet(load, options.workers) for name, load in measured.items()}
    costs, factors = costs_alone(report.single, expected, fleets["single"])
    simulated = {
        name: simulate(costs, fleets[name], Demand(load.seconds, clients=load.clients, factors=factors))
        for name, load in measured.items()
    }
    return CapacityReport(
        model=report.model,
        length=report.length,
        plan=report.plan,
        workers=report.workers,
        clients=options.clients,
        costs=costs,
        measured=measured,
        simulated=simulated,
        agreement={
            name: {figure: getattr(simulated[name], figure) / getattr(load, figure) for figure in FIGURES}
            for name, load in measured.items()
        },
        versions=report.versions,
        commit=report.commit,
        machine=report.machine,
    )


def table(report: CapacityReport) -> Table:
    grid = Table(title=f"{report.model}, length {report.length}, plan {report.plan}, {report.workers} workers")
    for heading in ("", "measured", "simulated", "simulated / measured"):
        grid.add_column(heading, justify="right" if heading else "left")
    for name, load in report.measured.items():
        for figure in FIGURES:
            values = [getattr(load, figure), getattr(report.simulated[name], figure), report.agreement[name][figure]]
            grid.add_row(f"{load.clients} clients, {figure}", *(f"{value:.3f}" for value in values))
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = arguments_of("python -m bench.capacity", "A service under load, and its simulation.")
    chosen = options.parse_args(arguments)
    return run_command("bench.capacity", lambda say: publish(run(chosen, say), chosen.format, table))


if __name__ == "__main__":
    sys.exit(main())
