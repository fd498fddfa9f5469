"""One of N parties, or their dealer, as a process of its own: `python -m blindformer.parties.many.worker NAME CONFIG`.

As local/worker.py: reports on stdout, commands on stdin, and nobody outlives whoever started it. A data owner is told
its inputs of each query; the one that asks starts the query when it is told.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...protocols.errors import BlindformerError
from ..certificates.contexts import client_context, server_context
from ..local.worker import IDLE_SECONDS, say, watch_stdin
from ..transport.tls import Listener, listen
from .roster import DEALER, LEADER, Roster


@dataclass
class Config:
    """What the launcher tells a worker. `addresses`: by party, of those that listen already. Times in seconds."""

    folder: str
    certificates: str
    scratch: str
    names: list[str]
    owners: dict[str, str] = field(default_factory=dict)
    recipient: str = ""
    data: str = ""
    timeout: float = 120.0
    wait: float = 60.0
    threads: int = 1
    length: int | None = None
    insecure: bool = False
    first_party: bool = False
    addresses: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def roster(self) -> Roster:
        return Roster(tuple(self.names), self.owners, self.recipient, self.data)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m blindformer.parties.many.worker NAME CONFIG.json\n")
        return 2
    name = arguments[0]
    try:
        config = Config(**json.loads(Path(arguments[1]).read_text()))
        commands = watch_stdin(config.scratch)
        if name == DEALER:
            _deal(config)
        else:
            _compute(config, name, commands)
    except BlindformerError as error:
        sys.stderr.write(f"blindformer {name}: {error}\n")
        return 1
    return 0


def _listen(config: Config, name: str, said: str = "port") -> Listener:
    """Listen and say where, before anything slow is imported: the next party can start meanwhile."""
    listener = listen("127.0.0.1", 0, server_context(config.certificates, name), timeout=config.timeout)
    say(**{said: listener.address[1]})
    return listener


def _deal_beside(config: Config) -> None:
    """INSECURE, for comparison: the dealer is a thread of the model's owner, who then knows every mask."""
    listener = _listen(config, DEALER, DEALER)
    config.addresses[DEALER] = list(listener.address[:2])

    def deal() -> None:
        with suppress(BlindformerError):  # the others see it end, and say so
            _deal(config, listener)

    threading.Thread(target=deal, daemon=True).start()


def _deal(config: Config, listener: Listener | None = None) -> None:
    import torch

    torch.set_num_threads(config.threads)
    heard = listener or _listen(config, DEALER)
    from ..session.gathering import deal_among

    deal_among(config.roster, heard, wait=config.wait, timeout=config.timeout, idle=IDLE_SECONDS)


def _compute(config: Config, name: str, commands: queue.Queue[dict[str, Any]]) -> None:
    roster = config.roster
    rank = roster.rank(name)
    listener = _listen(config, name) if rank < roster.size - 1 else None
    if config.first_party and rank == LEADER:
        _deal_beside(config)
    import torch

    torch.set_num_threads(config.threads)
    from ..session.gathering import Place
    from ..session.joining import join, load_held

    part, held = load_held(config.folder, roster, rank, config.length)
    addresses = {roster.rank(n): (a[0], a[1]) for n, a in config.addresses.items() if n != DEALER}
    context = client_context(config.certificates, name)
    place = Place(roster, rank, context, config.wait, config.timeout)
    dealer = config.addresses[DEALER]
    started = time.perf_counter()
    with join(place, held, addresses, listener, (dealer[0], dealer[1])) as joined:
        say(ready={"setup_s": time.perf_counter() - started, "setup_bytes": joined.party.setup_bytes})
        made = None if part is None else part.for_length(config.length)
        _queries(joined.party, made, Path(config.scratch), commands)


def _queries(party: Any, part: Any, scratch: Path, commands: queue.Queue[dict[str, Any]]) -> None:
    """Until the launcher says `close`, or the asking party says goodbye."""
    data = party.parties.owns_data(party.held.program)

    def values(command: dict[str, Any]) -> dict[str, Any]:
        from safetensors.torch import load_file

        path = Path(command["inputs"])
        inputs = load_file(path)
        path.unlink()  # the plain text leaves the disk as soon as it is read
        mine = [name for name, rank in party.owners.items() if rank == party.rank]
        return part.encode_inputs(inputs, mine)

    if not party.asks:
        own = (lambda number: values(commands.get())) if party.rank in data else (lambda number: {})
        while (answer := party.follow(IDLE_SECONDS, own)) is not None:
            _report(party, answer, scratch)
        return
    while "close" not in (command := commands.get()):
        if "ahead" in command:
            party.ask_ahead(command["ahead"])
            say(made=command["ahead"])
            continue
        try:
            mine = values(command)
        except BlindformerError as error:
            say(refused={"kind": type(error).__name__, "what": str(error)})
            continue
        _report(party, party.ask(mine, _progress), scratch)
    party.goodbye()


def _progress(phase: str, done: int, total: int) -> None:
    say(progress=[phase, done, total])


def _report(party: Any, answer: Any, scratch: Path) -> None:
    from safetensors.torch import save_file

    from ...models.compile import decode_outputs

    report: dict[str, Any] = {"timings": asdict(answer.timings), "dealer_peak_rss_mb": party.dealer_peak_rss_mb}
    if party.rank == party.parties.recipient_rank:
        try:
            outputs = decode_outputs(party.held.program, answer.outputs)
            file = scratch / f"outputs-{time.monotonic_ns()}.safetensors"
            save_file({name: value.contiguous().clone() for name, value in outputs.items()}, file)
            report["outputs"] = str(file)
        except BlindformerError as error:
            report["failed"] = {"kind": type(error).__name__, "what": str(error)}
    say(answer=report)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
