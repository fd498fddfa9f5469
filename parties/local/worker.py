"""One party as a process of its own: `python -m blindformer.parties.local.worker server|dealer|client CONFIG.json`.

Started by launcher.py, which talks to it in JSON lines: reports come on stdout, the client's queries go to its stdin.
When stdin closes, whoever started us is gone, and so are we: no orphan is ever left behind.

Each process reads its own part of the compiled folder and nothing else: the weights exist in the server's memory alone,
the inputs in the client's.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, CorrelationError, PeerError
from ..certificates.contexts import client_context, server_context
from ..heap import keep_freed_memory
from ..transport.tls import Listener, listen

IDLE_SECONDS = 86400.0  # between queries nobody owes anybody a word; the launcher watches over the processes


@dataclass
class Config:
    """What the launcher tells a worker. Times in seconds.

    folder    the compiled folder, or this party's part of it; `length`: which of its programs, if there are several
    audit     the server reports, after each query, whether what it has opened looks uniform
    network   name, round-trip time and bandwidth (bits a second) to imitate on every connection
    """

    folder: str
    certificates: str
    scratch: str
    timeout: float = 120.0
    threads: int = 1
    core: int | None = None
    audit: bool = False
    length: int | None = None
    network: tuple[str, float, float] | None = None
    server: tuple[str, int] | None = None
    dealer: tuple[str, int] | None = None

    def address(self, role: str) -> tuple[str, int]:
        found = {"server": self.server, "dealer": self.dealer}[role]
        assert found is not None
        return found

    def shaped(self, channel: Channel) -> Channel:
        """The channel, as if it ran over `network`."""
        if self.network is None:
            return channel
        from ...models.pricing import Network
        from ..transport.shaping import ShapedChannel

        return ShapedChannel(channel, Network(*self.network))

    @classmethod
    def load(cls, path: str) -> Config:
        fields = json.loads(Path(path).read_text())
        for name in ("server", "dealer", "network"):
            fields[name] = tuple(fields[name]) if fields.get(name) else None
        return cls(**fields)


def say(**report: Any) -> None:
    """One line to the launcher."""
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("server", "dealer", "client"):
        sys.stderr.write("usage: python -m blindformer.parties.local.worker server|dealer|client CONFIG.json\n")
        return 2
    role = arguments[0]
    keep_freed_memory()
    try:
        config = Config.load(arguments[1])
        commands = watch_stdin(config.scratch)
        if config.core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {config.core})
        {"server": _serve, "dealer": _deal, "client": _ask}[role](config, commands)
    except BlindformerError as error:
        sys.stderr.write(f"blindformer {role}: {error}\n")
        return 1
    return 0


def watch_stdin(scratch: str) -> queue.Queue[dict[str, Any]]:
    """Commands from the launcher. At the end of stdin the process ends, and the session's private files with it."""
    commands: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            commands.put(json.loads(line))
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=read, daemon=True, name="stdin").start()
    return commands


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


def _listen(config: Config, role: str) -> Listener:
    """Listen and say where, before anything slow is imported or loaded: the others can start meanwhile."""
    listener = listen("127.0.0.1", 0, server_context(config.certificates, role), timeout=config.timeout)
    say(port=listener.address[1])
    return listener


def _deal(config: Config, commands: queue.Queue[dict[str, Any]]) -> None:
    with _listen(config, "dealer") as listener:
        _use_threads(config.threads)
        from ..session.dealer import DealerParty, left_for, receive_seed
        from ..session.meeting import accept, meet_as_dealer, tell
        from ..session.seeds import MemorySeeds

        seeds = MemorySeeds()
        while True:  # first the client, which leaves its seed, then the server
            channel, hello = accept(
                listener, ("client", "server"), lambda channel: meet_as_dealer(channel, config.timeout)
            )
            # The client's connection is one message and not shaped: its end knows nothing of it.
            peer = config.shaped(channel) if hello.role == "server" else channel
            try:
                if hello.role == "server":
                    DealerParty(peer, hello.program, left_for(hello, seeds)).serve(idle=IDLE_SECONDS)
                    return
                receive_seed(peer, hello, seeds)
            except BlindformerError as error:
                tell([peer], error)
                raise
            finally:
                peer.close()


def _serve(config: Config, commands: queue.Queue[dict[str, Any]]) -> None:
    with _listen(config, "server") as listener:
        _use_threads(config.threads)
        from ...models.artifacts import load_server
        from ...protocols.rounds import over_channel
        from ...protocols.streams import new_seed
        from ..session.meeting import accept, meet_client, meet_dealer, my_hello, tell
        from ..session.server import ServerParty
        from ..session.uniformity import UniformityWitness
        from ..session.weights import serve_parts

        served = serve_parts([load_server(config.folder).for_length(config.length)], new_seed())
        for offered in served.values():
            offered.prepare()
        channel, (part, hello) = accept(
            listener, ("client",), lambda channel: meet_client(channel, served, config.timeout)
        )
    context = client_context(config.certificates, "server")
    client = config.shaped(channel)
    seen = UniformityWitness() if config.audit else None
    address = config.address("dealer")

    def dial() -> Channel:
        mine = my_hello(part.program, "server", hello.session)
        return config.shaped(meet_dealer(context, address, mine, config.timeout))

    wire = seen.wire if seen else over_channel
    party = ServerParty(part, client, dial, session=hello.session, wire=wire)
    try:
        party.set_up()
        party.serve(on_query=lambda *_: say(seen=seen.finish()) if seen else None, idle=IDLE_SECONDS)
    except BlindformerError as error:
        tell(party.abandon(), error)
        raise
    party.close()


def _ask(config: Config, commands: queue.Queue[dict[str, Any]]) -> None:
    """Each command is one query: its inputs' file in, its outputs' file out."""
    context = client_context(config.certificates, "client")
    _use_threads(config.threads)
    from ...models.artifacts import load_client
    from ..session.client import ClientParty
    from ..session.meeting import meet_server, my_hello, new_session, seed_dealer, tell

    part = load_client(config.folder).for_length(config.length)
    started = time.perf_counter()
    mine = my_hello(part.program, "client", new_session())
    server = config.shaped(meet_server(context, config.address("server"), mine, config.timeout))
    dealer = config.address("dealer")
    party = ClientParty(
        part.program,
        part.constants,
        server,
        lambda seed: seed_dealer(context, dealer, mine, config.timeout, seed),
        session=mine.session,
    )
    try:
        party.set_up(_progress)
        say(ready={"setup_s": time.perf_counter() - started, "setup_bytes": party.setup_bytes})
        while True:
            command = commands.get()
            if "close" in command:
                break
            _answer(part, party, command)
    except (PeerError, CorrelationError) as error:
        tell([server], error)
        raise
    party.close()


def _progress(phase: str, done: int, total: int) -> None:
    say(progress=[phase, done, total])


def _answer(part: Any, party: Any, command: dict[str, Any]) -> None:
    """One query. What is wrong with it alone is reported, and ends nothing else."""
    from safetensors.torch import load_file, save_file

    from ...models.compile import decode_outputs

    path = Path(command["inputs"])
    inputs = load_file(path)
    path.unlink()  # the plain text leaves the disk as soon as it is read
    try:
        answer = party.query(part.encode_inputs(inputs), _progress, more=command.get("more", False))
        outputs = decode_outputs(part.program, answer.outputs)
    except (PeerError, CorrelationError):
        raise
    except BlindformerError as error:
        say(failed={"kind": type(error).__name__, "what": str(error)})
        return
    save_file({name: value.contiguous().clone() for name, value in outputs.items()}, command["outputs"])
    overhead = party.server.meter.overhead
    say(answer={"timings": asdict(answer.timings), "others": answer.others, "wire_overhead_bytes": overhead})


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
