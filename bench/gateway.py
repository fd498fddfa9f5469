"""What the gateway adds to a query: the same text, alternately by `Client` and over HTTP from another process.

    python -m bench.gateway --model minilm --count 40

One gateway, one session, both parties on this machine. After each answer the next query's correlations are made ahead,
and `pause` seconds are waited, so that both ways find them made.
"""

# pyright: reportMissingImports=false
# (the editable install maps `blindformer` to this folder by an import hook, which pyright does not follow)

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from blindformer.models.generation.folder import found_or_compiled_as_it_is
from blindformer.parties.client.base import BaseClient
from blindformer.parties.config import load_settings
from blindformer.parties.gateway import serving
from blindformer.parties.gateway.model_pool import ModelPool
from rich.table import Table

from .commands import Say, publish, run_command
from .provenance import Measured, provenance

TEXT, NAME = "I forgot my login.", "measured"
ASKER = Path(__file__).with_name("http_asker.py")


@dataclass(frozen=True, slots=True)
class AddedByGateway(Measured):
    """Medians, in seconds; `added` is their difference, in seconds and as a part of the direct one."""

    model: str
    count: int
    pause: float
    direct_s: float
    gateway_s: float
    added_s: float
    added: float


@contextmanager
def gateway_of(model: str) -> Iterator[tuple[serving.Listening, str, ModelPool]]:
    """A gateway with this model, called NAME, whose parties have met: where it listens, its key, and the model."""
    listening: list[serving.Listening] = []
    servers: list[serving.GatewayServer] = []
    met: list[ModelPool] = []
    ready = threading.Event()

    def opened(model: ModelPool) -> None:
        met.append(model)
        ready.set()

    with tempfile.TemporaryDirectory() as folder:
        key, cache = Path(folder) / "key", load_settings().client.cache
        section = {"folder": found_or_compiled_as_it_is(model, cache).absolute(), "server": "local"}
        flags = {"gateway.listen": "127.0.0.1:0", "gateway.key": key, "gateway.models": {NAME: section}}
        settings = load_settings(None, **flags)
        thread = threading.Thread(target=serving.serve, args=(settings, listening.append, opened, servers.append))
        thread.start()
        try:
            ready.wait()
            yield listening[0], key.read_text().strip(), met[0]
        finally:
            servers[0].stop()
            thread.join()


@contextmanager
def offered(model: str) -> Iterator[tuple[BaseClient, Callable[[], float]]]:
    """A gateway with this model: its client, and what a request over HTTP takes."""
    with gateway_of(model) as (listening, key, met):
        words = [str(ASKER), *map(str, listening.address), NAME, TEXT]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with subprocess.Popen([sys.executable, *words], **pipes) as asker:
            ask, replies = asker.stdin, asker.stdout
            assert ask is not None
            assert replies is not None
            ask.write(f"{key}\n")

            def over_http() -> float:
                ask.write("\n")
                return float(replies.readline())

            yield met.client, over_http


def measured(model: str, count: int, pause: float, say: Say) -> tuple[list[float], list[float]]:
    """Seconds of queries by the client, and over HTTP."""
    direct, over_http = [], []
    say("compile, start")
    with offered(model) as (client, ask):
        for number in range(count + 2):
            say(f"query {number + 1} of {count + 2}")
            time.sleep(pause)
            started = time.perf_counter()
            length = client.query(TEXT).length
            direct.append(time.perf_counter() - started)
            client.prepare(length)
            time.sleep(pause)
            over_http.append(ask())
    return direct[2:], over_http[2:]


def main(arguments: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(prog="python -m bench.gateway", description="What the gateway adds to a query.")
    options.add_argument("--model", default="minilm", help="an encoder, as `blindformer up` takes it")
    options.add_argument("--count", type=int, default=40, help="queries each way (default 40)")
    options.add_argument("--pause", type=float, default=0.7, help="seconds before each (default 0.7)")
    options.add_argument("--format", choices=["table", "json"], default="table")
    chosen = options.parse_args(arguments)

    def work(say: Say) -> None:
        torch.set_num_threads(1)
        about = provenance("fastapi", "uvicorn")
        direct, over_http = (
            statistics.median(seconds) for seconds in measured(chosen.model, chosen.count, chosen.pause, say)
        )
        added = over_http - direct
        report = AddedByGateway(
            **about,
            model=chosen.model,
            count=chosen.count,
            pause=chosen.pause,
            direct_s=direct,
            gateway_s=over_http,
            added_s=added,
            added=added / direct,
        )
        publish(report, chosen.format, table)

    return run_command("bench.gateway", work)


def table(report: AddedByGateway) -> Table:
    grid = Table(box=None, title=f"{report.model}, {report.count} queries each way, {report.pause:g} s before each")
    for name in ("by Client", "through the gateway", "added"):
        grid.add_column(name, justify="right")
    shown = f"{1000 * report.added_s:.1f} ms, {report.added:.1%}"
    grid.add_row(f"{1000 * report.direct_s:.1f} ms", f"{1000 * report.gateway_s:.1f} ms", shown)
    return grid


if __name__ == "__main__":
    sys.exit(main())
