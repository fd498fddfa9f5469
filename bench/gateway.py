"""What the gateway adds to a query: the same text, alternately by `Client` and over HTTP from another process.

    python -m bench.gateway --model minilm --count 40

One gateway, one session, both parties on this machine. After each answer the next query's correlations are made ahead,
and `pause` seconds are waited, so that both ways find them made.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from blindformer.models.generation.folder import found_or_compiled_as_it_is
from blindformer.parties.client.base import BaseClient
from blindformer.parties.config import load_settings
from blindformer.parties.gateway import serving
from blindformer.parties.gateway.model_pool import ModelPool
from rich.table import Table

from .harness import Report, Say, carry_out, columns, parser

TEXT, NAME = "I forgot my login.", "measured"
# The other process: it asks once for each line of standard input, and says the seconds.
ASKER = """
import http.client, json, sys, time
host, port, model, text, key = sys.argv[1:]
connection, body = http.client.HTTPConnection(host, int(port)), json.dumps({"model": model, "input": text})
for _ in sys.stdin:
    started = time.perf_counter()
    connection.request("POST", "/v1/embeddings", body, {"authorization": f"Bearer {key}"})
    reply = connection.getresponse()
    reply.read()
    if reply.status != 200:
        sys.exit(f"the gateway answered with status {reply.status}")
    print(time.perf_counter() - started, flush=True)
"""


@contextmanager
def asked_both_ways(model: str) -> Iterator[tuple[BaseClient, Callable[[], float]]]:
    """A gateway with this model: its client, and what a request over HTTP takes."""
    listening: list[serving.Listening] = []
    servers: list[serving.GatewayServer] = []
    models: list[ModelPool] = []
    ready = threading.Event()

    def opened(model: ModelPool) -> None:
        models.append(model)
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
            words = [sys.executable, "-c", ASKER, *map(str, listening[0].address), NAME, TEXT, key.read_text().strip()]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            with subprocess.Popen(words, **pipes) as asker:
                ask, replies = asker.stdin, asker.stdout
                assert ask is not None
                assert replies is not None

                def over_http() -> float:
                    ask.write("\n")
                    return float(replies.readline())

                yield models[0].client, over_http
        finally:
            servers[0].stop()
            thread.join()


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    """Medians, in seconds; `added` is their difference as a part of the direct one."""
    torch.set_num_threads(1)
    both: list[tuple[float, float]] = []
    say("compile, start")
    with asked_both_ways(chosen.model) as (client, over_http):
        for number in range(chosen.count + 2):
            say(f"query {number + 1} of {chosen.count + 2}")
            time.sleep(chosen.pause)
            started = time.perf_counter()
            length = client.query(TEXT).length
            spent = time.perf_counter() - started
            client.prepare(length)
            time.sleep(chosen.pause)
            both.append((spent, over_http()))
    direct, gateway = (statistics.median(spent) for spent in zip(*both[2:], strict=True))  # after two warm-ups
    report = {name: getattr(chosen, name) for name in ("model", "count", "pause")}
    added = gateway - direct
    return report | {"direct_s": direct, "gateway_s": gateway, "added_s": added, "added": added / direct}


def show(report: Report) -> list[Table]:
    title = f"{report['model']}, {report['count']} queries each way, {report['pause']:g} s before each"
    table = columns(title, "by Client", "through the gateway", "added")
    added = f"{1000 * report['added_s']:.1f} ms, {report['added']:.1%}"
    table.add_row(f"{1000 * report['direct_s']:.1f} ms", f"{1000 * report['gateway_s']:.1f} ms", added)
    return [table]


def main(arguments: list[str] | None = None) -> int:
    options = parser("gateway", "What the gateway adds to a query.")
    options.add_argument("--model", default="minilm", help="an encoder, as `blindformer up` takes it")
    options.add_argument("--count", type=int, default=40, help="queries each way (default 40)")
    options.add_argument("--pause", type=float, default=0.7, help="seconds before each (default 0.7)")
    return carry_out(options, arguments, measure, show, packages=["fastapi", "uvicorn"])


if __name__ == "__main__":
    raise SystemExit(main())
