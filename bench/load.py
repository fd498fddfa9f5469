"""How a service stands up to many clients: one pipelined client alone, then several at once, in the same deployment.

    python -m bench.load --clients 8 --seconds 120

Every client is a process of its own with one session, which it keeps; every answer is checked. README.md says what each
figure means.
"""

import argparse
import statistics
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import psutil
from blindformer.parties.certificates.issuing import add_certificate
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.tests.shared.clients import Asker, ClientProcess, hear
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.site import Site, compile_into, compile_questions, deploy
from rich.table import Table

from .harness import BenchError, Report, Say, carry_out, columns, model_parser
from .workloads import WORKLOADS, build

PATIENCE = 120.0  # seconds for a client to open its session, or to end it
SAMPLE_SECONDS = 1.0
SMALL = "small"  # a classifier of one layer


def keep_asking(asker: Asker, pipe: Connection, pause: float = 0.0) -> None:
    """One session, one query after the other, each with the next one's correlations made meanwhile. It begins when it
    is told until when (by the monotonic clock), and may be told something else later. `pause`: seconds between two."""
    with asker.connect() as party:
        party.set_up()
        asker.ask(party, more=True)  # a warm-up: the first query meets cold caches
        asker.say("ready")
        end: float = pipe.recv()
        while True:
            if pipe.poll():
                end = pipe.recv()
            began = time.monotonic()
            more = began < end
            try:
                right = asker.ask(party, more=more)
            except SlotsBusy as busy:
                asker.say("busy")
                time.sleep(busy.retry_after)
                continue
            asker.say("answered", right=right, seconds=time.monotonic() - began)
            if not more:
                return
            time.sleep(pause)


class Memory:
    """Watches the memory of a deployment's services from a thread: private pages and their part of shared ones."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._stop = threading.Event()
        self.samples: list[tuple[float, float]] = []  # seconds (monotonic), MB
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def now(self) -> float:
        return self._deployment.server.memory() + self._deployment.dealer.memory()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.samples.append((time.monotonic(), self.now()))


def put_load(deployment: Deployment, site: Site, clients: int, seconds: float) -> Report:
    """`clients` at once for `seconds`, after every one has opened its session and asked once. Errors: BenchError.

    Each has a certificate of its own, as customers have: one certificate gets a share of the sessions only.
    """
    names = [f"client-{number}" for number in range(clients)]
    for name in names:
        add_certificate(site.certificates, "client", name=name, force=True)
    memory = Memory(deployment)
    idle = memory.now()
    crowd = [ClientProcess(site, keep_asking, name) for name in names]
    try:
        for client in crowd:
            if client.wait_for("ready", PATIENCE) is None:
                raise BenchError(f"a client did not begin: {client.ending}\n{deployment.server.tail()}")
        began, before, busy = time.monotonic(), _cpu(deployment, crowd), _busy()
        end = began + seconds
        with memory:
            for client in crowd:
                client.tell(end)
            hear(crowd, end)
            after, busy = _cpu(deployment, crowd), _busy() - busy
        for client in crowd:
            if not client.finish(PATIENCE) or client.ending is None or client.ending["event"] != "end":
                raise BenchError(f"a client failed: {client.ending}\n{deployment.server.tail()}")
    finally:
        for client in crowd:
            client.close()
    cpu = {role: after[role] - before[role] for role in after}
    answers = [[e for e in client.events if e["event"] == "answered"] for client in crowd]
    inside = [[e for e in each if e["at"] <= end] for each in answers]
    waits = sorted(e["seconds"] for each in inside for e in each)
    if not waits:
        raise BenchError(f"no answer in {seconds:g} seconds: ask for more seconds")
    cuts = statistics.quantiles(waits, n=20, method="inclusive") if len(waits) > 1 else waits * 19
    values = [value for _, value in memory.samples] or [memory.now()]
    return {
        "clients": clients,
        "seconds": seconds,
        "queries": len(waits),
        "wrong": sum(not e["right"] for each in answers for e in each),
        "busy": sum(e["event"] == "busy" for client in crowd for e in client.events),
        "per_second": len(waits) / seconds,
        "latency_p50_s": statistics.median(waits),
        "latency_p95_s": cuts[18],
        "latency_max_s": waits[-1],
        "fewest": min(len(each) for each in inside),
        "most": max(len(each) for each in inside),
        "cpu_cores": sum(cpu.values()) / seconds,
        "cpu_s": cpu,
        "others_cores": max(0.0, busy - sum(cpu.values())) / seconds,
        "memory_idle_mb": idle,
        "memory_max_mb": max(values),
        "memory_slope_mb_per_minute": _slope(memory.samples),
        "memory_mb": [round(value, 1) for value in values],
    }


def _cpu(deployment: Deployment, crowd: list[ClientProcess]) -> dict[str, float]:
    """Seconds of CPU that the services' and the clients' processes have used, by party."""
    services = {"server": deployment.server, "dealer": deployment.dealer}
    pids = {role: [one.pid, *(child.pid for child in one.children())] for role, one in services.items()}
    pids["client"] = [client.pid for client in crowd]
    return {role: sum(map(_seconds, ids)) for role, ids in pids.items()}


def _busy() -> float:
    """Seconds of CPU that all processes of the machine have used."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def _slope(samples: list[tuple[float, float]]) -> float:
    """MB a minute, by least squares over the second half, when all sessions are warm."""
    late = samples[len(samples) // 2 :]
    if len(late) < 3:
        return 0.0
    return 60 * statistics.linear_regression([at for at, _ in late], [value for _, value in late]).slope


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Both phases. Errors: BlindformerError."""
    with tempfile.TemporaryDirectory(prefix="blindformer-load-") as folder:
        return _measure(Path(folder), chosen, say)


def _measure(folder: Path, chosen: argparse.Namespace, say: Say) -> Report:
    say("compile")
    if chosen.model == SMALL:
        compile_into(folder / "compiled", length=chosen.length, plan=chosen.plan)
    else:
        work = build(chosen.model, chosen.length)
        parts, kept = (work.model, work.calibration, work.queries), ["last_hidden_state"]
        compile_questions(folder / "compiled", *parts, chosen.plan, name=work.name, outputs=kept)
    with deploy(folder, server={"workers": chosen.workers}, timeout=chosen.timeout, apart=True) as (deployment, site):
        say("one client")
        single = put_load(deployment, site, 1, chosen.single_seconds or chosen.seconds / 2)
        say(f"{chosen.clients} clients")
        many = put_load(deployment, site, chosen.clients, chosen.seconds)
        for running in (deployment.server, deployment.dealer):
            running.stop()
    report = {name: getattr(chosen, name) for name in ("model", "length", "plan", "workers")}
    return report | {"single": single, "many": many, "ratio": many["per_second"] / single["per_second"]}


def show(report: Report) -> list[Table | str]:
    single, many = report["single"], report["many"]
    title = f"{report['model']}, length {report['length']}, plan {report['plan']}, {report['workers']} workers"
    table = columns(title, "", "1 client", f"{many['clients']} clients")
    rows = {
        "seconds": "{seconds:g}",
        "queries": "{queries}",
        "a second": "{per_second:.2f}",
        "of a client, fewest to most": "{fewest} to {most}",
        "latency, p50": "{latency_p50_s:.3f} s",
        "latency, p95": "{latency_p95_s:.3f} s",
        "wrong answers": "{wrong}",
        "asked to retry later": "{busy}",
        "cores used, by all": "{cpu_cores:.2f}",
        "memory of the services, idle": "{memory_idle_mb:.0f} MB",
        "memory, most": "{memory_max_mb:.0f} MB",
        "memory, slope": "{memory_slope_mb_per_minute:+.1f} MB/min",
    }
    for name, form in rows.items():
        table.add_row(name, form.format(**single), form.format(**many))
    return [table, f"{many['clients']} clients reach {report['ratio']:.2f} of what one reaches"]


def broken(report: Report) -> str:
    wrong = sum(report[phase]["wrong"] for phase in ("single", "many"))
    return f"{wrong} wrong answers" if wrong else ""


def main(arguments: list[str] | None = None) -> int:
    options = model_parser("load", "One client alone, then many at once.", (SMALL, *WORKLOADS))
    options.set_defaults(model=SMALL, length=16, timeout=60.0)
    options.add_argument("--clients", type=int, default=8)
    options.add_argument("--seconds", type=float, default=120, help="with all clients (default 120)")
    options.add_argument("--single-seconds", type=float, default=0, help="with one client (default: half of it)")
    options.add_argument("--workers", type=int, default=2, help="queries that compute at once (default 2)")
    return carry_out(options, arguments, measure, show, broken=broken)


if __name__ == "__main__":
    raise SystemExit(main())
