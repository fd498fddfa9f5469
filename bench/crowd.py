"""Many clients at once on replicas: who is answered, who is asked to retry later, and how fair it is.

    python -m bench.crowd --clients 200 --certificates 20

All clients begin together; each opens a session, asks once and leaves. README.md says what each figure means.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
from blindformer.parties.certificates.issuing import add_certificate
from blindformer.parties.client.client import Client
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.shared.postgres import Postgres, find_programs
from rich.table import Table

from .bulk import BulkBenchError, Deployed, prepare
from .commands import Say, publish, run_command
from .provenance import Measured, provenance

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class CrowdReport(Measured):
    """README.md."""

    clients: int
    certificates: int
    replicas: int
    seconds: float
    answered: int
    told_to_come_back: int
    failed: dict[str, int]
    wrong: int
    fewest: int
    most: int
    latency_p50_s: float
    latency_max_s: float
    memory_idle_mb: float
    memory_max_mb: float
    processes_max: int


def memory() -> tuple[float, int]:
    """MB of all processes of replicas and fronts together, and how many there are."""
    total = count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if {"serve", "dealer"} & set(process.cmdline()[2:4]):
                total, count = total + process.memory_full_info().pss, count + 1
    return total / 1e6, count


def measure(folder: Path, clients: int, certificates: int, replicas: int, wait: float, say: Say) -> CrowdReport:
    about = provenance("ray", "sqlalchemy")
    programs = find_programs()
    if programs is None:
        raise BulkBenchError("Postgres is not installed; Debian has it: apt-get install postgresql")
    say("compile")
    labels = list(prepare(folder, 1, texts=1).items())
    store = Postgres(programs)
    with contextlib.ExitStack() as held:
        held.callback(store.close)
        say("start")
        deployed = Deployed(folder, store, replicas)
        held.callback(deployed.close)
        names = [f"client-{number}" for number in range(certificates)]
        for name in names:
            add_certificate(deployed.certificates, "client", name=name)
        found: list[tuple[str, str, float]] = []
        together = threading.Barrier(clients)

        def ask(number: int) -> None:
            name, (text, label) = names[number % certificates], labels[number % len(labels)]
            client = Client(
                deployed.addresses["server"], dealer=deployed.addresses["dealer"], folder=folder / "compiled",
                certificates=deployed.certificates / name, cache=folder / "cache", wait=wait, timeout=300.0,
            )  # fmt: skip
            together.wait()
            began, became = time.monotonic(), ""
            try:
                answer = client.query(text, top_k=1).value[0]["label"]
                became = "answered" if answer == label else "wrong"
            except SlotsBusy:
                became = "told"
            except BlindformerError as error:
                became = str(error)
            finally:
                client.close()
            found.append((name, became, time.monotonic() - began))

        idle, most, processes = memory()[0], 0.0, 0
        started = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask, number) for number in range(clients)]
            while not all(one.done() for one in asking):
                size, count = memory()
                most, processes = max(most, size), max(processes, count)
                say(f"{len(found)} of {clients}")
                time.sleep(SAMPLE_SECONDS)
            for one in asking:
                one.result()
        seconds = time.monotonic() - started
    became = Counter(what for _, what, _ in found)
    each = Counter(dict.fromkeys(names, 0)) + Counter(name for name, what, _ in found if what == "answered")
    latencies = [took for _, what, took in found if what == "answered"] or [0.0]
    failed = {what: count for what, count in became.items() if what not in ("answered", "wrong", "told")}
    return CrowdReport(
        clients=clients, certificates=certificates, replicas=replicas, seconds=seconds, answered=became["answered"],
        told_to_come_back=became["told"], failed=failed, wrong=became["wrong"],
        fewest=min(each.get(name, 0) for name in names), most=max(each.values(), default=0),
        latency_p50_s=statistics.median(latencies), latency_max_s=max(latencies), memory_idle_mb=idle,
        memory_max_mb=most, processes_max=processes, **about,
    )  # fmt: skip


def show(found: CrowdReport) -> Table:
    table = Table("clients", "answered", "asked to retry later", "failed", "wrong", "of a certificate", "seconds", "MB")
    table.add_row(
        *map(str, (found.clients, found.answered, found.told_to_come_back, found.failed or 0, found.wrong)),
        f"{found.fewest} to {found.most}",
        f"{found.seconds:.1f} (half {found.latency_p50_s:.1f})",
        f"{found.memory_idle_mb:.0f} to {found.memory_max_mb:.0f}",
    )
    return table


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--certificates", type=int, default=20, help="that they have among them (default 20)")
    options.add_argument("--replicas", type=int, default=2, help="of server and dealer each (default 2)")
    options.add_argument("--wait", type=float, default=120.0, help="seconds that a client goes on asking (default 120)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    given = options.parse_args(arguments)

    def work(say: Say) -> None:
        with tempfile.TemporaryDirectory(prefix="crowd") as folder:
            publish(
                measure(Path(folder), given.clients, given.certificates, given.replicas, given.wait, say),
                given.format,
                show,
            )

    return run_command("bench.crowd", work)


if __name__ == "__main__":
    sys.exit(main())
