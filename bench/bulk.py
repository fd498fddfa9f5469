"""A bulk job through replicas of server and dealer, while the client, a server, a dealer and Postgres are killed.

    python -m bench.bulk --rows 20000

Every command is the one that a deployment runs. README.md says what each figure means.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import torch
from blindformer.models.building import compile_folder
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.client.client import LocalClient
from blindformer.parties.client.local import find_local
from blindformer.parties.session.spool import Spool
from blindformer.tests.shared.deployment import replicas
from blindformer.tests.shared.postgres import Postgres, find_programs
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config
from pyarrow import parquet
from rich.table import Table

from .harness import BenchError, Report, Say, carry_out, columns, parser

KILLS = ("client", "server", "dealer", "Postgres", "front")
WORDS = ["the", "a", "is", "it", "not", "what", "how", "good", "bad", "my", "your", "lost", "found", "red", "blue"]
TEXTS, DISTINCT, START_SECONDS, STORE_GONE_SECONDS, LOOK_SECONDS = 8, 200, 120.0, 3.0, 1.0


class Deployed:
    """Replicas of server and dealer, with a ledger in Postgres; and the job's client."""

    def __init__(self, folder: Path, store: Postgres, replicas: int) -> None:
        self.folder, self.store, self.url, self.replicas = folder, store, store.new(), replicas
        self.certificates = folder / "certificates"
        make_certificates(self.certificates, keep_ca_key=True)
        self.log = (folder / "log").open("a")
        self.addresses: dict[str, str] = {}
        self.services: dict[str, subprocess.Popen[Any]] = {}
        self.start("dealer")
        self.start("server")

    def start(self, role: str) -> None:
        """From now on it listens where it has listened before."""
        shared = ["--certs", self.certificates, "--engine", "ray", "--replicas", self.replicas, "--workers", 1]
        words = ["dealer", *shared]
        if role == "server":
            ledger = ["--spool", self.folder / "spool", "--database", self.url]
            words = ["serve", self.folder / "compiled", "--dealer", self.addresses["dealer"], *ledger, *shared]
        log = self.folder / f"{role}.log"
        with log.open("w") as stream:
            listen = ["--listen", self.addresses.get(role, "127.0.0.1:0"), "--log-format", "json"]
            self.services[role] = subprocess.Popen([*command(), *map(str, [*words, *listen])], stderr=stream)
        end = time.monotonic() + START_SECONDS
        while '"ready"' not in (text := log.read_text()):
            if self.services[role].poll() is not None or time.monotonic() > end:
                raise BenchError(f"{role}: did not start: {text[-300:]}")
            time.sleep(0.1)
        self.addresses[role] = text.split('"address":')[1].split('"')[1]

    def ask(self, source: Path, out: Path, sessions: int) -> subprocess.Popen[Any]:
        places = [part for role in ("server", "dealer") for part in (f"--{role}", self.addresses[role])]
        words = ["query", self.folder / "compiled", "--certs", self.certificates, *places]
        words += ["--spool", self.folder / "client-spool", "--file", source, "--out", out, "--sessions", sessions]
        return subprocess.Popen([*command(), *map(str, words)], stderr=self.log, stdout=self.log)

    def kill(self, what: str, client: subprocess.Popen[Any]) -> None:
        """And start again what nobody else does."""
        if what == "client":
            client.kill()
            client.wait()
        elif what == "Postgres":
            self.store.kill()
            time.sleep(STORE_GONE_SECONDS)
            self.store.start()
        elif what == "front":
            self.services["server"].kill()
            self.services["server"].wait()
            self.start("server")
        else:
            name = "serve" if what == "server" else what
            chosen = psutil.Process(random.choice(list(replicas(name, self.certificates))))
            for process in [chosen, *chosen.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def close(self) -> None:
        for service in reversed(self.services.values()):
            service.send_signal(signal.SIGTERM)
            service.wait()


def command() -> list[str]:
    return [sys.executable, "-m", "blindformer"]


def prepare(folder: Path, rows: int, texts: int = TEXTS) -> dict[str, str]:
    """A small classifier, compiled for so many texts a query, and a table. Returns the label that `clear` gives."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    config = tiny_config(num_labels=3, id2label={0: "calm", 1: "glad", 2: "cross"}, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    compile_folder(folder / "model", folder / "compiled", lengths=[16], texts=texts)
    draw = random.Random(0)
    sentences = [" ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(DISTINCT)]
    parquet.write_table(pa.table({"text": [draw.choice(sentences) for _ in range(rows)]}), folder / "letters.parquet")
    with LocalClient(find_local("clear"), folder / "compiled") as client:
        results = client.query_many(sentences, top_k=1)
    return {text: result.value[0]["label"] for text, result in zip(sentences, results, strict=True)}


@contextlib.contextmanager
def deployed_in(folder: Path, replicas: int) -> Iterator[Deployed]:
    """Replicas of what `prepare` has compiled, and a Postgres of their own. Errors: BenchError."""
    programs = find_programs()
    if programs is None:
        raise BenchError("Postgres is not installed; Debian has it: apt-get install postgresql")
    with contextlib.closing(Postgres(programs)) as store, contextlib.closing(Deployed(folder, store, replicas)) as site:
        yield site


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    with tempfile.TemporaryDirectory(prefix="bulk") as folder:
        return _measure(Path(folder), chosen.rows, chosen.replicas, chosen.sessions, chosen.kills, say)


def _measure(folder: Path, rows: int, replicas: int, sessions: int, kills: int, say: Say) -> Report:
    say("compile")
    labels = prepare(folder, rows)
    source, out = folder / "letters.parquet", folder / "answers.parquet"
    say("start")
    with deployed_in(folder, replicas) as deployed:
        due = [(rows * (number + 1) // (kills + 1), KILLS[number % len(KILLS)]) for number in range(kills)]
        started, client = time.monotonic(), deployed.ask(source, out, sessions)
        while (code := client.poll()) != 0:
            if code is not None:
                if code != -signal.SIGKILL:
                    raise BenchError(f"the client ended: {(folder / 'log').read_text()[-300:]}")
                client = deployed.ask(source, out, sessions)
            done = sum(1 for _ in answered(out))
            say(f"{done} of {rows} rows")
            if due and done >= due[0][0]:
                deployed.kill(due.pop(0)[1], client)
            time.sleep(LOOK_SECONDS)
        spent = time.monotonic() - started
        ledgers = [Spool(folder / "spool", database=deployed.url), Spool(folder / "client-spool")]
        uses = [spool.ledger.audit() for spool in ledgers]
    table = parquet.read_table(out).to_pylist()
    seen, texts = Counter(row["line"] for row in table), parquet.read_table(source)["text"].to_pylist()
    return {
        "rows": rows,
        "replicas": replicas,
        "sessions": sessions,
        "kills": dict(Counter(KILLS[number % len(KILLS)] for number in range(kills))),
        "seconds": spent,
        "per_second": rows / spent,
        "missing": rows - len(seen),
        "twice": sum(count > 1 for count in seen.values()),
        "wrong": sum(row["label"] != labels[texts[row["line"] - 1]] for row in table),
        "used": len(uses[0]),
        "reused": sum(len(use) - len({(session, number) for _, session, number in use}) for use in uses),
    }


def answered(out: Path) -> Iterator[bytes]:
    """What is on record so far."""
    for path in out.with_name(f"{out.name}.progress").glob("*.*"):
        if path.suffix != ".json":
            with contextlib.suppress(OSError), path.open("rb") as lines:
                yield from lines


def show(report: Report) -> list[Table]:
    names = ("a second", "killed", "missing", "twice", "wrong", "correlations used", "reused")
    table = columns("", "rows", *names, left=["killed"])
    killed = ", ".join(f"{name} {count}" for name, count in report["kills"].items())
    counts = (str(report[name]) for name in ("missing", "twice", "wrong", "used", "reused"))
    table.add_row(f"{report['rows']:,}", f"{report['per_second']:.1f}", killed or "nobody", *counts)
    return [table]


def broken(report: Report) -> str:
    faults = any(report[name] for name in ("missing", "twice", "wrong", "reused"))
    return "a row is missing, there twice or wrong, or a correlation was used twice" if faults else ""


def main(arguments: list[str] | None = None) -> int:
    options = parser("bulk", "A bulk job through replicas, while client, services and Postgres are killed.")
    options.add_argument("--rows", type=int, default=20000)
    options.add_argument("--replicas", type=int, default=2, help="of server and dealer each (default 2)")
    options.add_argument("--sessions", type=int, default=2, help="of the client at once (default 2)")
    options.add_argument("--kills", type=int, default=5, help="over the job (default 5)")
    os.environ["OMP_NUM_THREADS"] = "1"
    return carry_out(options, arguments, measure, show, packages=["ray", "sqlalchemy", "pyarrow"], broken=broken)


if __name__ == "__main__":
    raise SystemExit(main())
