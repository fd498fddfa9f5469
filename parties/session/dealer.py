"""The dealer of any number of parties. Sees no input, no weight, no opened value: seeds, keys of masks, and a program.

It needs no file: the leader, who owns the model (of two parties: the server), sends it the program.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from ...models.program.correlations import Correlations
from ...models.program.interpreter import interpret
from ...models.program.program import Program
from ...protocols.beaver.source import Corrections
from ...protocols.channel import Channel
from ...protocols.clear import ShapesEngine
from ...protocols.crypten.engine import Owners
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError
from ...protocols.operations import of_kind
from ...protocols.states import KeptStates
from ...protocols.streams import SEED_BYTES
from ..transport.handshake import Hello
from .ahead import Ahead
from .blocks import may_run
from .compute_slots import ComputeSlots, Unlimited
from .held import GB
from .keys import masks, query_key
from .messages import SAME_VERSION, PartRun, out_of_place, read, read_number, read_seed, refusing, requests
from .seeds import SeedError, Seeds
from .timings import peak_rss_mb
from .tuples import TupleDealer
from .weights import WeightMasks, read_keys

PROGRAM_BYTES, TUPLE_BYTES = 16 * 2**20, 2 * 2**30  # of a program's JSON, and of the largest value of CrypTen's tuples
MEMORY_BYTES = 16 * GB  # for the correlations of one query, unless the dealer's settings say otherwise


class Programs(Protocol):
    """Programs that a dealer knows already, by hash."""

    def get(self, hash: str) -> Program | None: ...
    def put(self, program: Program) -> None: ...


class MemoryPrograms:
    """The `limit` programs used last."""

    def __init__(self, limit: int = 16) -> None:
        self.limit = limit
        self._kept: OrderedDict[str, Program] = OrderedDict()

    def get(self, hash: str) -> Program | None:
        if hash in self._kept:
            self._kept.move_to_end(hash)
        return self._kept.get(hash)

    def put(self, program: Program) -> None:
        self._kept[program.hash()] = program
        while len(self._kept) > self.limit:
            self._kept.popitem(last=False)


def receive_seed(client: Channel, hello: Hello, seeds: Seeds) -> None:
    """A client's connection at the dealer, after the hello: keep its seed. The caller closes it.

    Errors: `PeerError`, for the caller to tell.
    """
    seed = read_seed(client)
    try:
        seeds.put(hello.session, hello.program, seed)
    except SeedError as error:
        raise PeerProtocolError(client.peer, "cannot be dealt to", str(error)) from None
    client.send_message({"seeded": True})


def left_for(server: Hello, seeds: Seeds) -> Callable[[], list[bytes]]:
    """Of two parties: what the client has left for the session of a server that said hello."""
    return lambda: [seeds.take(server.session, server.program)]


class DealerParty:
    """The dealer's end of one session, on the leader's connection, after the hello.

    digest   the hash of the program that all parties named
    others   hands out the seeds of all parties but the leader, by rank, once. Errors: `SeedError`
    owners   among N parties: who owns which of a program's values
    memory   bytes that correlations asked for at once may take while they are made
    """

    def __init__(
        self,
        leader: Channel,
        digest: str,
        others: Callable[[], Sequence[bytes]],
        programs: Programs | None = None,
        admission: ComputeSlots | None = None,
        owners: Callable[[Program], Owners] | None = None,
        memory: float = MEMORY_BYTES,
    ) -> None:
        self.leader, self.digest, self.others, self.owners, self.memory = leader, digest, others, owners, memory
        self.programs = programs or MemoryPrograms()
        self.admission = admission or Unlimited()

    def serve(self, on_query: Callable[[int, float], None] | None = None, idle: float | None = None) -> None:
        """Answer the leader's requests until it says goodbye. `idle`: seconds it may be silent between queries.

        `on_query` is told the number and the seconds of each. Errors: `PeerError`.
        """
        mine = read_seed(self.leader)
        try:
            seeds = [mine, *self.others()]
        except SeedError as error:  # as where this dealer was started again meanwhile: a new session is all it takes
            raise PeerGone("client", "cannot be dealt to", str(error)) from None
        program = self.programs.get(self.digest) or self._fetch_program()
        parts = Ahead(lambda: self._correlations(program), "layout").result([self.leader], "program")
        shapes = program.weight_shapes()
        self.leader.send_message({"need": "weights"})
        weights = WeightMasks(read_keys(self.leader.recv(len(shapes) * SEED_BYTES), shapes), shapes)
        self.leader.send_message({"dealing": True})
        tuples = None if self.owners is None else TupleDealer(self.leader, seeds, TUPLE_BYTES)
        least, states = 0, KeptStates()
        for message in requests(self.leader, idle):
            if tuples is not None and "tuple" in message:
                tuples.deal(message)
                continue
            number = read_number(self.leader, message, "query", least)
            part_run = read(self.leader, PartRun, message.get("turn", {}))
            if not may_run(program, part_run):
                raise out_of_place(self.leader)
            correlations = self._bounded(parts[part_run.part].of_runs(part_run.runs))
            with refusing(self.leader):
                with self.admission.slot(number, lambda place: self.leader.send_message({"queued": place})):
                    least = number + 1
                    self.leader.send_message({"deal": number})
                    started = time.perf_counter()
                    streams = [masks(query_key(seed, number)) for seed in seeds]
                    states.truncate(part_run.rows)
                    correlations.deal(streams, Corrections(self.leader, correlations.layout), weights, states)
                    seconds = time.perf_counter() - started
                    self.leader.send_message({"dealt": number, "seconds": seconds, "peak_rss_mb": peak_rss_mb()})
                if on_query:
                    on_query(number, seconds)

    def _fetch_program(self) -> Program:
        """The program from the leader: bounded, and the one whose hash all parties named."""
        self.leader.send_message({"need": "program"})
        program = receive_program(self.leader, self.digest, self._correlations)
        self.programs.put(program)
        return program

    def _correlations(self, program: Program) -> dict[str, Correlations]:
        """By part of the program, each counted, which takes a moment."""
        owners = None if self.owners is None else self.owners(program)
        names = program.parts or ("",)
        return {name: self._bounded(Correlations(program.part(name), owners)) for name in names}

    def _bounded(self, correlations: Correlations) -> Correlations:
        """Errors: `PeerProtocolError` where they take more memory than there is for them; nothing was made yet."""
        needed = correlations.dealer_bytes
        if needed <= self.memory:
            return correlations
        what = f"asks for correlations that take {needed / GB:.3g} GB to make, and here they may take"
        remedy = "raise dealer.memory_gb there, or compile the model for less: fewer texts, or shorter ones"
        raise PeerProtocolError(self.leader.peer, f"{what} {self.memory / GB:.3g} GB at most", remedy)


def receive_program(server: Channel, digest: str, use: Callable[[Program], object]) -> Program:
    """A program that a peer is about to send: bounded, of this hash, and fit for `use`. Errors: `PeerError`."""
    size = server.recv_message().get("program")
    if not isinstance(size, int) or not 0 < size <= PROGRAM_BYTES:
        raise _unfit(server, f"has a program of {size} bytes" if isinstance(size, int) else "sent no program's size")
    text = bytes(server.recv(size))
    if hashlib.sha256(text).hexdigest() != digest:
        raise _unfit(server, "sent another program than the one it named")
    try:
        program = Program.from_json(text)
        parts = [program.part(name) for name in program.parts or ("",)]
        if not all(_reads_what_it_keeps(part) for part in parts):
            raise _unfit(server, "has a program that keeps rows without end")
        Ahead(lambda: ([_check_shapes(part) for part in parts], use(program)), "program").result([server], "program")
    except PeerError:
        raise
    except Exception:  # whatever a program can be that no compiler makes
        raise _unfit(server, "sent a program that cannot be run") from None
    return program


def _reads_what_it_keeps(program: Program) -> bool:
    """Then a run that finds more rows than there is room for fails, or drops the first: a dealer holds no more."""
    names = {
        op: {item.attributes.get("name") for item in program.instructions if item.op == op} for op in ("keep", "state")
    }
    return names["keep"] <= names["state"]


def _unfit(server: Channel, what: str) -> PeerProtocolError:
    return PeerProtocolError(server.peer, what, SAME_VERSION)


def _check_shapes(program: Program) -> None:
    """Every value has the shape that its instruction says. Errors: of any kind."""
    kinds = of_kind("source")
    sources = {item.attributes["name"]: item.shape for item in program.instructions if item.op in kinds}

    def observe(number: int, value: Tensor) -> None:
        if tuple(value.shape) != program.instructions[number].shape:
            raise ValueError(number)

    interpret(program, ShapesEngine(sources), observe=observe)
