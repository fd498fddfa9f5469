"""The two parties of corrections that are made without a dealer, in threads, on a channel in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.interpreter import interpret
from blindformer.protocols.beaver.engine import OnlineEngine
from blindformer.protocols.beaver.point_function import pack_keys, take_keys
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.channel import Channel, Meter
from blindformer.protocols.pair.source import PairWire
from blindformer.protocols.pair.steps import Pair
from blindformer.protocols.ring import Ring
from blindformer.protocols.rounds import over_channel
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.harness import in_threads
from blindformer.tests.protocols.ideal import Trusted
from blindformer.tests.protocols.programs import Case
from blindformer.tests.shared.memory import MemoryChannel, memory_pair

Start = Callable[[Channel, bool], tuple[Pair, PairWire]]  # a party's end of a session, of the server or the client


class Kept:
    """Corrections as a file: written, and read from the beginning."""

    def __init__(self) -> None:
        self.content, self.at = bytearray(), 0

    def send(self, data: bytearray) -> None:
        self.content += data

    def recv(self, size: int) -> bytearray:
        self.at += size
        return self.content[self.at - size : self.at]


@dataclass
class Made:
    """What a session has made, by query, and both ends of its channel with their meters."""

    ends: tuple[MemoryChannel, MemoryChannel]
    set_up: dict[str, Meter] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)


def trusted() -> Start:
    """With ideal transfers and products."""
    both = Trusted()
    return lambda end, leader: (both.pair(leader), PairWire.over(end, both.products(leader)))


def made(case: Case, seeds: dict[str, bytes], start: Start | None = None, times: int = 1, runs: int = 1) -> Made:
    """The corrections that the pair makes of one session, so many times, one after the other."""
    correlations, ends = Correlations(case.program, runs=runs), memory_pair("server", "client", PATIENCE)
    out, start = Made(ends), start or trusted()

    def party(role: str, end: MemoryChannel) -> None:
        leader = role == "server"
        pair, wire = start(end, leader)
        out.set_up[role] = end.meter.snapshot()
        for number in range(times):
            kept = Kept()
            into = Corrections(kept, correlations.layout)
            stream = Stream(seeds[role], f"query {number}")
            rounds = correlations.make(pair, stream, wire, case.weights if leader else {}, into if leader else None)
            if leader:
                out.kept.append(kept)
                out.rounds.append(rounds)

    in_threads([lambda: party("server", ends[0]), lambda: party("client", ends[1])], ends)
    return out


def dealt(case: Case, seeds: dict[str, bytes], runs: int = 1) -> Kept:
    """What a dealer sends for the first query, with the weights as their masks."""
    kept, correlations = Kept(), Correlations(case.program, runs=runs)
    streams = [Stream(seeds[role], "query 0") for role in ("server", "client")]
    correlations.deal(streams, Corrections(kept, correlations.layout), case.weights)
    return kept


def asked(case: Case, seeds: dict[str, bytes], kept: Kept, number: int = 0) -> dict[str, torch.Tensor]:
    """The client's outputs, the online phase being as with a dealer."""
    correlations, ends, outputs = Correlations(case.program), memory_pair("server", "client", PATIENCE), {}
    nothing = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in case.program.weight_shapes().items()}
    tapes = {
        "server": correlations.lead(Stream(seeds["server"], f"query {number}"), Corrections(kept, correlations.layout)),
        "client": correlations.follow(Stream(seeds["client"], f"query {number}"), nothing),
    }
    take_keys(tapes["client"], pack_keys(tapes["server"]))

    def party(role: str, end: MemoryChannel) -> None:
        own = case.weights if role == "server" else case.client
        engine = OnlineEngine(role, tapes[role], Ring(), own, case.constants)
        outputs[role] = interpret(case.program, engine, over_channel(end)).outputs

    in_threads([lambda: party("server", ends[0]), lambda: party("client", ends[1])], ends)
    return outputs["client"]


def fresh_seeds() -> dict[str, bytes]:
    return {"server": new_seed(), "client": new_seed()}
