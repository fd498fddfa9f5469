"""A query on a slow network beside what `estimate` says of it: three real processes, the network imitated.

    python -m bench.network --model minilm --length 32 --rtt 40 --bandwidth 100 --format json

README.md says what each figure means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import statistics
from dataclasses import dataclass

from blindformer.models.compile import Compiled
from blindformer.models.program.pricing import Network
from blindformer.parties.reports.estimate import Estimate, estimate
from rich.table import Table

from .commands import Say, megabytes, parser, publish, run_command, seconds
from .latency import ask_privately, built
from .provenance import Measured, provenance
from .workloads import Workload, build


@dataclass(frozen=True, slots=True)
class OnNetwork(Measured):
    """Seconds are the client's, medians over the queries after a warm-up. README.md explains each figure."""

    model: str
    weights: str
    length: int
    batch: int
    plan: str
    protocol: str
    rtt_s: float
    bandwidth: float
    queries: int
    offline_s: float
    offline_s_all: list[float]
    offline_s_estimated: float
    online_s: float
    online_s_all: list[float]
    online_s_estimated: float
    total_over_estimated: float
    total_over_estimated_all: list[float]
    compute_s: dict[str, float]
    offline_bytes: int
    up_bytes: int
    down_bytes: int
    rounds: int
    tls: bool
    threads: int


def measure(work: Workload, plan: str, network: Network, *, timeout: float = 600, say: Say | None = None) -> OnNetwork:
    """Compile the workload, estimate a query, and run all its queries in one session on the imitated network.

    timeout: seconds that any party may be silent. Errors: BlindformerError, one line.
    """
    say = say or (lambda stage: None)
    about = provenance()
    estimates: list[Estimate] = []

    def look(compiled: Compiled) -> None:
        say("estimate")
        estimates.append(estimate(compiled, network))

    with built(work, plan, say, look) as (folder, _):
        run = ask_privately(folder, work, timeout, say, network=network)
    (expected,) = estimates
    counted = run.timings[1:]
    offline, online = [t.offline_s for t in counted], [t.online_s for t in counted]
    whole = expected.offline_s + expected.online_s
    ratios = [(a + b) / whole for a, b in zip(offline, online, strict=True)]
    return OnNetwork(
        model=work.name,
        weights=work.weights,
        length=work.length,
        batch=work.batch,
        plan=plan,
        protocol="beaver",
        rtt_s=network.rtt,
        bandwidth=network.bandwidth,
        queries=len(counted),
        offline_s=statistics.median(offline),
        offline_s_all=offline,
        offline_s_estimated=expected.offline_s,
        online_s=statistics.median(online),
        online_s_all=online,
        online_s_estimated=expected.online_s,
        total_over_estimated=statistics.median(ratios),
        total_over_estimated_all=ratios,
        compute_s=expected.compute_s,
        offline_bytes=expected.offline_bytes,
        up_bytes=expected.up,
        down_bytes=expected.down,
        rounds=expected.rounds,
        tls=True,
        threads=1,
        **about,
    )


def table(report: OnNetwork) -> Table:
    network = f"{report.rtt_s * 1e3:g} ms, {report.bandwidth / 1e6:g} Mbit/s"
    grid = Table(title=f"{report.model}, length {report.length}, plan {report.plan}, on {network}")
    for name in ("", "measured", "estimated", "traffic"):
        grid.add_column(name, justify="right" if name else "left")
    online = f"up {megabytes(report.up_bytes)}, down {megabytes(report.down_bytes)}, {report.rounds} rounds"
    offline = f"{megabytes(report.offline_bytes)} from the dealer"
    grid.add_row("offline", seconds(report.offline_s), seconds(report.offline_s_estimated), offline)
    grid.add_row("online", seconds(report.online_s), seconds(report.online_s_estimated), online)
    ratios = f"{min(report.total_over_estimated_all):.3f} to {max(report.total_over_estimated_all):.3f}"
    grid.add_row("measured / estimated", f"{report.total_over_estimated:.3f}", "", ratios)
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = parser("python -m bench.network", "Measure a private query on an imitated network.")
    options.set_defaults(length=32)
    options.add_argument("--rtt", type=float, default=40, help="milliseconds there and back (default 40)")
    options.add_argument("--bandwidth", type=float, default=100, help="Mbit/s each way (default 100)")
    options.add_argument("--queries", type=int, default=3, help="after one warm-up query (default 3)")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        say("load")
        workload = build(chosen.model, chosen.length, queries=chosen.queries)
        network = Network("as given", chosen.rtt / 1e3, chosen.bandwidth * 1e6)
        report = measure(workload, chosen.plan, network, timeout=chosen.timeout, say=say)
        publish(report, chosen.format, table)

    return run_command("bench.network", work)


if __name__ == "__main__":
    raise SystemExit(main())
