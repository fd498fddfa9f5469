"""Seconds, bytes, rounds and error of one private model: three real processes over TLS on loopback.

    python -m bench.latency --model minilm --length 128 --plan fast --format json
    python -m bench.latency --model minilm --length 32 --rtt 40 --bandwidth 100     on an imitated network
    python -m bench.latency --model minilm --weights public     delegated layers; with plan fast in 24 bits
    python -m bench.latency --plan fast --dealer none       the two parties make the correlations
    python -m bench.latency --plan fast --weights both      private and public weights in turn, and their ratios
    python -m bench.latency --plan fast --audits 0.25 --queries 20      without and with audits in turn

README.md says what each figure means.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import blindformer as bf
import psutil
import torch
from blindformer.approximations import Plan, approximate, out_of_range, restore
from blindformer.models.artifacts import save
from blindformer.models.compile import Compiled, compile
from blindformer.models.program.pricing import Network
from blindformer.models.weight_owners import PRIVATE, PUBLIC
from blindformer.parties.client.local import LocalParties
from blindformer.parties.launch import NO_DEALER
from blindformer.parties.session.online import Answer, Timings, rss_mb
from blindformer.protocols.devices import described, find_device
from rich.table import Table
from torch import Tensor, nn

from .harness import (
    BenchError,
    Report,
    Say,
    add_network,
    add_weights,
    apart,
    carry_out,
    columns,
    grid,
    megabytes,
    model_parser,
    network_of,
    seconds,
    spread,
)
from .workloads import Batch, Workload, build

if TYPE_CHECKING:  # the process that asks a private model imports this file, and its memory is measured
    from blindformer.models.delegated.part import DelegatedPart

OUTPUT = "last_hidden_state"
Built = tuple["Path | DelegatedPart", Plan | None]
BOTH = "both"
PLAIN, AUDITED = "plain", "audited"
SECONDS = ("offline_s", "online_s")
RUNS = (*SECONDS, "offline_bytes", "online_bytes", "rounds")  # of which an answer with audits takes several
COMPARED = (*SECONDS, "setup_bytes", "offline_bytes", "online_bytes", "rounds", "peak_rss_mb", "peak_data_mb")


@contextmanager
def built(
    work: Workload,
    plan: str,
    say: Say,
    look: Callable[[Compiled], None] = lambda compiled: None,
    weights: str = PRIVATE,
    network: Network | None = None,
) -> Iterator[Built]:
    """The workload compiled, for a network where there is one: its folder while the block lasts, and the fitted plan.
    `look` sees it before it is left to the folder. With public weights: the model's part, and no fitted plan."""
    if weights == PUBLIC:
        from blindformer.models.delegated.part import part_of_module

        yield part_of_module(work.model, lambda: work.model(**work.queries[0]), work.name, plan), None
        return
    with tempfile.TemporaryDirectory(prefix="blindformer-bench-") as name:
        compiled = compile(
            work.model,
            work.calibration,
            plan if network is None else Plan.preset(plan).for_network(network.rtt, network.bandwidth),
            outputs=[OUTPUT],
            weights=weights,
            name=work.name,
            progress=lambda what, done, total: say(f"compile: {what} {done}/{total}"),
        )
        folder, fitted = save(compiled, Path(name)), compiled.plan
        look(compiled)
        del compiled  # its weights are in the folder now; the parties need the memory
        yield folder, fitted


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Compile the workload, estimate a query if there is a network, and run all queries."""
    if chosen.dealer and (chosen.weights != PRIVATE or chosen.audits):
        raise BenchError(f"--dealer {chosen.dealer}: is of private weights, without audits; leave one of them out")
    if chosen.weights == BOTH:
        return compare(chosen, say)
    if chosen.audits:
        return compare_audits(chosen, say)
    say("load")
    network = network_of(chosen)
    work = build(chosen.model, chosen.length, queries=chosen.queries, batch=chosen.batch)
    estimates: list[Report] = []

    def look(compiled: Compiled) -> None:
        if network is not None:
            say("estimate")
            estimates.append(asdict(bf.estimate(compiled, network)))

    with built(work, chosen.plan, say, look, chosen.weights, network) as compiled:
        more = {"device": chosen.device, "dealer": chosen.dealer}
        report = ask(work, chosen.plan, compiled, chosen.timeout, say, network, **more)
    report |= {"weights_are": chosen.weights, "dealer": chosen.dealer or "offline"}
    for expected in estimates:
        whole = expected["offline_s"] + expected["online_s"]
        ratios = [(a + b) / whole for a, b in zip(report["offline_s_all"], report["online_s_all"], strict=True)]
        report |= {f"{name}_estimated": expected[name] for name in ("offline_s", "online_s", "compute_s")}
        report |= {"total_over_estimated": statistics.median(ratios), "total_over_estimated_all": ratios}
    return report


def compare(chosen: argparse.Namespace, say: Say) -> Report:
    """All queries with private and with public weights, each kind in two sessions."""
    say("load")
    network = network_of(chosen)
    work = build(chosen.model, chosen.length, queries=chosen.queries, batch=chosen.batch)
    with ExitStack() as stack:
        compiled = {
            kind: stack.enter_context(built(work, chosen.plan, say, weights=kind, network=network))
            for kind in (PRIVATE, PUBLIC)
        }
        private, public = in_turn(
            (PRIVATE, PUBLIC),
            lambda kind: ask(work, chosen.plan, compiled[kind], chosen.timeout, say, network, device=chosen.device),
        )
    ratios = {key: public[key] / private[key] for key in COMPARED}
    return {"weights_are": BOTH, PRIVATE: private, PUBLIC: public, "public_over_private": ratios}


def compare_audits(chosen: argparse.Namespace, say: Say) -> Report:
    """All queries without and with audits, each kind in two sessions."""
    say("load")
    network = network_of(chosen)
    work = build(chosen.model, chosen.length, queries=chosen.queries, batch=chosen.batch)
    rates = {PLAIN: 0.0, AUDITED: chosen.audits}
    with built(work, chosen.plan, say, weights=chosen.weights, network=network) as compiled:
        plain, audited = in_turn(
            rates,
            lambda kind: ask(work, chosen.plan, compiled, chosen.timeout, say, network, rates[kind], chosen.device),
        )
    ratios = {
        "answer": {key: audited[f"{key}_mean"] / plain[f"{key}_mean"] for key in RUNS},
        "run": {key: audited[f"{key}_run"] / plain[f"{key}_run"] for key in RUNS},
        "peak_rss_mb": audited["peak_rss_mb"] / plain["peak_rss_mb"],
    }
    return {
        "weights_are": chosen.weights,
        "audits": chosen.audits,
        "expected": 1 / (1 - chosen.audits),
        PLAIN: plain,
        AUDITED: audited,
        "audited_over_plain": ratios,
    }


def in_turn(kinds: Iterable[str], session: Callable[[str], Report]) -> list[Report]:
    """Two sessions of each of two kinds, a, b, b, a: what else the machine does meets both."""
    a, b = kinds
    reports: dict[str, list[Report]] = {a: [], b: []}
    for kind in (a, b, b, a):
        reports[kind].append(session(kind))
    return [_joined(sessions) for sessions in reports.values()]


def _joined(sessions: list[Report]) -> Report:
    """The session that took most memory, with the seconds of all, and the means of all where there are any."""
    offline, online = (spread(key, [value for one in sessions for value in one[f"{key}_all"]]) for key in SECONDS)
    means = {
        name: statistics.fmean(one[name] for one in sessions)
        for key in RUNS
        for name in (f"{key}_mean", f"{key}_run")
        if all(name in one for one in sessions)
    }
    audits = {"audits": sum(one["audits"] for one in sessions)} if means else {}
    most = max(sessions, key=lambda one: one["peak_rss_mb"])
    ratios = quotients(offline["offline_s"], online["online_s"], most["plaintext_s"])
    return {**most, **offline, **online, **ratios, **means, **audits}


class Asked(NamedTuple):
    """The answers to all queries of one session, and what it says of itself. `cpu_s`: of each query, this process's and
    all others'."""

    answers: list[Answer]
    cpu_s: list[float]
    setup_s: float
    setup_bytes: int
    wire_overhead_bytes: int


def ask_each(kind: Any, model: Any, queries: Iterable[Batch], **parties: Any) -> Asked:
    """`kind`: of session."""
    with kind(model, **parties) as session:
        spent, answers = [_cpu_seconds(session.processes)], []
        for query in queries:
            answers.append(session.query(query))
            spent.append(_cpu_seconds(session.processes))
        cpu = [after - before for before, after in pairwise(spent)]
        return Asked(answers, cpu, session.setup_s, session.setup_bytes, session.wire_overhead_bytes)


def _cpu_seconds(services: Mapping[str, int]) -> float:
    """Of this process and those of the services, by role, with all that they have forked."""
    total = time.process_time()
    for pid in services.values():
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
    return total


def ask(
    work: Workload,
    plan: str,
    compiled: Built,
    timeout: float,
    say: Say,
    network: Network | None = None,
    audits: float | None = None,
    device: str = "cpu",
    dealer: str | None = None,
) -> Report:
    """Run all queries of a workload that is `built` in one session, and compare with torch.

    timeout: seconds that any party may be silent. audits: of all runs; then means are in the report.
    Errors: BlindformerError, one line.
    """
    folder, fitted = compiled
    say("plaintext")
    plaintext = plaintext_seconds(work.model, work.queries[-1])
    say(f"private: {len(work.queries)} queries")
    pin = network is None  # on a network all three parties' work overlaps
    parties: dict[str, Any] = {"timeout": timeout, "pin": pin, "network": network}
    if isinstance(folder, Path):
        parties |= {"audits": audits or 0.0, "device": device, "dealer": dealer}
        run = apart(ask_each, LocalParties, folder, work.queries, threads=1, **parties)
    else:
        from blindformer.parties.client.delegated import DelegatedSession

        run = ask_each(DelegatedSession, folder, work.queries, **parties)
    timings = [answer.timings for answer in run.answers]
    say("compare")
    near = _approximated(work.model, fitted, work.queries)
    errors = [
        (*deviation(got, exact(work.model, query), query), deviation(got, approximated, query)[0])
        for got, query, approximated in zip(
            (answer.outputs[OUTPUT] for answer in run.answers), work.queries, near, strict=True
        )
    ]
    counted = timings[1:]
    last = counted[-1]
    offline, online = (spread(key, [getattr(t, key) for t in counted]) for key in SECONDS)
    memory = {"client": max(t.peak_rss_mb for t in timings)}
    for party in ("server",) if dealer else ("server", "dealer"):
        memory[party] = max(answer.others[f"{party}_peak_rss_mb"] for answer in run.answers)
    libraries = apart(rss_mb)
    return {
        "model": work.name,
        "weights": work.weights,
        "length": work.length,
        "batch": work.batch,
        "plan": plan,
        "protocol": "beaver" if fitted else "delegated",
        "device": device if device == "cpu" else described()[find_device(device).index],
        "rtt_s": network and network.rtt,
        "bandwidth": network and network.bandwidth,
        "queries": len(counted),
        **({} if audits is None else averages(counted)),
        "plaintext_s": plaintext,
        **offline,
        **online,
        "cpu_s": statistics.median(run.cpu_s[1:]),
        "offline_bytes": last.offline_bytes,
        "online_bytes": last.online.sent + last.online.received,
        "up_bytes": last.online.sent,
        "down_bytes": last.online.received,
        "rounds": last.rounds,
        "max_abs_error": max(e[0] for e in errors),
        "max_abs_error_approximated": max(e[2] for e in errors),
        "cosine_min": min(e[1] for e in errors),
        "sites_out_of_range": len(out_of_range(work.model, work.queries, fitted)) if fitted else 0,
        "peak_rss_mb": max(memory.values()),
        "peak_rss_mb_by_party": memory,
        "libraries_rss_mb": libraries,
        "peak_data_mb": max(memory.values()) - libraries,
        "setup_s": run.setup_s,
        "setup_bytes": run.setup_bytes,
        "first_offline_s": timings[0].offline_s,  # without a dealer weights are encrypted then
        "first_offline_bytes": timings[0].offline_bytes,
        "wire_overhead_bytes": run.wire_overhead_bytes,
        **quotients(offline["offline_s"], online["online_s"], plaintext),
        "tls": True,
        "threads": 1,
    }


def quotients(offline: float, online: float, plaintext: float) -> Report:
    return {"online_over_plaintext": online / plaintext, "offline_over_online": offline / online}


def averages(counted: Sequence[Timings]) -> Report:
    """What an answer takes on average, with the audits before it, and what a run takes."""
    sums: dict[str, float] = {key: sum(getattr(t, key) for t in counted) for key in RUNS if key != "online_bytes"}
    sums["online_bytes"] = sum(t.online.sent + t.online.received for t in counted)
    audits = sum(t.audits for t in counted)
    means = {f"{key}_mean": total / len(counted) for key, total in sums.items()}
    return {"audits": audits, **means, **{f"{key}_run": sums[key] / (len(counted) + audits) for key in sums}}


def plaintext_seconds(model: nn.Module, batch: Batch, runs: int = 9) -> float:
    """Median seconds of the float32 model in torch, one thread, after two warm-up runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        spent = []
        with torch.inference_mode():
            for _ in range(2 + runs):
                started = time.perf_counter()
                model(**batch)
                spent.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(spent[2:])


def exact(model: nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(**batch)[OUTPUT]


def _approximated(model: nn.Module, plan: Plan | None, batches: list[Batch]) -> list[Tensor]:
    """The model with the plan's approximations, in torch: what is left to the error is fixed point and protocol."""
    if plan is None:
        return [exact(model, batch) for batch in batches]
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


def show(report: Report) -> list[Table | str]:
    if report["weights_are"] == BOTH:
        return [_ratios(report)]
    if AUDITED in report:
        return [_audited(report)]
    title = f"{report['model']}, length {report['length']}, batch {report['batch']}, plan {report['plan']}"
    if report["rtt_s"] is not None:
        title += f", on {report['rtt_s'] * 1e3:g} ms, {report['bandwidth'] / 1e6:g} Mbit/s"

    def took(phase: str) -> str:
        estimated = f", estimated {seconds(report[key])}" if (key := f"{phase}_estimated") in report else ""
        return f"{seconds(report[phase])}  ({report[f'{phase}_min']:.3f} to {report[f'{phase}_max']:.3f}){estimated}"

    online, up, down = (megabytes(report[name]) for name in ("online_bytes", "up_bytes", "down_bytes"))
    rows = {
        "plaintext, one thread": seconds(report["plaintext_s"]),
        "online": f"{took('online_s')}, {report['online_over_plaintext']:.1f}x plaintext",
        "offline": f"{took('offline_s')}, {report['offline_over_online']:.2f}x online",
        "CPU, all parties": seconds(report["cpu_s"]),
        "online traffic": f"{online}  (up {up}, down {down})",
        "offline traffic": megabytes(report["offline_bytes"]),
        "rounds": str(report["rounds"]),
        "largest error, float32": f"{report['max_abs_error']:.2e}",
        "largest error, approximated": f"{report['max_abs_error_approximated']:.2e}",
        "least cosine of a token": f"{report['cosine_min']:.6f}",
        "sites out of range": str(report["sites_out_of_range"]),
        "memory, largest party": f"{report['peak_rss_mb']:.0f} MB, of which libraries {report['libraries_rss_mb']:.0f}",
        "set-up, once": f"{seconds(report['setup_s'])}, {megabytes(report['setup_bytes'])}",
        "framing and TLS, session": megabytes(report["wire_overhead_bytes"]),
    }
    if "total_over_estimated" in report:
        rows["measured / estimated"] = f"{report['total_over_estimated']:.3f}"
    return [grid(title, rows)]


def _audited(report: Report) -> Table:
    plain, audited, ratios = report[PLAIN], report[AUDITED], report["audited_over_plain"]
    counts = f"{audited['audits']} audits before {2 * audited['queries']} answers, rate {report['audits']:g}"
    title = f"{plain['model']}, length {plain['length']}, plan {plain['plan']}: {counts}"
    table = columns(title, "an answer, on average", PLAIN, AUDITED, "ratio", "ratio, a run")
    units: dict[str, Callable[[float], str]] = {"s": seconds, "bytes": megabytes}
    for key in RUNS:
        shown = units.get(key.rpartition("_")[2], lambda value: f"{value:.1f}")
        values = (shown(one[f"{key}_mean"]) for one in (plain, audited))
        table.add_row(
            key.removesuffix("_s").replace("_", " "),
            *values,
            f"{ratios['answer'][key]:.2f}",
            f"{ratios['run'][key]:.2f}",
        )
    memory = (f"{one['peak_rss_mb']:.0f} MB" for one in (plain, audited))
    table.add_row("memory, largest party", *memory, f"{ratios['peak_rss_mb']:.2f}", "")
    return table


def _ratios(report: Report) -> Table:
    private, public, ratios = report[PRIVATE], report[PUBLIC], report["public_over_private"]
    title = f"{private['model']}, length {private['length']}, batch {private['batch']}, plan {private['plan']}"
    table = columns(title, "", *(f"{kind} weights" for kind in (PRIVATE, PUBLIC)), "public over private")
    units: dict[str, Callable[[float], str]] = {"s": seconds, "bytes": megabytes, "mb": lambda value: f"{value:.0f} MB"}
    names = {"peak_rss_mb": "memory, largest party", "peak_data_mb": "the same without libraries"}
    for key in COMPARED:
        shown = units.get(key.rpartition("_")[2], str)
        name = names.get(key, key.removesuffix("_s").replace("_", " "))
        table.add_row(name, shown(private[key]), shown(public[key]), f"{ratios[key]:.2f}")
    return table


def main(arguments: list[str] | None = None) -> int:
    options = model_parser("latency", "Measure private inference of one model.")
    options.add_argument("--queries", type=int, default=3, help="after one warm-up query (default 3)")
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--device", default="cpu", help="where all parties compute: cpu, cuda, cuda:1 (default cpu)")
    add_network(options)
    add_weights(options, BOTH)
    options.add_argument("--dealer", choices=[NO_DEALER], help="none: the two parties do without (default: with one)")
    options.add_argument("--audits", type=float, default=0.0, help="compare with runs of which so many are audits")
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
