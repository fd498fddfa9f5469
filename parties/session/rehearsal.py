"""What each party computes, and when it talks, in one query: measured on this machine, one party after the other.

The protocol's work does not depend on values. So a party can run its real code alone, against channels that answer
zeros; the CPU seconds between two frames are what this party needs there. estimate.py puts the parties together again
on a network. Left out is what TLS and the system take for each frame. Nothing here is secret, and nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models.interpreter import interpret
from ...models.pricing import price
from ...models.program import Program
from ...protocols.beaver.engine import OfflineEngine, OnlineEngine
from ...protocols.beaver.source import ClientSource, Corrections, DealerSource, ServerSource, Source
from ...protocols.beaver.values import Tape
from ...protocols.channel import Buffer, Meter
from ...protocols.ring import Ring
from ...protocols.rounds import over_channel
from ...protocols.streams import Stream, new_seed
from .keys import masks
from .weights import WeightMasks

MESSAGE = 64  # bytes of a small JSON message, about


@dataclass(frozen=True)
class Move:
    """`compute`: CPU seconds, then a frame to `peer`, one from it, or both at once. Sizes in bytes; None: no frame."""

    compute: float
    peer: str = ""
    sends: int | None = None
    receives: int | None = None


@dataclass(frozen=True)
class Rehearsal:
    """One query, party by party. `ready`: how many of its moves each party makes until all correlations are there."""

    moves: dict[str, list[Move]]
    ready: dict[str, int]

    def compute_s(self) -> dict[str, float]:
        """CPU seconds by party and phase, such as "server_online"."""
        phases = {}
        for role, moves in self.moves.items():
            phases[f"{role}_offline"] = sum(move.compute for move in moves[: self.ready[role]])
            phases[f"{role}_online"] = sum(move.compute for move in moves[self.ready[role] :])
        return phases


def rehearse(program: Program, weights: Mapping[str, Tensor] | None = None, passes: int = 2) -> Rehearsal:
    """Run every party's part of a query alone, on one thread, `passes` times; the least seconds of each move count.

    The first pass is slower (page faults, imports), as a party's first query is. Memory: that of one party.
    `weights`: the program's, if at hand; they are only shapes here.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        weights = weights or _noise(program)
        runs = [_rehearse_once(program, weights) for _ in range(passes)]
    finally:
        torch.set_num_threads(threads)
    return Rehearsal({role: _least([run.moves[role] for run in runs]) for role in runs[0].moves}, runs[0].ready)


def _least(runs: list[list[Move]]) -> list[Move]:
    return [replace(same[0], compute=min(m.compute for m in same)) for same in zip(*runs, strict=True)]


class _Alone:
    """A channel to nobody: what is received is zeros. Writes down each move, with the CPU seconds before it."""

    meter = Meter()
    timeout = 0.0

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.moves: list[Move] = []
        self.tape = Tape()
        self._since = time.thread_time()

    def send(self, data: Buffer) -> None:
        self._note(memoryview(data).nbytes, None)

    def recv(self, size: int) -> bytearray:
        return self.exchange(None, size)

    def exchange(self, data: Buffer | None, size: int) -> bytearray:
        self._note(None if data is None else memoryview(data).nbytes, size)
        zeros = bytearray(size)
        self._since = time.thread_time()
        return zeros

    def send_message(self, message: dict) -> None:
        self._note(MESSAGE, None)

    def recv_message(self, limit: int = 65536) -> dict:
        self._note(None, MESSAGE)
        return {}

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        """What was computed since the last frame."""
        self.moves.append(Move(time.thread_time() - self._since))

    def _note(self, sends: int | None, receives: int | None) -> None:
        self.moves.append(Move(time.thread_time() - self._since, self.peer, sends, receives))
        self._since = time.thread_time()


def _rehearse_once(program: Program, weights: Mapping[str, Tensor]) -> Rehearsal:
    """The moves of a query in parties/session/, on live correlations."""
    ring, layout, shapes = Ring(program.ring), price(program).layout, program.weight_shapes()
    masked = {name: weights[name] for name in shapes}
    drawn = WeightMasks({name: new_seed() for name in shapes}, shapes)
    constants, mine, other = _zeros(program, "constant"), masks(new_seed()), masks(new_seed())

    def offline(peer: str, source: Callable[[Corrections], Source], weights: Mapping[str, Tensor]) -> _Alone:
        channel = _Alone(peer)
        engine = OfflineEngine(source(Corrections(channel, layout)), ring, weights)
        interpret(program, engine)
        channel.close()
        channel.tape = engine.tape
        return channel

    def online(role: str, peer: str, tape: Tape, values: Mapping[str, Tensor]) -> list[Move]:
        channel = _Alone(peer)
        values = {**values, **_zeros(program, "input")}
        interpret(program, OnlineEngine(role, tape, ring, values, constants), over_channel(channel))
        channel.close()
        return channel.moves

    dealt = offline("server", lambda out: DealerSource(other, mine, out), drawn).moves
    read = offline("dealer", lambda into: ServerSource(mine, into), {})
    served = online("server", "client", read.tape, weights)
    made = offline("server", lambda _: ClientSource(mine), masked)
    asked = online("client", "server", made.tape, _zeros(program, "client"))
    before = {
        "client": [_says("server"), *made.moves, _hears("server"), _says("server")],  # query; ready, go
        "server": [_hears("client"), _says("dealer"), *read.moves, _hears("dealer"), _says("client"), _hears("client")],
        "dealer": [_hears("server"), *dealt, _says("server")],
    }
    after = {"server": served, "client": asked, "dealer": []}
    moves = {role: before[role] + after[role] for role in before}
    return Rehearsal(moves, {role: len(part) for role, part in before.items()})


def _says(peer: str) -> Move:
    return Move(0, peer, sends=MESSAGE)


def _hears(peer: str) -> Move:
    return Move(0, peer, receives=MESSAGE)


def _zeros(program: Program, op: str) -> dict[str, Tensor]:
    return {
        item.attributes["name"]: torch.zeros(item.shape, dtype=torch.int64)
        for item in program.instructions
        if item.op == op
    }


def _noise(program: Program) -> dict[str, Tensor]:
    stream = Stream(new_seed(), "rehearsal weights")
    shapes = {item.attributes["name"]: item.shape for item in program.instructions if item.op == "weight"}
    return {name: stream.integers(name, shape) for name, shape in shapes.items()}
