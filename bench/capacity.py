"""Whether a service under load does what its simulation says: bench.load's deployment, and the same in virtual time.

    python -m bench.capacity --clients 8 --seconds 60

The simulation knows what one client alone cost in the same run, and nothing of many. All parties and clients share the
cores of this machine in both, less what other processes used. README.md says what each figure
means.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from blindformer.cores import cores
from blindformer.models.artifacts import load_server
from blindformer.parties.reports.capacity import costs_of
from blindformer.parties.reports.estimate import estimate
from blindformer.parties.reports.queueing import QueryCosts
from rich.table import Table

from .harness import Report, Say, carry_out, columns
from .load import arguments_of, measure_in
from .service_simulation import Demand, SimulatedFleet, simulate
from .virtual import need_simpy

HALVINGS = 20
FIGURES = ("per_second", "latency_p50_s", "latency_p95_s")


def costs_alone(load: Report, expected: QueryCosts, fleet: SimulatedFleet) -> tuple[QueryCosts, list[float]]:
    """What a query took one client alone. Each party's CPU seconds, as the system counted them, in the proportion of
    the phases that is `expected`; and what a query waits for beyond computing: so much that the simulation of one
    client takes as long as it did. And how queries differ: their seconds over the mean."""
    share = {role: load["cpu_s"][role] / load["queries"] for role in ("server", "client", "dealer")}
    costs = replace(
        expected.times(0.0),
        server_offline=share["server"] * expected.server_offline / expected.server,
        server_online=share["server"] * expected.server_online / expected.server,
        client_offline=share["client"] * expected.client_offline / expected.client,
        client_online=share["client"] * expected.client_online / expected.client,
        dealer=share["dealer"],
    )
    cuts = load["latency_twentieths_s"]
    factors = [cut * len(cuts) / sum(cuts) for cut in cuts]
    took = load["seconds"] / load["queries"]
    low, high = 0.0, took
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        seen = simulate(replace(costs, online_wait=middle), fleet, Demand(200 * took, clients=1, factors=factors))
        low, high = (low, middle) if seen.latency_mean_s > took else (middle, high)
    return replace(costs, online_wait=low), factors


def _fleet(load: Report, workers: int) -> SimulatedFleet:
    """This machine, less what other processes used meanwhile: nothing, if it is quiet."""
    free = max(0.1, cores() - load["others_cores"])
    return SimulatedFleet(cores=free, workers=workers, dealer_workers=cores(), one_machine=True)


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """`agreement`: what was simulated over what was measured, figure by figure. Errors: BlindformerError."""
    need_simpy()
    with tempfile.TemporaryDirectory(prefix="blindformer-capacity-") as folder:
        load = measure_in(Path(folder), chosen, say)
        say("simulate")
        part = load_server(Path(folder) / "compiled").for_length()
        expected = costs_of(estimate(part.program, "loopback"))
    measured = {name: load[name] for name in ("single", "many")}
    fleets = {name: _fleet(phase, chosen.workers) for name, phase in measured.items()}
    costs, factors = costs_alone(measured["single"], expected, fleets["single"])
    simulated = {
        name: asdict(simulate(costs, fleets[name], Demand(phase["seconds"], clients=phase["clients"], factors=factors)))
        for name, phase in measured.items()
    }
    return {
        **{name: load[name] for name in ("model", "length", "plan", "workers")},
        "clients": chosen.clients,
        "costs": asdict(costs),
        "measured": measured,
        "simulated": simulated,
        "agreement": {
            name: {figure: simulated[name][figure] / phase[figure] for figure in FIGURES}
            for name, phase in measured.items()
        },
    }


def show(report: Report) -> list[Table]:
    title = f"{report['model']}, length {report['length']}, plan {report['plan']}, {report['workers']} workers"
    table = columns(title, "", "measured", "simulated", "simulated / measured")
    for name, phase in report["measured"].items():
        for figure in FIGURES:
            values = (phase[figure], report["simulated"][name][figure], report["agreement"][name][figure])
            table.add_row(f"{phase['clients']} clients, {figure}", *(f"{value:.3f}" for value in values))
    return [table]


def main(arguments: list[str] | None = None) -> int:
    return carry_out(arguments_of("capacity", "A service under load, and its simulation."), arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
