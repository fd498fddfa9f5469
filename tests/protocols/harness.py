"""The three roles of `beaver` in threads, on memory channels, with everything that crosses them kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from queue import Queue

import torch
from blindformer.models.program.correlations import Correlations, is_large
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.models.program.two_server import answer_layout, input_layout, owner_traffic
from blindformer.protocols.beaver.context import Offline, Online
from blindformer.protocols.beaver.engine import OnlineEngine
from blindformer.protocols.beaver.owner import join, pack_shares, seed_shares, split, unpack_shares
from blindformer.protocols.beaver.point_function import pack_keys, take_keys
from blindformer.protocols.beaver.primitive import primitives
from blindformer.protocols.beaver.source import ClientSource, Corrections, DealerSource, ServerSource
from blindformer.protocols.beaver.values import OfflineValue, Share, Tape
from blindformer.protocols.channel import Meter
from blindformer.protocols.devices import CPU, Placement
from blindformer.protocols.ring import Ring, sign_extend
from blindformer.protocols.rounds import Swap, Wire, over_channel
from blindformer.protocols.states import KeptStates
from blindformer.protocols.streams import Stream, new_seed
from blindformer.protocols.wire import wire_bytes
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import MemoryChannel, memory_pair
from blindformer.tests.shared.threads import PartyThreads
from blindformer.tests.uniformity import Sample, opened, sample
from torch import Tensor

from .lying import Lies, LyingEngine
from .programs import Case

RING = Ring()


@dataclass
class Seeds:
    """Fresh by default. `weights` is one model's; the others change with every session.

    An owner who takes no part draws one of its own for every query.
    """

    server: bytes = field(default_factory=new_seed)
    client: bytes = field(default_factory=new_seed)
    weights: bytes = field(default_factory=new_seed)


@dataclass
class SessionStates:
    """What the parties of one session keep, by role: of correlations, and of runs."""

    offline: dict[str, KeptStates] = field(default_factory=lambda: defaultdict(KeptStates))
    online: dict[str, KeptStates] = field(default_factory=lambda: defaultdict(KeptStates))


VIEWS = ("message", "sum", "xor", "half", "share")
ANSWERS = ("answer of the server", "answer of the client")  # what an owner who takes no part sees


@dataclass
class Ran:
    """What a query gave, and what it cost. `received`: per party, the frames' payloads that reached it online.

    `openings`: by party and view, what a witness looks at of the arrays that the party sees. Views: a "message" as it
    came; its "sum" or "xor" with what the party sent; "half", with its own share, where only the other sent; "share",
    what an owner who takes no part sent.
    """

    outputs: dict[str, Tensor]
    rounds: int
    online: Meter  # at the client
    offline_bytes: int
    received: dict[str, list[bytes]]
    openings: dict[tuple[str, str], list[Sample]]
    offline_frames: list[bytes]


def run_beaver(
    case: Case,
    seeds: Seeds | None = None,
    purpose: str = "query 0",
    timeout: float = 20,
    lies: Lies | None = None,
    states: SessionStates | None = None,
    devices: Mapping[str, torch.device] | None = None,
) -> Ran:
    """`lies`: what P1 adds to its shares before it uses them, by instruction; `devices`: of roles that do not compute
    on the processor. Every run is held against its price."""
    seeds, states = seeds or Seeds(), states or SessionStates()
    place = {"dealer": CPU, "server": CPU, "client": CPU, **(devices or {})}
    for role, device in place.items():
        states.offline.setdefault(role, KeptStates(device))
        states.online.setdefault(role, KeptStates(device))
    program = case.program
    stream = Stream(seeds.weights, "weight masks")
    masks = {name: stream.integers(name, shape) for name, shape in program.weight_shapes().items()}
    masked = {name: case.weights[name] - mask for name, mask in masks.items()}
    correlations = Correlations(program)
    received: dict[str, list[bytes]] = {"server": [], "client": []}
    openings: dict[tuple[str, str], list[Sample]] = {(role, view): [] for role in received for view in VIEWS}
    openings.update({("owner", view): [] for view in ANSWERS})
    inputs, answers = input_layout(program), answer_layout(program)
    owner_seed = new_seed()
    to_server = pack_shares(split(case.inputs, owner_seed, inputs), inputs)
    shares = {"server": unpack_shares(to_server, inputs), "client": seed_shares(owner_seed, inputs)}
    for role, own in shares.items():
        openings[role, "share"] += [sample(own[name], wire_bytes(width)) for name, (_, width) in inputs.items()]
    offline_frames: list[bytes] = []
    dealer_end, from_dealer = memory_pair("dealer", "server", timeout, {"server": offline_frames})
    server_end, client_end = memory_pair("server", "client", timeout, received)
    done: dict[str, object] = {}
    passed_on: Queue[bytearray] = Queue()

    def dealer() -> None:
        device = place["dealer"]
        streams = [Stream(seed, purpose, device) for seed in (seeds.server, seeds.client)]
        corrections = Corrections(dealer_end, correlations.layout, device=device)
        correlations.deal(streams, corrections, Placement(device)(masks), states.offline["dealer"])

    def online(role: str, tape: Tape, wire: Wire) -> None:
        own = {**(case.weights if role == "server" else case.client), **shares[role]}
        values, constants = map(Placement(place[role]), (own, case.constants))
        if role == "client" and lies:
            engine = LyingEngine(role, tape, RING, values, constants, states.online[role], lies=lies)
        else:
            engine = OnlineEngine(role, tape, RING, values, constants, states.online[role], device=place[role])
        done[role] = interpret(program, engine, tapped(wire, {view: openings[role, view] for view in VIEWS}))
        done[f"{role} left"] = len(tape)

    def server() -> None:
        device = place["server"]
        corrections = Corrections(from_dealer, correlations.layout, device=device)
        tape = correlations.lead(Stream(seeds.server, purpose, device), corrections, states.offline["server"])
        passed_on.put(pack_keys(tape))
        online("server", tape, over_channel(server_end, device=device))

    def client() -> None:
        large, device = is_large(sum(correlations.layout)), place["client"]
        stream, before = Stream(seeds.client, purpose, device), states.offline["client"]
        tape = correlations.follow(stream, Placement(device)(masked), states=before, large=large)
        keys = passed_on.get(timeout=timeout)
        offline_frames.extend([bytes(keys)] if keys else [])
        assert len(keys) == price(program).passed_on_bytes
        take_keys(tape, keys, keep=not large)
        online("client", tape, over_channel(client_end, device=device))

    ends = [dealer_end, from_dealer, server_end, client_end]
    in_threads([dealer, server, client], ends)
    mine, theirs = done["client"], done["server"]
    for outputs in (mine.outputs, theirs.outputs):
        outputs.update({name: value.cpu() for name, value in outputs.items() if value is not None})
    assert mine.rounds == theirs.rounds
    assert all(value is None for name, value in theirs.outputs.items() if name not in answers)
    given = {role: pack_shares(done[role].outputs, answers) for role in shares}
    received_by_owner = [unpack_shares(given[role], answers) for role in shares]
    for view, own in zip(ANSWERS, received_by_owner, strict=True):
        openings["owner", view] += [sample(own[name], wire_bytes(width)) for name, (_, width) in answers.items()]
    ran = Ran(
        {**mine.outputs, **join(received_by_owner, answers)},
        mine.rounds,
        client_end.meter,
        dealer_end.meter.sent,
        received,
        {view: seen for view, seen in openings.items() if seen},
        offline_frames,
    )
    assert done["server left"] == done["client left"] == 0, "every correlation is used"
    declared, owner = price(program), owner_traffic(program)
    assert (ran.rounds, ran.online.sent, ran.online.received) == (declared.rounds, declared.up, declared.down)
    assert ran.offline_bytes == declared.dealt_bytes == sum(correlations.layout)
    assert max(ran.online.messages_sent, ran.online.messages_received) <= ran.rounds
    assert (len(to_server), len(given["server"])) == (owner.to_server, owner.from_each)
    return ran


def tapped(wire: Wire, seen: dict[str, list[Sample]]) -> Wire:
    """The wire, with all that arrives kept in `seen`, by view."""

    def exchange(swaps: list[Swap]) -> list[Tensor | None]:
        answers = wire(swaps)
        for swap, theirs in zip(swaps, answers, strict=True):
            if theirs is None:
                continue
            seen["message"].append(sample(theirs, swap.width, swap.xor))
            view = "xor" if swap.xor else "sum" if swap.send is not None else "half"
            seen[view].append(sample(opened(swap, theirs), swap.width, swap.xor))
        return answers

    return exchange


def in_threads(roles: list[Callable[[], None]], channels: Iterable[MemoryChannel] = ()) -> None:
    """Run the roles side by side; the first error of any interrupts all channels and is raised."""
    threads = PartyThreads(120)
    threads.channels += channels

    def alone(role: Callable[[], None]) -> None:
        torch.set_num_threads(1)
        role()

    for number, role in enumerate(roles):
        threads.start(partial(alone, role), f"role {number}")
    threads.join(PATIENCE)
    for _, error in threads.failures:
        raise error
    assert not any(thread.is_alive() for thread in threads.threads)


class Relay:
    """Corrections without a channel: only their low bytes pass."""

    def __init__(self) -> None:
        self.waiting: list[Tensor] = []

    def write(self, tensor: Tensor, width: int, minus: Tensor | None = None) -> None:
        self.waiting.append(sign_extend((tensor.clone() if minus is None else tensor - minus).long(), 8 * width))

    def read(self, shape: tuple[int, ...], width: int, narrow: bool = False) -> Tensor:
        return self.waiting.pop(0).view(shape)


def run_primitive(op: str, x: Tensor, width: int = 64, **attributes) -> Tensor:
    """The result of one primitive of one shared argument, in this thread."""
    primitive, shape, relay = primitives()[op], tuple(x.shape), Relay()
    server, client = Stream(new_seed(), "query 0"), Stream(new_seed(), "query 0")
    sources = {
        "dealer": DealerSource(server, client, relay),
        "client": ClientSource(client),
        "server": ServerSource(server, relay),
    }
    tapes = {}
    for role, source in sources.items():
        offline = Offline(source, Tape(), RING)
        primitive.correlate(offline, "1", shape, width, OfflineValue("0", shape), **attributes)
        tapes[role] = offline.tape
    theirs = Stream(new_seed(), "share").integers("x", shape)
    steps = [
        primitive.run(Online(role, tapes[role], RING), "1", width, Share("0", share), **attributes)
        for role, share in (("server", x - theirs), ("client", theirs))
    ]
    answers: list[list[Tensor | None] | None] = [None, None]
    while True:
        results, wanted = [], []
        for step, answer in zip(steps, answers, strict=True):
            try:
                wanted.append(step.send(answer))
            except StopIteration as end:
                results.append(end.value)
        if results:
            return sign_extend(results[0].tensor + results[1].tensor, width)
        answers = [
            [None if s.send is None else sign_extend(s.send.clone(), 8 * s.width) for s in swaps]
            for swaps in reversed(wanted)
        ]
