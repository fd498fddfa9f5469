"""One of N parties, or their dealer, as a process of its own: `python -m blindformer.parties.local.member NAME CONFIG`.

Started by members.py, which is told by JSON lines on stderr and tells a data owner, on stdin, the file of its inputs of
each query; the party that asks starts the query then. At the end of stdin the process ends, and the session's private
files with it.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...protocols.errors import BlindformerError
from ..certificates.contexts import client_context, server_context
from ..heap import keep_freed_memory
from ..session.parties import DEALER, Parties
from ..transport.tls import Listener

IDLE_SECONDS = 86400.0  # between queries nobody owes anybody a word; the launcher watches over the processes


@dataclass
class MemberConfig:
    """What the launcher tells a party. Times in seconds; `addresses` by party; `sockets`: those that this one inherits,
    by whose address they have."""

    folder: str
    certificates: str
    scratch: str
    names: list[str]
    addresses: dict[str, tuple[str, int]]
    owners: dict[str, str] = field(default_factory=dict)
    recipient: str = ""
    data: str = ""
    timeout: float = 120.0
    wait: float = 60.0
    threads: int = 1
    sockets: dict[str, int] = field(default_factory=dict)

    @property
    def roster(self) -> Parties:
        return Parties(tuple(self.names), self.owners, self.recipient, self.data)

    def listener(self, name: str) -> Listener | None:
        if name not in self.sockets:
            return None
        return Listener(socket.socket(fileno=self.sockets[name]), server_context(self.certificates, name), self.timeout)


def main(arguments: list[str]) -> int:
    name, file = arguments
    keep_freed_memory()
    try:
        config = MemberConfig(**json.loads(Path(file).read_text()))
        files = _watch_stdin(config.scratch)
        import torch

        torch.set_num_threads(config.threads)
        if name == DEALER:
            _deal(config)
        else:
            _take_part(config, name, files)
    except BlindformerError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def say(event: str, **what: Any) -> None:
    """One line to the launcher."""
    sys.stderr.write(json.dumps({"event": event, **what}) + "\n")
    sys.stderr.flush()


def _watch_stdin(scratch: str) -> queue.SimpleQueue[str]:
    files: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            files.put(line.strip())
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=read, daemon=True, name="stdin").start()
    return files


def _deal(config: MemberConfig) -> None:
    from ..session.gathering import deal_among

    listener = config.listener(DEALER)
    assert listener is not None
    deal_among(config.roster, listener, wait=config.wait, timeout=config.timeout, idle=IDLE_SECONDS)


def _deal_beside(config: MemberConfig) -> None:
    """INSECURE, for comparison: the dealer is a thread of the model's owner, who then knows every mask."""
    with suppress(BlindformerError):  # the others see it end, and say so
        _deal(config)


def _take_part(config: MemberConfig, name: str, files: queue.SimpleQueue[str]) -> None:
    if DEALER in config.sockets:
        threading.Thread(target=_deal_beside, args=(config,), daemon=True).start()
    from ..session.gathering import Place
    from ..session.joining import join, load_held

    roster = config.roster
    rank = roster.rank(name)
    part, held = load_held(config.folder, roster, rank)
    addresses = {roster.rank(other): place for other, place in config.addresses.items() if other != DEALER}
    place = Place(roster, rank, client_context(config.certificates, name), config.wait, config.timeout)
    started = time.perf_counter()
    with join(place, held, addresses, config.listener(name), config.addresses[DEALER]) as joined:
        party = joined.party
        say("ready", setup_s=time.perf_counter() - started, setup_bytes=party.setup_bytes)
        mine = [item for item, owner in party.owners.items() if owner == rank]

        def values(number: int = 0) -> dict[str, Any]:
            """This party's own of the next query; the one that asks waits for it here."""
            if not mine and not party.asks:
                return {}
            from safetensors.torch import load_file

            file = Path(files.get())
            inputs = load_file(file)
            file.unlink()  # the plain text leaves the disk as soon as it is read
            assert part is not None
            return part.for_length().encode_inputs(inputs, mine)

        while answer := party.ask(values(), _progress) if party.asks else party.follow(IDLE_SECONDS, values):
            _report(party, answer, Path(config.scratch))


def _progress(phase: str, done: int, total: int) -> None:
    say("progress", progress=[phase, done, total])


def _report(party: Any, answer: Any, scratch: Path) -> None:
    from safetensors.torch import save_file

    from ...models.compile import AnswerOutOfRange, decode_outputs

    report: dict[str, Any] = {"timings": asdict(answer.timings), "dealer_peak_rss_mb": party.dealer_peak_rss_mb}
    if party.rank == party.parties.recipient_rank:
        try:
            outputs = decode_outputs(party.held.program, answer.outputs)
            file = scratch / f"outputs-{time.monotonic_ns()}.safetensors"
            save_file({name: value.contiguous().clone() for name, value in outputs.items()}, file)
            report["outputs"] = str(file)
        except AnswerOutOfRange as error:
            report["out_of_range"] = str(error)
    say("answered", **report)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
