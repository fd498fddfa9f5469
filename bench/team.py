"""Twenty people ask one gateway for a while: answers, limits by person, latency and memory.

    python -m bench.team --model minilm --seconds 600

It starts `blindformer up` with keys of its own, so all parties run on this machine. Each person asks again when an
answer is there. The first person may ask four times a minute, all others 600 times.
"""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

import httpx
import psutil
from blindformer.models.generation.folder import talks
from blindformer.parties.gateway.access import add_key
from rich.table import Table

from .harness import BenchError, Report, Say, carry_out, columns, parser

FEW, MANY = 4, 600  # requests a minute
SHOWN = ("statuses", "answers_of_first", "limit_of_first", "answers_of_others", "median_s", "p99_s", "memory_mb")
SETTINGS = """[gateway]
keys = "{0}/keys"
key = "{0}/key"
state = "{0}/state"
requests_per_minute = {1}
conversations = {2}
[gateway.people.person0]
requests_per_minute = {3}
"""


def ask(http: httpx.Client, key: str, path: str, body: dict, until: float, answers: list[tuple[float, int]]) -> None:
    """Ask until then. Of each request: its seconds, and the status."""
    while time.monotonic() < until:
        started = time.monotonic()
        status = http.post(path, json=body, headers={"authorization": f"Bearer {key}"}).status_code
        answers.append((time.monotonic() - started, status))
        if status == 429:
            time.sleep(1)


def memory(process: psutil.Process) -> int:
    """Bytes of the gateway, servers and dealers; what they share is counted once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    model, people, seconds, conversations = chosen.model, chosen.people, chosen.seconds, chosen.conversations
    with TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        file, port = Path(folder, "blindformer.toml"), free.getsockname()[1]
        free.close()
        file.write_text(SETTINGS.format(folder, MANY, conversations, FEW))
        keys = [add_key(Path(folder, "keys"), f"person{number}") for number in range(people)]
        body, path = {"model": model, "input": "I forgot my login."}, "/v1/embeddings"
        if talks(model):
            messages = [{"role": "user", "content": "What is the capital of France?"}]
            body, path = {"model": model, "messages": messages, "max_tokens": 8}, "/v1/chat/completions"
        command = [sys.executable, "-m", "blindformer", "up", model, "--config", str(file), "--port", str(port)]
        with subprocess.Popen(command) as started:
            gateway, answers, most = psutil.Process(started.pid), [[] for _ in keys], 0
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
                    while not _ready(http):
                        if started.poll() is not None:
                            raise BenchError("the gateway has ended")
                        time.sleep(1)
                    say("ask")
                    until, before = time.monotonic() + seconds, memory(gateway)
                    asked = [(http, key, path, body, until, own) for key, own in zip(keys, answers, strict=True)]
                    threads = [threading.Thread(target=ask, args=one) for one in asked]
                    for thread in threads:
                        thread.start()
                    while any(thread.is_alive() for thread in threads):
                        most = max(most, memory(gateway))
                        time.sleep(1)
                    after = memory(gateway)
            finally:
                started.send_signal(signal.SIGTERM)
    good = [[took for took, status in own if status == 200] for own in answers]
    taken = sorted(took for own in good for took in own)
    return {
        "model": model, "people": people, "seconds": seconds, "conversations": conversations,
        "statuses": Counter(str(status) for own in answers for _, status in own),
        "answers_of_first": len(good[0]), "limit_of_first": FEW * (int(seconds // 60) + 1),
        "answers_of_others": [min(map(len, good[1:])), max(map(len, good[1:]))],
        "median_s": round(median(taken), 3), "p99_s": round(quantiles(taken, n=100)[-1], 3),
        "memory_mb": {"before": before // 10**6, "most": most // 10**6, "after": after // 10**6},
    }  # fmt: skip


def _ready(http: httpx.Client) -> bool:
    try:
        return http.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def show(report: Report) -> list[Table | str]:
    table = columns(f"{report['people']} people ask {report['model']} for {report['seconds']:g} s", "", "")
    for name in SHOWN:
        table.add_row(name.replace("_", " "), str(report[name]))
    return [table]


def main(arguments: list[str] | None = None) -> int:
    options = parser("team", (__doc__ or "").splitlines()[0])
    options.add_argument("--model", default="minilm")
    options.add_argument("--people", type=int, default=20)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--conversations", type=int, default=4, help="requests that the gateway answers side by side")
    return carry_out(options, arguments, measure, show)


if __name__ == "__main__":
    raise SystemExit(main())
