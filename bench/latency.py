"""Seconds, bytes, rounds and error of one private model: three real processes over TLS on loopback.

    python -m bench.latency --model minilm --length 128 --plan fast --format json

README.md says what each figure means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from blindformer.approximations import Plan, approximate, out_of_range, restore
from blindformer.models.artifacts import save
from blindformer.models.compile import Compiled, compile
from blindformer.parties.client.local_parties import LocalRun, run_local
from rich.table import Table
from torch import Tensor, nn

from .commands import Say, apart, megabytes, parser, publish, run_command, seconds
from .provenance import Measured, provenance
from .workloads import Batch, Workload, build

OUTPUT = "last_hidden_state"


@dataclass(frozen=True, slots=True)
class Latency(Measured):
    """One measurement. Seconds are the client's, medians over the queries after a warm-up; bytes are payload of one
    query. README.md explains each figure."""

    model: str
    weights: str
    length: int
    batch: int
    plan: str
    protocol: str
    queries: int
    plaintext_s: float
    offline_s: float
    offline_s_min: float
    offline_s_max: float
    offline_s_all: list[float]
    online_s: float
    online_s_min: float
    online_s_max: float
    online_s_all: list[float]
    offline_bytes: int
    online_bytes: int
    up_bytes: int
    down_bytes: int
    rounds: int
    max_abs_error: float
    max_abs_error_approximated: float
    cosine_min: float
    sites_out_of_range: int
    peak_rss_mb: float
    setup_s: float
    setup_bytes: int
    wire_overhead_bytes: int
    online_over_plaintext: float
    offline_over_online: float
    tls: bool
    threads: int


@contextmanager
def built(
    work: Workload, plan: str, say: Say, look: Callable[[Compiled], None] = lambda compiled: None
) -> Iterator[tuple[Path, Plan]]:
    """The workload compiled: its folder while the block lasts, and the fitted plan. `look` sees it before it is left to
    the folder."""
    with tempfile.TemporaryDirectory(prefix="blindformer-bench-") as name:
        compiled = compile(
            work.model,
            work.calibration,
            plan,
            outputs=[OUTPUT],
            name=work.name,
            progress=lambda what, done, total: say(f"compile: {what} {done}/{total}"),
        )
        folder, fitted = save(compiled, Path(name)), compiled.plan
        look(compiled)
        del compiled  # its weights are in the folder now; the parties need the memory
        yield folder, fitted


def measure(
    work: Workload, plan: str, *, timeout: float = 600, say: Say | None = None, found: tuple[Path, Plan] | None = None
) -> Latency:
    """Compile the workload (unless `found`, of `built`, is given), run all its queries in one session, and compare
    with torch.

    timeout: seconds that any party may be silent. Errors: BlindformerError, one line.
    """
    say = say or (lambda stage: None)
    about = provenance()
    say("plaintext")
    plaintext = plaintext_seconds(work.model, work.queries[-1])
    with ExitStack() as stack:
        folder, fitted = found or stack.enter_context(built(work, plan, say))
        run = ask_privately(folder, work, timeout, say, pin=True)
    say("compare")
    errors = [
        (*deviation(got[OUTPUT], exact(work.model, query), query), deviation(got[OUTPUT], approximated, query)[0])
        for got, query, approximated in zip(
            run.outputs, work.queries, _approximated(work.model, fitted, work.queries), strict=True
        )
    ]
    counted = run.timings[1:]
    last = counted[-1]
    offline, online = [t.offline_s for t in counted], [t.online_s for t in counted]
    everyone = [t.peak_rss_mb for t in run.timings]
    everyone += [value for others in run.others for key, value in others.items() if key.endswith("peak_rss_mb")]
    return Latency(
        model=work.name,
        weights=work.weights,
        length=work.length,
        batch=work.batch,
        plan=plan,
        protocol="beaver",
        queries=len(counted),
        plaintext_s=plaintext,
        offline_s=statistics.median(offline),
        offline_s_min=min(offline),
        offline_s_max=max(offline),
        offline_s_all=offline,
        online_s=statistics.median(online),
        online_s_min=min(online),
        online_s_max=max(online),
        online_s_all=online,
        offline_bytes=last.offline_bytes,
        online_bytes=last.online.sent + last.online.received,
        up_bytes=last.online.sent,
        down_bytes=last.online.received,
        rounds=last.rounds,
        max_abs_error=max(e[0] for e in errors),
        max_abs_error_approximated=max(e[2] for e in errors),
        cosine_min=min(e[1] for e in errors),
        sites_out_of_range=len(out_of_range(work.model, work.queries, fitted)),
        peak_rss_mb=max(everyone),
        setup_s=run.setup_s,
        setup_bytes=run.setup_bytes,
        wire_overhead_bytes=run.wire_overhead_bytes,
        online_over_plaintext=statistics.median(online) / plaintext,
        offline_over_online=statistics.median(offline) / statistics.median(online),
        tls=True,
        threads=1,
        **about,
    )


def ask_privately(folder: Path, work: Workload, timeout: float, say: Say, **options: Any) -> LocalRun:
    """All queries of the workload in one session, whose client is a process of its own. `options`: of run_local."""
    say(f"private: {len(work.queries)} queries")
    return apart(run_local, folder, work.queries, threads=1, timeout=timeout, **options)


def plaintext_seconds(model: nn.Module, batch: Batch, runs: int = 9) -> float:
    """Median seconds of the float32 model in torch, one thread, after two warm-up runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds = []
        with torch.inference_mode():
            for _ in range(2 + runs):
                started = time.perf_counter()
                model(**batch)
                seconds.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(seconds[2:])


def exact(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch)[OUTPUT]


def _approximated(model: nn.Module, plan: Plan, batches: list[Batch]) -> list[Tensor]:
    """The model with the plan's approximations, in torch: what is left to the error is fixed point and protocol."""
    approximate(model, plan)
    try:
        return [exact(model, batch) for batch in batches]
    finally:
        restore(model)


def deviation(output: Tensor, expected: Tensor, batch: Batch) -> tuple[float, float]:
    """Largest absolute error of an element, and least cosine of a token, over positions that are not padding.

    output, expected: [B, L, H].
    """
    kept = batch["attention_mask"].bool()
    got, wanted = output[kept].double(), expected[kept].double()
    return (got - wanted).abs().max().item(), torch.cosine_similarity(got, wanted, dim=-1).min().item()


def table(report: Latency) -> Table:
    title = f"{report.model}, length {report.length}, batch {report.batch}, plan {report.plan}"
    grid = Table(title=title, show_header=False)
    rows = {
        "plaintext, one thread": seconds(report.plaintext_s),
        "online": f"{seconds(report.online_s)}  ({report.online_s_min:.3f} to {report.online_s_max:.3f}), "
        f"{report.online_over_plaintext:.1f}x plaintext",
        "offline": f"{seconds(report.offline_s)}  ({report.offline_s_min:.3f} to {report.offline_s_max:.3f}), "
        f"{report.offline_over_online:.2f}x online",
        "online traffic": f"{megabytes(report.online_bytes)}  (up {megabytes(report.up_bytes)}, "
        f"down {megabytes(report.down_bytes)})",
        "offline traffic": megabytes(report.offline_bytes),
        "rounds": str(report.rounds),
        "largest error, float32": f"{report.max_abs_error:.2e}",
        "largest error, approximated": f"{report.max_abs_error_approximated:.2e}",
        "least cosine of a token": f"{report.cosine_min:.6f}",
        "sites out of range": str(report.sites_out_of_range),
        "memory, largest party": f"{report.peak_rss_mb:.0f} MB",
        "set-up, once": f"{seconds(report.setup_s)}, {megabytes(report.setup_bytes)}",
        "framing and TLS, session": megabytes(report.wire_overhead_bytes),
    }
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = parser("python -m bench.latency", "Measure private inference of one model.")
    options.add_argument("--queries", type=int, default=3, help="after one warm-up query (default 3)")
    options.add_argument("--batch", type=int, default=1)
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        say("load")
        workload = build(chosen.model, chosen.length, queries=chosen.queries, batch=chosen.batch)
        report = measure(workload, chosen.plan, timeout=chosen.timeout, say=say)
        publish(report, chosen.format, table)

    return run_command("bench.latency", work)


if __name__ == "__main__":
    raise SystemExit(main())
