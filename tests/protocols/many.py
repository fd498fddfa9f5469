"""N parties of `crypten` in threads, each with a communicator in memory, and the dealer beside the leader."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass

import torch
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.two_server import answer_layout, input_layout
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.crypten.context import NPartyCost
from blindformer.protocols.crypten.engine import NPartyOnlineEngine, NPartyPricingEngine
from blindformer.protocols.crypten.wire import Traffic, over_communicator
from blindformer.protocols.devices import CPU, Placement
from blindformer.protocols.ring import Ring, sign_extend
from blindformer.protocols.rounds import Swap, Wire
from blindformer.protocols.states import KeptStates
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.shared.memory import memory_pair
from blindformer.tests.uniformity import Sample, opened, sample
from torch import Tensor

from .harness import SessionStates, in_threads
from .programs import Case

TIMEOUT = 20.0


class MemoryCommunicator:
    """The part of CrypTen's communicator that a Program uses, between threads. (CrypTen's own takes no two senders.)"""

    def __init__(self, rank: int, links: dict[tuple[int, int], queue.Queue[Tensor]], size: int) -> None:
        self.rank, self.links, self.size = rank, links, size

    def get_rank(self) -> int:
        return self.rank

    def get_world_size(self) -> int:
        return self.size

    def isend(self, tensor: Tensor, dst: int) -> _Work:
        self.links[self.rank, dst].put(tensor.clone())
        return _Work(lambda: None)

    def irecv(self, tensor: Tensor, src: int) -> _Work:
        return _Work(lambda: tensor.copy_(self.links[src, self.rank].get(timeout=TIMEOUT)))


@dataclass
class _Work:
    wait: Callable[[], object]


def communicators(size: int) -> list[MemoryCommunicator]:
    links = {(a, b): queue.Queue() for a in range(size) for b in range(size) if a != b}
    return [MemoryCommunicator(rank, links, size) for rank in range(size)]


@dataclass
class RanMany:
    """What a query among N parties gave. `views`: by party, what a witness looks at of all that reached it."""

    outputs: dict[str, Tensor]
    rounds: int
    traffic: list[Traffic]
    views: list[list[Sample]]


def run_many(
    case: Case,
    size: int,
    *,
    owners: dict[str, int] | None = None,
    recipient: int = 1,
    seeds: list[bytes] | None = None,
    weight_seed: bytes | None = None,
    ring: Ring | None = None,
    states: SessionStates | None = None,
    device: torch.device = CPU,
) -> RanMany:
    """Run a case among `size` parties, and hold it against its price.

    `owners`: ranks of data owners by value; `ring`: how products are computed; `device`: where, at all parties.
    """
    program, owners, ring, states = case.program, owners or {}, ring or Ring(), states or SessionStates()
    seeds = seeds or [new_seed() for _ in range(size)]
    streams = [Stream(seed, "query 0", device) for seed in seeds]
    for role in ("dealer", *map(str, range(size))):
        states.offline.setdefault(role, KeptStates(device))
        states.online.setdefault(role, KeptStates(device))
    drawn = Stream(weight_seed or new_seed(), "weight masks")
    masks = {name: drawn.integers(name, shape) for name, shape in program.weight_shapes().items()}
    masked = {name: case.weights[name] - mask for name, mask in masks.items()}
    correlations = Correlations(program, owners)
    inputs, answers = input_layout(program), answer_layout(program)
    shares = _split(case.inputs, size)
    dealer_end, from_dealer = memory_pair("dealer", "party 0", TIMEOUT)
    traffic = [Traffic() for _ in range(size)]
    views: list[list[Sample]] = [[] for _ in range(size)]
    done: dict[int, object] = {}
    left = [0] * size

    def dealer() -> None:
        corrections = Corrections(dealer_end, correlations.layout, device=device)
        correlations.deal(streams, corrections, Placement(device)(masks), states.offline["dealer"])

    def party(communicator: MemoryCommunicator) -> None:
        rank = communicator.rank
        ahead, now = states.offline[f"{rank}"], states.online[f"{rank}"]
        if rank == 0:
            corrections = Corrections(from_dealer, correlations.layout, device=device)
            tape = correlations.lead(streams[0], corrections, ahead)
        else:
            tape = correlations.follow(streams[rank], Placement(device)(masked), rank, ahead)
        mine = {name: value for name, value in case.client.items() if owners.get(name, 1) == rank}
        values = {**(case.weights if rank == 0 else {}), **mine, **{name: shares[rank][name] for name in inputs}}
        values, constants = map(Placement(device), (values, case.constants))
        more = {"owners": owners, "recipient": recipient, "states": now, "device": device}
        online = NPartyOnlineEngine(rank, tape, ring, values, constants, **more)
        wire = _tapped(over_communicator(communicator, traffic[rank], device), views[rank])
        done[rank] = interpret(program, online, wire)
        outputs = done[rank].outputs
        outputs.update({name: value.cpu() for name, value in outputs.items() if value is not None})
        left[rank] = len(tape)

    roles = [dealer, *(lambda c=c: party(c) for c in communicators(size))]
    in_threads(roles, (dealer_end, from_dealer))
    assert len({done[rank].rounds for rank in range(size)}) == 1
    others = [done[rank].outputs for rank in range(size) if rank != recipient]
    assert all(value is None for outputs in others for name, value in outputs.items() if name not in answers)
    joined = {
        name: sign_extend(sum(done[rank].outputs[name] for rank in range(size)), width)
        for name, (_, width) in answers.items()
    }
    costs, rounds = declared(case, owners)
    assert done[0].rounds == rounds
    assert sum(cost.offline for cost in costs) == dealer_end.meter.sent == sum(correlations.layout)
    steps = [step for cost in costs for step in cost.steps]
    for rank, carried in enumerate(traffic):
        assert sum(carried.sent.values()) == sum(step.sent(rank, size, recipient) for step in steps)
        assert sum(carried.received.values()) == sum(step.received(rank, size, recipient) for step in steps)
    assert not any(left), "every correlation that was made is used"
    return RanMany({**done[recipient].outputs, **joined}, rounds, traffic, views)


def declared(case: Case, owners: dict[str, int] | None = None) -> tuple[list[NPartyCost], int]:
    """(the costs of all instructions, rounds)."""
    shapes = case.program.weight_shapes().items()
    weights = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name, shape in shapes}
    engine = NPartyPricingEngine(Ring(), weights, owners)
    rounds = interpret(case.program, engine, lambda swaps: [None] * len(swaps)).rounds
    return list(engine.prices.values()), rounds


def _split(values: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Additive shares of what an owner who takes no part has."""
    streams = [Stream(new_seed(), "inputs") for _ in range(size - 1)]
    shares = [{name: stream.integers(name, tuple(v.shape)) for name, v in values.items()} for stream in streams]
    first = {name: v - sum(share[name] for share in shares) for name, v in values.items()}
    return [first, *shares]


def _tapped(wire: Wire, seen: list[Sample]) -> Wire:
    def exchange(swaps: list[Swap]) -> list[Tensor | None]:
        answers = wire(swaps)
        for swap, theirs in zip(swaps, answers, strict=True):
            if theirs is not None:
                came = (theirs, opened(swap, theirs)) if swap.send is not None else (opened(swap, theirs),)
                seen.extend(sample(values, swap.width, swap.xor) for values in came)
        return answers

    return exchange
