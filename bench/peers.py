"""Blindformer beside plain CrypTen: one model, one text, one machine, one run. The peer needs the extra `crypten`.

    python -m bench.peers --model minilm --length 128

README.md says what each figure means, and in what the two set-ups differ.
"""

import importlib.util
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from .crypten_plain import CryptenResult, run_crypten
from .latency import (
    Latency,
    Say,
    deviation,
    exact,
    measure,
    megabytes,
    parser,
    provenance_line,
    run_command,
    seconds,
)
from .provenance import json_line, versions
from .workloads import Workload, WorkloadError, build

NOTES = (
    "INSECURE peer: CrypTen's default provider lets party 0, the model's owner, make every triple, so party 0 can read "
    "all that party 1 sends. Its triples cost no traffic, and making them is part of its online time.",
    "The peer has no TLS; Blindformer's processes talk over mutual TLS 1.3.",
    "Blindformer's correlations come from a dealer of its own, offline; the ratios `*_with_offline` count that too.",
    "The peer runs CrypTen's own functions and defaults on the encoder, from embedded activations. On the real MiniLM "
    "weights its output diverges (GELU's tanh leaves the range of CrypTen's sigmoid); its time and bytes are the same "
    "for any values.",
    "Bytes both ways: at the peer, TCP payload as the kernel counts it; here, the protocol's payload, without framing "
    "and TLS (wire_overhead_bytes has those of the whole session). Rounds: exchanges that wait for one another; at the "
    "peer, calls to its communicator, a batch counting once.",
)


@dataclass(frozen=True, slots=True)
class Crypten:
    """Medians over the runs, each in two fresh processes after a warm-up on a few tokens."""

    protocol: str
    runs: int
    online_s: float
    online_s_min: float
    online_s_max: float
    online_s_all: list[float]
    online_bytes: int
    rounds: int
    max_abs_error: float
    cosine_min: float
    peak_rss_mb: float
    cpu_s: float
    tls: bool
    threads: int
    versions: dict[str, str]


def measure_crypten(work: Workload, *, timeout: float = 600) -> Crypten:
    """Run the workload's queries, all but the warm-up, under plain CrypTen.

    Errors: WorkloadError, one line.
    """
    model: Any = work.model
    runs: list[CryptenResult] = []
    errors: list[tuple[float, float]] = []
    for query in work.queries[1:]:
        with torch.no_grad():
            embedded = model.embeddings(input_ids=query["input_ids"])
        try:
            run = run_crypten(
                model.state_dict(), model.config.to_dict(), embedded, query["attention_mask"], timeout=timeout
            )
        except RuntimeError as error:
            raise WorkloadError(str(error)) from None
        runs.append(run)
        errors.append(deviation(run.output, exact(model, query), query))
    spent = [run.seconds for run in runs]
    return Crypten(
        protocol="crypten",
        runs=len(runs),
        online_s=statistics.median(spent),
        online_s_min=min(spent),
        online_s_max=max(spent),
        online_s_all=spent,
        online_bytes=round(statistics.median(run.bytes_both_ways for run in runs)),
        rounds=runs[-1].rounds,
        max_abs_error=max(error for error, _ in errors),
        cosine_min=min(cosine for _, cosine in errors),
        peak_rss_mb=max(run.peak_rss_mb for run in runs),
        cpu_s=statistics.median(run.cpu_seconds for run in runs),
        tls=False,
        threads=1,
        versions=versions("crypten"),
    )


def ratios(ours: Latency, peer: Crypten) -> dict[str, float]:
    """The peer's figure over ours: above 1, ours is smaller."""
    return {
        "time": peer.online_s / ours.online_s,
        "time_with_offline": peer.online_s / (ours.online_s + ours.offline_s),
        "bytes": peer.online_bytes / ours.online_bytes,
        "bytes_with_offline": peer.online_bytes / (ours.online_bytes + ours.offline_bytes),
        "rounds": peer.rounds / ours.rounds,
        "memory": peer.peak_rss_mb / ours.peak_rss_mb,
    }


def table(ours: Latency, peer: Crypten) -> Table:
    found = ratios(ours, peer)
    title = f"{ours.model}, length {ours.length}, {ours.weights} weights, plan {ours.plan}"
    grid = Table(title=title)
    for name in ("", "Blindformer", "CrypTen", "CrypTen / Blindformer"):
        grid.add_column(name, justify="right" if name else "left")

    def row(name: str, mine: str, theirs: str, ratio: str = "") -> None:
        grid.add_row(name, mine, theirs, f"{found[ratio]:.2f}" if ratio else "")

    row("online", seconds(ours.online_s), seconds(peer.online_s), "time")
    both = seconds(ours.online_s + ours.offline_s)
    row("online and offline", both, f"{seconds(peer.online_s)} (triples by party 0)", "time_with_offline")
    row("online traffic", megabytes(ours.online_bytes), megabytes(peer.online_bytes), "bytes")
    both = megabytes(ours.online_bytes + ours.offline_bytes)
    row("online and offline traffic", both, megabytes(peer.online_bytes), "bytes_with_offline")
    row("rounds", str(ours.rounds), str(peer.rounds), "rounds")
    row("memory, largest party", f"{ours.peak_rss_mb:.0f} MB", f"{peer.peak_rss_mb:.0f} MB", "memory")
    row("largest error, float32", f"{ours.max_abs_error:.2e}", f"{peer.max_abs_error:.2e}")
    row("least cosine of a token", f"{ours.cosine_min:.6f}", f"{peer.cosine_min:.6f}")
    row("TLS", "yes", "no")
    row("plaintext, one thread", seconds(ours.plaintext_s), "")
    return grid


def main(arguments: list[str] | None = None) -> int:
    options = parser("python -m bench.peers", "Measure Blindformer and plain CrypTen side by side.")
    options.add_argument("--repeat", type=int, default=1, help="queries of ours and runs of the peer's (default 1)")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        say("load")
        if importlib.util.find_spec("crypten") is None:
            raise WorkloadError("crypten is not installed; run: pip install -e '.[crypten]'")
        workload = build(chosen.model, chosen.length, queries=chosen.repeat)
        # One after the other, never at once: two parties have two cores.
        ours = measure(workload, chosen.plan, timeout=chosen.timeout, say=say)
        say("crypten")
        peer = measure_crypten(workload, timeout=chosen.timeout)
        if chosen.format == "json":
            shape = {key: getattr(ours, key) for key in ("model", "weights", "length", "batch", "plan")}
            figures = {"blindformer": asdict(ours), "crypten": asdict(peer), "ratios": ratios(ours, peer)}
            print(json_line(shape | figures | {"notes": list(NOTES)}))
            return
        console = Console()
        console.print(table(ours, peer))
        for note in NOTES:
            console.print(f"- {note}", soft_wrap=True)
        console.print(provenance_line(ours.commit, peer.versions, ours.machine), style="dim", soft_wrap=True)

    return run_command("bench.peers", work)


if __name__ == "__main__":
    raise SystemExit(main())
