"""Many clients at once on replicas: who is answered, who is asked to retry later, and how fair it is.

    python -m bench.crowd --clients 200 --certificates 20

All clients begin together; each opens a session, asks once and leaves. README.md says what each figure means.
"""

import argparse
import contextlib
import statistics
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from blindformer.parties.certificates.issuing import add_certificate
from blindformer.parties.client.client import Client
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.errors import BlindformerError
from rich.table import Table

from .bulk import deployed_in, prepare
from .harness import Report, Say, carry_out, columns, parser

SAMPLE_SECONDS = 0.5


def memory() -> tuple[float, int]:
    """MB of all processes of replicas and fronts together, and how many there are."""
    total = count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if {"serve", "dealer"} & set(process.cmdline()[2:4]):
                total, count = total + process.memory_full_info().pss, count + 1
    return total / 1e6, count


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    with tempfile.TemporaryDirectory(prefix="crowd") as folder:
        return _measure(Path(folder), chosen.clients, chosen.certificates, chosen.replicas, chosen.wait, say)


def _measure(folder: Path, clients: int, certificates: int, replicas: int, wait: float, say: Say) -> Report:
    say("compile")
    labels = list(prepare(folder, 1, texts=1).items())
    say("start")
    with deployed_in(folder, replicas) as deployed:
        names = [f"client-{number}" for number in range(certificates)]
        for name in names:
            add_certificate(deployed.certificates, "client", name=name)
        outcomes: list[tuple[str, str, float]] = []  # certificate, what became of the client, seconds
        together = threading.Barrier(clients)

        def ask(number: int) -> None:
            name, (text, label) = names[number % certificates], labels[number % len(labels)]
            client = Client(
                deployed.addresses["server"], dealer=deployed.addresses["dealer"], folder=folder / "compiled",
                certificates=deployed.certificates / name, cache=folder / "cache", wait=wait, timeout=300.0,
            )  # fmt: skip
            together.wait()
            began, outcome = time.monotonic(), ""
            try:
                answer = client.query(text, top_k=1).value[0]["label"]
                outcome = "answered" if answer == label else "wrong"
            except SlotsBusy:
                outcome = "busy"
            except BlindformerError as error:
                outcome = str(error)
            finally:
                client.close()
            outcomes.append((name, outcome, time.monotonic() - began))

        idle, most, processes = memory()[0], 0.0, 0
        started = time.monotonic()
        with ThreadPoolExecutor(clients) as pool:
            asking = [pool.submit(ask, number) for number in range(clients)]
            while not all(one.done() for one in asking):
                size, count = memory()
                most, processes = max(most, size), max(processes, count)
                say(f"{len(outcomes)} of {clients}")
                time.sleep(SAMPLE_SECONDS)
            for one in asking:
                one.result()
        spent = time.monotonic() - started
    counts = Counter(outcome for _, outcome, _ in outcomes)
    each = Counter(name for name, outcome, _ in outcomes if outcome == "answered")
    latencies = [took for _, outcome, took in outcomes if outcome == "answered"] or [0.0]
    return {
        "clients": clients,
        "certificates": certificates,
        "replicas": replicas,
        "seconds": spent,
        "answered": counts["answered"],
        "told_to_come_back": counts["busy"],
        "failed": {what: count for what, count in counts.items() if what not in ("answered", "wrong", "busy")},
        "wrong": counts["wrong"],
        "fewest": min(each[name] for name in names),
        "most": max(each.values(), default=0),
        "latency_p50_s": statistics.median(latencies),
        "latency_max_s": max(latencies),
        "memory_idle_mb": idle,
        "memory_max_mb": most,
        "processes_max": processes,
    }


def show(report: Report) -> list[Table]:
    names = ("clients", "answered", "asked to retry later", "failed", "wrong", "of a certificate", "seconds", "MB")
    table = columns("", *names)
    table.add_row(
        *(str(report[name] or 0) for name in ("clients", "answered", "told_to_come_back", "failed", "wrong")),
        f"{report['fewest']} to {report['most']}",
        f"{report['seconds']:.1f} (half {report['latency_p50_s']:.1f})",
        f"{report['memory_idle_mb']:.0f} to {report['memory_max_mb']:.0f}",
    )
    return [table]


def main(arguments: list[str] | None = None) -> int:
    options = parser("crowd", "Many clients at once on replicas.")
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--certificates", type=int, default=20, help="that they have among them (default 20)")
    options.add_argument("--replicas", type=int, default=2, help="of server and dealer each (default 2)")
    options.add_argument("--wait", type=float, default=120.0, help="seconds that a client goes on asking (default 120)")
    return carry_out(options, arguments, measure, show, packages=["ray", "sqlalchemy"])


if __name__ == "__main__":
    raise SystemExit(main())
