"""What each party computes and sends in one query: measured on this machine, one party after the other.

The protocol's work does not depend on values. So a party can run its real code alone, against channels that answer as
its peers would, with zeros for frames; the CPU seconds between two frames are its computing there. estimate.py puts the
parties together again on a network. The cost of TLS and the system for each frame is left out. Nothing here is secret,
and nothing is sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...approximations import Plan
from ...models.compile import Compiled
from ...models.lowering.structure import Structure
from ...models.program.correlations import Correlations
from ...models.program.program import Program
from ...protocols.beaver.source import paced
from ...protocols.channel import Buffer, Meter
from ...protocols.ring import narrowed
from ...protocols.streams import Stream, new_seed
from .audits import client_kind
from .dealing import DealerParty
from .masked_weights import Served
from .messages import PartRun, Runs
from .n_party import PartyModel
from .two_party_server import ServerParty

WEIGHT_BYTES = 2  # of a weight that is not at hand
MESSAGE = 64  # bytes of a small JSON message, about
PATIENCE = 86400.0  # seconds: no peer is waited for here


@dataclass(frozen=True)
class Move:
    """`compute`: CPU seconds, then a frame to `peer`, one from it, or both at once. Sizes in bytes; None: no frame."""

    compute: float
    peer: str = ""
    sends: int | None = None
    receives: int | None = None


@dataclass(frozen=True)
class Rehearsal:
    """One query, party by party. `ready`: how many of its moves each party makes until it may run; `dealt`: of these,
    those that make correlations: its own, and those of other runs that are made with them, of `runs` in all."""

    moves: dict[str, list[Move]]
    ready: dict[str, int]
    dealt: dict[str, int]
    runs: int = 1

    def compute_s(self) -> dict[str, float]:
        """CPU seconds of a run by party and phase, such as "server_online"."""
        phases = {}
        for role, moves in self.moves.items():
            seconds, dealt = [move.compute for move in moves], self.dealt[role]
            phases[f"{role}_offline"] = sum(seconds[:dealt]) / self.runs + sum(seconds[dealt : self.ready[role]])
            phases[f"{role}_online"] = sum(move.compute for move in moves[self.ready[role] :])
        return phases


def rehearse(
    program: Program, weights: Mapping[str, Tensor] | None = None, passes: int = 2, runs: int = 1
) -> Rehearsal:
    """Run every party's part of a query alone, on one thread, `passes` times; the least seconds of each move count.

    The first pass is slower (page faults, imports), as a party's first query is. Memory: that of one party.
    `weights`: the program's, if at hand; they are only shapes here. `runs`: of so many, correlations are made at once,
    and one is run.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values = {**_as_served(program, weights or _noise(program)), **_zeros(program, "input")}
        served = Served(
            PartyModel(program, _zeros(program, "constant") | _noise(program, "constant"), values), new_seed()
        )
        rehearsals = [_rehearse_once(served, PartRun(runs=runs)) for _ in range(passes)]
    finally:
        torch.set_num_threads(threads)
    return Rehearsal(
        {role: _least([one.moves[role] for one in rehearsals]) for role in rehearsals[0].moves},
        rehearsals[0].ready,
        rehearsals[0].dealt,
        runs,
    )


def without_weights(program: Program, plan: Plan | str) -> Compiled:
    """A compiled model only for rehearsals: noise in place of all weights, stored as a server stores them."""
    plan = Plan.preset(plan) if isinstance(plan, str) else plan
    return Compiled(program, _as_served(program, _noise(program)), {}, {}, {}, plan, Structure(None, (), (), ()))


def _least(runs: list[list[Move]]) -> list[Move]:
    return [replace(same[0], compute=min(m.compute for m in same)) for same in zip(*runs, strict=True)]


class _Watched:
    """The moves of one party, with the CPU seconds before each and the names in its message.

    `settle`: wait for the party's background tasks.
    """

    def __init__(self) -> None:
        self.moves: list[Move] = []
        self.names: list[frozenset[str]] = []
        self.settle: Callable[[], object] = lambda: None
        self._since = time.process_time()

    def note(self, move: Move, names: Iterable[str] = ()) -> None:
        self.moves.append(replace(move, compute=time.process_time() - self._since))
        self.names.append(frozenset(names))
        self.resume()

    def resume(self) -> None:
        self._since = time.process_time()

    def of_a_query(self) -> tuple[list[Move], int, int]:
        """The moves from the first that names a query to the result; how many of them until both may go, and until the
        correlations are made."""
        first, last = self._index("query"), self._index("done", "bye")
        moves = [*self.moves[first:last], Move(self.moves[last].compute)]  # and what was computed since the last frame
        ready, dealt = (min(self._index(name, "bye") + 1, last) - first for name in ("go", "ready"))
        return moves, ready, dealt

    def _index(self, *names: str) -> int:
        return next(at for at, message in enumerate(self.names) if message & set(names))


class _Alone:
    """A channel without a peer: it receives the messages `answers`, in order, and zeros."""

    def __init__(self, watched: _Watched, peer: str, *answers: dict) -> None:
        self.peer, self.meter, self.timeout = peer, Meter(), PATIENCE
        self._watched, self._answers = watched, iter(answers)

    def send(self, data: Buffer) -> None:
        self._watched.note(Move(0, self.peer, sends=memoryview(data).nbytes))

    def recv(self, size: int) -> bytearray:
        return self._receive(Move(0, self.peer, receives=size), size)

    def exchange(self, data: Buffer, size: int) -> bytearray:
        return self._receive(Move(0, self.peer, sends=memoryview(data).nbytes, receives=size), size)

    def send_message(self, message: dict) -> None:
        self._watched.note(Move(0, self.peer, sends=MESSAGE), message)

    def recv_message(self, limit: int = MESSAGE) -> dict:
        self._watched.settle()
        message = next(self._answers)
        self._watched.note(Move(0, self.peer, receives=MESSAGE), message)
        return message

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _receive(self, move: Move, size: int) -> bytearray:
        self._watched.note(move)
        zeros = bytearray(size)
        self._watched.resume()
        return zeros


def _rehearse_once(served: Served, part_run: PartRun) -> Rehearsal:
    """Each party's real code, in one query on live correlations."""
    parties = {
        "server": _server(served, part_run),
        "client": _client(served.program, served.constants, served.weights, part_run),
        "dealer": _dealer(served.program, part_run),
    }
    rehearsal = Rehearsal({}, {}, {})
    for role, watched in parties.items():
        rehearsal.moves[role], rehearsal.ready[role], rehearsal.dealt[role] = watched.of_a_query()
    return rehearsal


def _server(served: Served, part_run: PartRun) -> _Watched:
    watched = _Watched()
    client = _Alone(watched, "client", {"live": True}, {"query": 0, **part_run.message()}, {"go": 0}, {"bye": True})
    dealer = _Alone(watched, "dealer", {"need": "weights"}, {"dealing": True}, {"deal": 0}, {"dealt": 0})
    ServerParty(served, client, lambda: dealer).serve()
    return watched


def _client(
    program: Program, constants: Mapping[str, Tensor], weights: Mapping[str, Tensor], part_run: PartRun
) -> _Watched:
    watched = _Watched()
    server = _Alone(watched, "server", {"live": True}, {"ready": 0}, {"done": 0})
    party = client_kind(program)(program, constants, server, lambda seed: None)
    party.weights.masked = dict(weights)  # any numbers do
    watched.settle = party.settle
    party.query({**_zeros(program, "client"), **_zeros(program, "input")}, runs=Runs(turn=part_run))
    return watched


def _dealer(program: Program, part_run: PartRun) -> _Watched:
    watched, programs = _Watched(), {program.hash(): program}
    room: list[dict] = []  # what the server says between two pieces
    layout = Correlations(program.part(part_run.part), runs=part_run.runs).layout
    for _ in paced(layout, lambda ahead, total: room.append({"more": ahead})):
        pass
    asks = {"seed": new_seed().hex()}, {"query": 0, **part_run.message()}
    server = _Alone(watched, "server", *asks, *room, {"bye": True})
    DealerParty(server, program.hash(), lambda: [new_seed()], programs, memory=math.inf).serve()
    return watched


def _zeros(program: Program, op: str) -> dict[str, Tensor]:
    return {
        item.attributes["name"]: torch.zeros(item.shape, dtype=torch.int64)
        for item in program.instructions
        if item.op == op
    }


def _as_served(program: Program, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as a server stores them: the bytes of a weight decide how fast it is multiplied."""
    narrow = program.factors()
    return {name: narrowed(weight) if name in narrow else weight for name, weight in weights.items()}


def _noise(program: Program, op: str = "weight") -> dict[str, Tensor]:
    """In the place of weights: the server's, or (constant) open ones."""
    stream, factors = Stream(new_seed(), "rehearsal weights"), program.factors()
    shapes = {item.attributes["name"]: item.shape for item in program.instructions if item.op == op}
    shapes = {name: shape for name, shape in shapes.items() if op == "weight" or name in factors}
    return {name: stream.integers(name, shape, WEIGHT_BYTES) for name, shape in shapes.items()}
