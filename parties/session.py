"""One session of the beaver protocol, party by party: set-up, then queries, over channels that are already introduced.

    set-up    server -> dealer   its seed, the key of the weight masks B        client -> dealer   its seed
              server -> client   D = W - B, once per model
    a query   client -> server   its number          server -> dealer   the number
              dealer -> server   corrections         meanwhile the client makes its part from its seed
              server <-> client  the rounds of the program; the last message opens the result to the client alone

The dealer learns two seeds, the key of the weight masks, and a count of queries: nothing that depends on the text.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
from torch import Tensor

from ..models.interpreter import interpret
from ..models.pricing import price
from ..models.program import Program
from ..protocols.beaver.engine import OfflineEngine, OnlineEngine
from ..protocols.beaver.source import ClientSource, Corrections, DealerSource, ServerSource
from ..protocols.beaver.values import Tape
from ..protocols.channel import Channel, Meter
from ..protocols.errors import PeerError, PeerProtocolError
from ..protocols.ring import Ring
from ..protocols.rounds import over_channel
from ..protocols.streams import Stream, derive, new_seed
from ..protocols.wire import pack, unpack

Progress = Callable[[str, int, int], None]  # phase, done, total


@dataclass
class Timings:
    """Seconds and traffic of one query at one party. `online` and `offline` are bytes sent and received."""

    offline_s: float = 0.0
    online_s: float = 0.0
    rounds: int = 0
    online: Meter = field(default_factory=Meter)
    offline_bytes: int = 0
    peak_rss_mb: float = 0.0


def peak_rss_mb() -> float:
    """The most memory this process ever held, MB."""
    try:  # Linux: getrusage would count what the parent process held before exec
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, StopIteration):
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20


def weights_key(secret: bytes, weights: Mapping[str, Tensor], names: list[str]) -> bytes:
    """The key of the weight masks B, bound to the weights' content: other weights never meet the same mask."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + str(tuple(weights[name].shape)).encode())
        digest.update(weights[name].contiguous().numpy().tobytes())
    return derive(secret, f"weights {digest.hexdigest()}")


def weight_masks(key: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    stream = Stream(key, "weight masks")
    return {name: stream.integers(name, shape) for name, shape in sorted(shapes.items())}


@contextmanager
def patient(channel: Any, idle: float | None) -> Iterator[None]:
    """Allow another silence (seconds) than the channel's timeout while waiting for something nobody owes us yet."""
    timeout = channel.timeout
    channel.timeout = timeout if idle is None else idle
    try:
        yield
    finally:
        channel.timeout = timeout


class DealerParty:
    """The dealer of one session. Sees no input, no weight, no opened value."""

    def __init__(self, program: Program, server: Channel, client: Channel) -> None:
        self.program, self.server, self.client = program, server, client
        self.price = price(program)
        self.ring = Ring(program.ring)

    def serve(self, on_query: Callable[[int], None] | None = None, idle: float | None = None) -> None:
        """Answer the server's requests until it says goodbye. `idle`: seconds it may be silent between queries."""
        mine = self.server.recv_message()
        server_seed, key = _hex(self.server, mine, "seed"), _hex(self.server, mine, "weights")
        client_seed = _hex(self.client, self.client.recv_message(), "seed")
        masks = weight_masks(key, self.program.weight_shapes())
        expected = 0
        while True:
            with patient(self.server, idle):
                message = self.server.recv_message()
            if message.get("bye"):
                return
            number = _query_number(self.server, message, expected)
            expected = number + 1
            started = time.perf_counter()
            purpose = f"query {number}"
            corrections = Corrections(self.server, self.price.layout)
            source = DealerSource(Stream(server_seed, purpose), Stream(client_seed, purpose), corrections)
            interpret(self.program, OfflineEngine(source, self.ring, masks))
            corrections.finish()
            self.server.send_message(
                {"dealt": number, "seconds": time.perf_counter() - started, "peak_rss_mb": peak_rss_mb()}
            )
            if on_query:
                on_query(number)


class ServerParty:
    """The model owner in one session.

    `secret`: 16 bytes that live as long as the weights; the client's masked weights depend on it.
    """

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        client: Channel,
        dealer: Channel,
        secret: bytes | None = None,
    ) -> None:
        self.program, self.weights, self.constants = program, weights, constants
        self.client, self.dealer = client, dealer
        self.secret = secret or secrets.token_bytes(16)
        self.seed = new_seed()
        self.price = price(program)
        self.ring = Ring(program.ring)
        self.timings: list[Timings] = []

    def set_up(self) -> None:
        shapes = self.program.weight_shapes()
        key = weights_key(self.secret, self.weights, sorted(shapes))
        self.dealer.send_message({"seed": self.seed.hex(), "weights": key.hex()})
        stream = Stream(key, "weight masks")
        for name, shape in sorted(shapes.items()):
            masked = self.weights[name] - stream.integers(name, shape)
            self.client.send(pack([(masked, 8)], masked.numel() * 8))

    def serve(self, on_query: Callable[[int, Timings], None] | None = None, idle: float | None = None) -> None:
        """Answer the client's queries until it says goodbye. `idle`: seconds it may be silent between queries."""
        expected = 0
        while True:
            with patient(self.client, idle):
                message = self.client.recv_message()
            if message.get("bye"):
                self.dealer.send_message({"bye": True})
                return
            number = _query_number(self.client, message, expected)
            expected = number + 1
            timings = self.answer(number)
            self.timings.append(timings)
            if on_query:
                on_query(number, timings)

    def answer(self, number: int) -> Timings:
        started = time.perf_counter()
        self.dealer.send_message({"query": number})
        corrections = Corrections(self.dealer, self.price.layout)
        engine = OfflineEngine(ServerSource(Stream(self.seed, f"query {number}"), corrections), self.ring, {})
        interpret(self.program, engine)
        dealt = self.dealer.recv_message()
        offline = time.perf_counter() - started
        self.client.send_message(
            {
                "ready": number,
                "offline_s": offline,
                "dealer_s": float(dealt.get("seconds", 0.0)),
                "dealer_peak_rss_mb": float(dealt.get("peak_rss_mb", 0.0)),
            }
        )
        before = self.client.meter.snapshot()
        started = time.perf_counter()
        online = OnlineEngine("server", engine.tape, self.ring, self.weights, self.constants)
        execution = interpret(self.program, online, over_channel(self.client))
        timings = Timings(
            offline_s=offline,
            online_s=time.perf_counter() - started,
            rounds=execution.rounds,
            online=self.client.meter.since(before),
            offline_bytes=self.price.offline_bytes,
            peak_rss_mb=peak_rss_mb(),
        )
        self.client.send_message({"done": number, "online_s": timings.online_s, "peak_rss_mb": timings.peak_rss_mb})
        return timings


@dataclass
class Answer:
    """A query's result: ring integers by output name, this party's timings, and what the others reported of theirs."""

    outputs: dict[str, Tensor]
    timings: Timings
    others: dict[str, float]


class ClientParty:
    """The data owner in one session."""

    def __init__(self, program: Program, constants: Mapping[str, Tensor], server: Channel, dealer: Channel) -> None:
        self.program, self.constants = program, constants
        self.server, self.dealer = server, dealer
        self.seed = new_seed()
        self.ring = Ring(program.ring)
        self.masked: dict[str, Tensor] = {}
        self.number = 0
        self.setup_bytes = 0

    def set_up(self, progress: Progress | None = None) -> None:
        self.dealer.send_message({"seed": self.seed.hex()})
        shapes = sorted(self.program.weight_shapes().items())
        for done, (name, shape) in enumerate(shapes, start=1):
            count = 1
            for n in shape:
                count *= n
            self.masked[name] = unpack(self.server.recv(count * 8), 0, shape, 8)
            self.setup_bytes += count * 8
            if progress:
                progress("set-up", done, len(shapes))

    def prepare(self) -> Tape:
        """This party's correlations of the next query, and its half of every linear layer: no data is needed yet."""
        source = ClientSource(Stream(self.seed, f"query {self.number}"))
        engine = OfflineEngine(source, self.ring, self.masked)
        interpret(self.program, engine)
        return engine.tape

    def query(self, sources: Mapping[str, Tensor], progress: Progress | None = None) -> Answer:
        """Run one query on encoded sources (Compiled.encode_inputs)."""
        number = self.number
        started = time.perf_counter()
        self.server.send_message({"query": number})
        tape = self.prepare()
        self.number += 1
        ready = self.server.recv_message()
        if ready.get("ready") != number:
            raise PeerProtocolError(self.server.peer, "answered another query", "run the query in a new session")
        offline = time.perf_counter() - started
        before = self.server.meter.snapshot()
        started = time.perf_counter()
        engine = OnlineEngine("client", tape, self.ring, sources, self.constants)
        total = len(self.program.instructions)
        done = 0

        def step(_: int) -> None:
            nonlocal done
            done += 1
            if progress and done % 64 == 0:
                progress("online", done, total)

        execution = interpret(self.program, engine, over_channel(self.server), step)
        online = time.perf_counter() - started
        traffic = self.server.meter.since(before)
        done_message = self.server.recv_message()
        timings = Timings(offline, online, execution.rounds, traffic, price(self.program).offline_bytes, peak_rss_mb())
        others = {
            "server_offline_s": float(ready.get("offline_s", 0.0)),
            "dealer_s": float(ready.get("dealer_s", 0.0)),
            "server_online_s": float(done_message.get("online_s", 0.0)),
            "server_peak_rss_mb": float(done_message.get("peak_rss_mb", 0.0)),
            "dealer_peak_rss_mb": float(ready.get("dealer_peak_rss_mb", 0.0)),
        }
        return Answer({n: v for n, v in execution.outputs.items() if v is not None}, timings, others)

    def close(self) -> None:
        with suppress(PeerError):  # if the server is gone already, there is nobody to say goodbye to
            self.server.send_message({"bye": True})
        self.server.close()
        self.dealer.close()


def _hex(channel: Channel, message: dict[str, Any], name: str) -> bytes:
    value = message.get(name)
    try:
        raw = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        raw = b""
    if len(raw) != 16:
        raise PeerProtocolError(channel.peer, f"sent no valid {name}", "use the same version at every party")
    return raw


def _query_number(channel: Channel, message: dict[str, Any], expected: int) -> int:
    """Queries count up by one: a number never returns, so masks keyed by it are never reused."""
    number = message.get("query")
    if not isinstance(number, int) or number != expected:
        raise PeerProtocolError(
            channel.peer, "asked for a query out of order", "start a new session; a query number is used once"
        )
    return number
