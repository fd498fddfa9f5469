"""Blindformer beside plain CrypTen and SPU: one model, one text, one machine, one run. Needs the extra `crypten`.

    python -m bench.peers --model minilm --length 128

README.md says what each figure means, and in what the two set-ups differ.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import importlib.util
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from blindformer.versions import versions
from rich.console import Console
from rich.table import Table

from .commands import Say, parser, run_command
from .contestants import ContestantRow, measure_many, measure_spu, of_latency
from .crypten_plain import CryptenResult, run_crypten
from .latency import built, deviation, exact, measure
from .picture import plot
from .provenance import json_line, provenance_line
from .spu_plain import PARTIES
from .workloads import Workload, WorkloadError, build

SPU_SKIPPED = (
    "spu was left out: `python3.11 -m venv FOLDER`, `FOLDER/bin/pip install spu==0.9.5 'jax[cpu]'`, then "
    "--spu-python FOLDER/bin/python"
)
NOTES = (
    "INSECURE peer: plain CrypTen is protocol `crypten-insecure`. Its default provider lets party 0, the model's "
    "owner, make every triple, so party 0 can read all that party 1 sends. Its triples cost no traffic, and making "
    "them is part of its online time. SPU's SEMI2K is set up alike.",
    "The peers have no TLS; Blindformer's processes talk over mutual TLS 1.3. SPU's parties are threads of a process.",
    "Blindformer's correlations come from a dealer of its own, offline; the ratios `*_with_offline` count that too.",
    "Plain CrypTen runs CrypTen's own functions and defaults on the encoder, from embedded activations. On the real "
    "MiniLM weights its output diverges (GELU's tanh leaves the range of CrypTen's sigmoid); its time and bytes are "
    "the same for any values.",
    "Bytes of all parties, each message once: at plain CrypTen, TCP payload as the kernel counts it; at SPU, what its "
    "links count; here, the protocol's payload, without framing and TLS. Rounds: exchanges that wait for one another; "
    "at plain CrypTen, calls to its communicator, a batch counting once.",
)


@dataclass(frozen=True, slots=True)
class CryptenFigures:
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


def measure_crypten(work: Workload, *, timeout: float = 600) -> CryptenFigures:
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
    return CryptenFigures(
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


def ratios(ours: ContestantRow, peer: ContestantRow) -> dict[str, float]:
    """The peer's figure over ours: above 1, ours is smaller."""
    whole, moved = ours.online_s + (ours.offline_s or 0), ours.online_bytes + (ours.offline_bytes or 0)
    figures = {
        "time": peer.online_s / ours.online_s,
        "time_with_offline": peer.online_s / whole,
        "bytes": peer.online_bytes / ours.online_bytes,
        "bytes_with_offline": peer.online_bytes / moved,
    }
    return figures | ({"rounds": peer.rounds / ours.rounds} if peer.rounds and ours.rounds else {})


def of_crypten(figures: CryptenFigures) -> ContestantRow:
    return ContestantRow(
        "crypten, plain",
        2,
        "party 0",
        False,
        figures.online_s,
        figures.online_s_all,
        None,
        figures.online_bytes,
        None,
        figures.rounds,
        figures.max_abs_error,
        figures.cosine_min,
    )


def table(title: str, rows: list[ContestantRow], peer: ContestantRow) -> Table:
    """Ratios: plain CrypTen's figure over the row's."""
    grid = Table(title=title)
    names = (
        "",
        "parties",
        "dealer",
        "TLS",
        "online",
        "offline",
        "MB online",
        "MB offline",
        "rounds",
        "error",
        "cosine",
    )
    for name in (*names, "time", "traffic"):
        grid.add_column(name, justify="right" if name else "left")
    for row in rows:
        ratio = ratios(row, peer)
        cells = [row.name, str(row.parties), row.dealer, "yes" if row.tls else "no", f"{row.online_s:.2f} s"]
        cells += ["" if row.offline_s is None else f"{row.offline_s:.2f} s", f"{row.online_bytes / 1e6:.1f}"]
        cells += ["" if row.offline_bytes is None else f"{row.offline_bytes / 1e6:.1f}", str(row.rounds or "")]
        cells += [f"{row.max_abs_error:.1e}", f"{row.cosine_min:.5f}"]
        grid.add_row(*cells, f"{ratio['time']:.1f}", f"{ratio['bytes']:.1f}")
    return grid


def compete(work: Workload, plan: str, parties: list[int], spu: str | None, timeout: float, say: Say) -> dict[str, Any]:
    """Everybody on one workload, one after the other, never at once: parties have two cores."""
    with built(work, plan, say) as compiled:
        ours = measure(work, plan, timeout=timeout, say=say, found=compiled)
        rows = [of_latency(ours)]
        for count in parties:
            say(f"crypten, {count} parties")
            rows.append(measure_many(work, compiled[0], count, timeout=timeout))
    say("crypten, plain")
    plain = measure_crypten(work, timeout=timeout)
    rows.append(of_crypten(plain))
    for protocol in PARTIES if spu else ():
        say(f"spu, {protocol}")
        assert spu is not None
        rows.append(measure_spu(work, spu, protocol, timeout=timeout))
    shape = {key: getattr(ours, key) for key in ("model", "weights", "length", "batch", "plan", "commit", "machine")}
    peer = next(row for row in rows if row.name == "crypten, plain")
    own = [{"name": row.name, "parties": row.parties, **ratios(row, peer)} for row in rows if row.offline_s is not None]
    figures = {
        "rows": [asdict(row) for row in rows],
        "ratios": own,
        "blindformer": asdict(ours),
        "crypten": asdict(plain),
    }
    return shape | figures | {"notes": list(NOTES), "skipped": None if spu else SPU_SKIPPED}


def main(arguments: list[str] | None = None) -> int:
    options = parser("python -m bench.peers", "Measure Blindformer, plain CrypTen and SPU side by side.")
    options.add_argument("--repeat", type=int, default=1, help="queries of ours and runs of the peers' (default 1)")
    options.add_argument("--parties", type=int, nargs="*", default=[2, 3], help="of protocol crypten (default 2 3)")
    options.add_argument(
        "--spu-python", metavar="PATH", help="a Python with spu 0.9.5 and jax; without it SPU is left out"
    )
    options.add_argument("--plot", type=Path, metavar="FILE", help="a picture of it (extra `plots`)")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        say("load")
        if importlib.util.find_spec("crypten") is None:
            raise WorkloadError("crypten is not installed; run: pip install -e '.[crypten]'")
        workload = build(chosen.model, chosen.length, queries=chosen.repeat)
        report = compete(workload, chosen.plan, chosen.parties, chosen.spu_python, chosen.timeout, say)
        rows = [ContestantRow(**row) for row in report["rows"]]
        title = f"{report['model']}, length {report['length']}, {report['weights']} weights, plan {report['plan']}"
        if chosen.plot:
            plot(chosen.plot, title, rows)
        if chosen.format == "json":
            print(json_line(report))
            return
        console = Console(width=max(Console().width, 150))
        console.print(table(title, rows, next(row for row in rows if row.name == "crypten, plain")))
        for note in [*NOTES, *([report["skipped"]] if report["skipped"] else [])]:
            console.print(f"- {note}", soft_wrap=True)
        used = report["crypten"]["versions"]
        console.print(provenance_line(report["commit"], used, report["machine"]), style="dim", soft_wrap=True)

    return run_command("bench.peers", work)


if __name__ == "__main__":
    raise SystemExit(main())
