"""What a private query or a conversation will cost, before anybody runs one.

Bytes and rounds are exact: a run meters the same. Seconds are a query replayed on a virtual clock: each party's CPU
time as this machine needs it (rehearsal.py), each frame as a network would carry it (shaping.py). So rounds, bytes in
each direction, bytes in flight while both sides compute, and the dealer on its own link are counted as they happen.
Each party is assumed to have a core of this machine to itself.

A conversation's seconds are those of its passes one after the other, each priced as a query. In a session both sides
preprocess the correlations of the next pass while one runs, as far as the machine has cores for it: a conversation
takes these seconds at most.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...approximations import Plan
from ...models.building import typical_inputs
from ...models.compile import Compiled, Progress
from ...models.data import Dataset, load_data
from ...models.delegated.head import compile_head, head_of, without_head
from ...models.delegated.manifest import DelegatedModel, GroupEntry, Manifest, plan_name, ring_of
from ...models.delegated.part import example_inputs, module_of
from ...models.delegated.running import DelegatedRunner
from ...models.delegated.sequences import delegated_layers, groups_within, sequence_of
from ...models.distillation.budget import Affordable, layers_within, read_budget
from ...models.distillation.pipeline import pooling
from ...models.distillation_settings import EMBEDDINGS, DistillSettings
from ...models.generation.parts import size_of
from ...models.generation.rows import KVState, behind, room
from ...models.loading.load import Loaded, load
from ...models.program.pricing import NETWORKS, Network, PriceAmong, QueryPrice, price, price_among
from ...models.program.program import Program
from ...protocols.errors import BlindformerError
from ..launch import NO_DEALER
from ..session.delegation import corrections_bytes, request_bytes
from ..session.online import part_run
from ..session.parties import Parties
from ..session.rehearsal import Move, Rehearsal, rehearse
from ..transport.shaping import Link
from .pair_estimate import PairEstimate, estimate_pair

MINUTE = 60.0


@dataclass(kw_only=True)
class Estimate(QueryPrice):
    """The estimated cost of one query on a network.

    offline_s  seconds at the client to get correlated randomness
    online_s   seconds from then to the result
    setup_s    seconds to send the masked weights, once
    compute_s  CPU seconds in these, by party and phase
    rtt_s      round trip in seconds
    bandwidth  bits a second, in each direction
    pair       without a dealer: what takes the place of set-up and offline phase, which are those with one
    """

    network: str
    rtt_s: float
    bandwidth: float
    setup_s: float
    offline_s: float
    online_s: float
    compute_s: dict[str, float]
    pair: PairEstimate | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    program: Program | Compiled,
    network: str | Network = "lan",
    *,
    dealer: str | Network | None = None,
    rehearsal: Rehearsal | None = None,
) -> Estimate:
    """Return the estimated cost of one query.

        print(bf.estimate(compiled, "wan").online_s)

    network    "loopback", "lan", "wan", or a Network
    dealer     the network between dealer and server, if it is another; "none": there is no dealer
    rehearsal  a measurement to reuse for several networks (default: a new one, which computes two queries)

    Raises BlindformerError for an unknown network and for a conversation's program; ProgramError if the protocol does
    not offer an operation.
    """
    near = network if isinstance(network, Network) else find_network(network)
    far = near if dealer in (None, NO_DEALER) else dealer if isinstance(dealer, Network) else find_network(dealer)
    weights = program.weights if isinstance(program, Compiled) else None
    program = program.program if isinstance(program, Compiled) else program
    if program.parts:
        raise BlindformerError(f"{program.model}: is compiled for conversations; use estimate_conversation")
    priced = price(program)
    rehearsal = rehearsal or rehearse(program, weights)
    clock = replay(rehearsal.moves, near, far)["client"]
    dealt, ready = (clock[number["client"] - 1] for number in (rehearsal.dealt, rehearsal.ready))
    return Estimate(
        network=near.name,
        rtt_s=near.rtt,
        bandwidth=near.bandwidth,
        setup_s=Link(near).arrival(0.0, priced.setup_bytes),
        offline_s=dealt / rehearsal.runs + ready - dealt,
        online_s=clock[-1] - ready,
        compute_s=rehearsal.compute_s(),
        pair=estimate_pair(program, near) if dealer == NO_DEALER else None,
        **vars(priced),
    )


@dataclass
class TokensEstimate:
    """What `tokens` cost, in the passes `parts`, behind `behind` others at most."""

    tokens: int
    behind: int
    parts: list[str]
    rounds: int
    online_bytes: int
    offline_bytes: int
    online_s: float
    offline_s: float

    @property
    def seconds(self) -> float:
        return self.online_s + self.offline_s

    @property
    def tokens_per_minute(self) -> float:
        return MINUTE * self.tokens / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "tokens_per_minute": self.tokens_per_minute}


@dataclass
class ConversationEstimate:
    """`slots`: tokens that a conversation may have. `passes`: each by itself, with its price by layer in `by_part`.
    `prompt`: reading one at the beginning. `setup_bytes`: masked weights, once."""

    network: str
    rtt_s: float
    bandwidth: float
    slots: int
    setup_bytes: int
    setup_s: float
    passes: list[TokensEstimate]
    prompt: TokensEstimate
    by_part: dict[str, Estimate]

    @property
    def answer(self) -> list[TokensEstimate]:
        """A token of the answer, by how many others it comes behind."""
        least = min(tokens.tokens for tokens in self.passes)
        return [tokens for tokens in self.passes if tokens.tokens == least]

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self),
            "passes": [tokens.to_dict() for tokens in self.passes],
            "prompt": self.prompt.to_dict(),
            "answer": [tokens.to_dict() for tokens in self.answer],
            "by_part": {name: price.to_dict() for name, price in self.by_part.items()},
        }


def estimate_conversation(
    program: Program,
    network: str | Network = "lan",
    *,
    prompt: int = 32,
    weights: Mapping[str, Tensor] | None = None,
    stage: Callable[[str], None] | None = None,
) -> ConversationEstimate:
    """The price of a conversation with a model that is compiled for one.

    program    of several parts, as `compile_chat` makes it
    network    loopback, lan, wan, or one of your own
    prompt     tokens of a prompt to price
    weights    the program's, if at hand; they are only shapes here
    stage      called with each pass, in words, before it is rehearsed

    Errors: BlindformerError for another program or network, GenerationError for a prompt that does not fit.
    """
    if not program.parts:
        raise BlindformerError(f"{program.model}: answers whole texts; compile the model with --chat")
    read = parts_of_reading(program, prompt)
    priced: dict[str, Estimate] = {}
    for name, part in sorted(program.parts.items(), key=lambda item: (size_of(item[0]), room(item[1]))):
        if stage:
            stage(f"{size_of(name)} tokens at a time, behind {behind(program, name)} at most")
        runs = part_run(program, name, 0).runs
        priced[name] = estimate(part, network, rehearsal=rehearse(part, weights, runs=runs))
    any_part = next(iter(priced.values()))
    near = Network(any_part.network, any_part.rtt_s, any_part.bandwidth)
    setup_bytes = price(program).setup_bytes
    most = {name: behind(program, name) for name in priced}
    return ConversationEstimate(
        network=near.name,
        rtt_s=near.rtt,
        bandwidth=near.bandwidth,
        slots=room(program),
        setup_bytes=setup_bytes,
        setup_s=Link(near).arrival(0.0, setup_bytes),
        passes=[_sum(size_of(name), most[name], [name], priced) for name in priced],
        prompt=_sum(prompt, 0, read, priced),
        by_part=priced,
    )


def parts_of_reading(program: Program, tokens: int) -> list[str]:
    """The parts that a conversation runs to read its first tokens, in order. Errors: GenerationError."""
    parts: list[str] = []

    def run(name: str, *given: Any) -> Mapping[str, Tensor]:
        parts.append(name)
        return {"hidden": torch.zeros(1, size_of(name), 1)}

    KVState(program, run, []).read([0] * tokens)
    return parts


def _sum(tokens: int, behind: int, parts: list[str], priced: Mapping[str, Estimate]) -> TokensEstimate:
    names = ("rounds", "online_bytes", "offline_bytes", "online_s", "offline_s")
    sums = {name: sum(getattr(priced[part], name) for part in parts) for name in names}
    return TokensEstimate(tokens, behind, parts, **sums)


def price_of_two(compiled: Compiled, network: Network, parties: Parties) -> Estimate:
    """`price` of the protocol's registry entry."""
    return estimate(compiled, network)


def price_of_parties(compiled: Compiled, network: Network, parties: Parties) -> PriceAmong:
    """Bytes of each party, and rounds; no seconds."""
    program = compiled.program
    return price_among(program, parties.names, parties.sources(program), parties.recipient_rank)


def replay(parties: Mapping[str, list[Move]], network: Network, dealer: Network) -> dict[str, list[float]]:
    """When each party has made each of its moves, in seconds from a common start.

    `network` lies between server and client, `dealer` between the dealer and the others. Every pair of parties has a
    link of its own in each direction, so a result does not depend on the order in which the parties are taken here.
    """
    links = {(a, b): Link(dealer if "dealer" in (a, b) else network) for a in parties for b in parties if a != b}
    flying: dict[tuple[str, str], deque[float]] = defaultdict(deque)
    times: dict[str, list[float]] = {role: [] for role in parties}
    frames = 0

    def walk(role: str) -> Iterator[None]:
        """Make moves; yield where another party has to be waited for."""
        nonlocal frames
        clock = 0.0
        for move in parties[role]:
            clock += move.compute
            if move.sends is not None:
                way = (role, move.peer)
                flying[way].append(links[way].arrival(clock, move.sends))
                frames += 1
            if move.receives is not None:
                arrivals = flying[(move.peer, role)]
                while not arrivals:
                    yield
                clock = max(clock, arrivals.popleft())
                frames += 1
            times[role].append(clock)

    walking = [walk(role) for role in parties]
    while walking:
        before = frames
        walking = [walker for walker in walking if next(walker, walker) is None]
        if walking and frames == before:
            raise RuntimeError("every party waits for another; this is a bug")
    return times


def find_network(name: str) -> Network:
    """A network by name; or "RTT,BANDWIDTH", the milliseconds there and back and the Mbit/s each way.

    Errors: BlindformerError for an unknown name.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    try:
        rtt, bandwidth = map(float, name.split(","))
    except ValueError:
        rtt = bandwidth = -1.0
    if not (0 <= rtt < 1e6 and 0 < bandwidth < 1e9):
        what = f"not known; choose one of {', '.join(NETWORKS)}, or give ms and Mbit/s, such as 40,100"
        raise BlindformerError(f"network {name}: {what}")
    return Network("as given", rtt / 1e3, bandwidth * 1e6)


def affordable_layers(
    budget: str,
    teacher: str | Path | Loaded,
    data: str | Path | Dataset,
    plan: Plan | str = "fast",
    *,
    embeddings: bool = False,
    length: int | None = None,
    pool: tuple[int, ...] | None = None,
    heads: int | None = None,
    intermediate: int | None = None,
    progress: Callable[[str], None] = lambda model: None,
) -> Affordable:
    """Return the largest number of layers whose query costs no more than a budget. Nothing is trained.

        affordable = bf.affordable_layers("50MB", "minilm", "uci")
        student = bf.distill("minilm", "uci", "student", layers=affordable.layers)

    budget    seconds on a LAN ("0.2s", "300ms") or bytes ("50MB"), offline and online together
    length    tokens of a query (default: as `distill` cuts)
    pool      layers after which tokens are pooled (default: the plan's)
    progress  called with the name of each model that is priced

    The other arguments are those of `distill`.

    Raises BlindformerError; DistillError if one layer exceeds the budget.
    """
    limit, plan = read_budget(budget), Plan.preset(plan) if isinstance(plan, str) else plan
    plan = pooling(plan, plan.pool if pool is None else pool)
    dataset = data if isinstance(data, Dataset) else load_data(data)
    loaded = teacher if isinstance(teacher, Loaded) else load(teacher)

    def price(compiled: Compiled) -> dict[str, float]:
        progress(compiled.program.model)
        one = estimate(compiled)
        return {"seconds": one.online_s + one.offline_s, "bytes": float(one.online_bytes + one.offline_bytes)}

    usual = DistillSettings(**(EMBEDDINGS if embeddings else {})).length
    tokens = min(usual if length is None else length, loaded.positions or sys.maxsize)
    return layers_within(limit, loaded, dataset, plan, tokens, price, embeddings, (heads, intermediate))


@dataclass(frozen=True)
class DelegatedPrice:
    """Bytes of payload. `network_s`: of rounds and bytes alone; what the parties compute comes on top.

    layers  the pass's groups
    rows    tokens, or what stands for them
    """

    layers: int
    rows: int
    rounds: int
    up_bytes: int
    down_bytes: int
    offline_bytes: int
    network_s: float
    offline_network_s: float


def price_of_pass(
    loaded: Loaded,
    length: int,
    network: Network,
    plan: str | None = None,
    memory: float = 0,
    private_head: bool = False,
) -> DelegatedPrice:
    """Of one text of `length` tokens, or of an image or a recording; of a language model, of a pass that reads so many
    tokens. `memory`: bytes of layers that the client computes; `private_head`: whether the model's last part is left
    out. Errors: DelegationError, LoadError."""
    if private_head:
        loaded, _ = without_head(loaded, head_of(loaded.model, loaded.name))
    module, inputs = module_of(loaded), example_inputs(loaded, length)
    layers = delegated_layers(module, partial(module, **inputs))
    manifest = Manifest(
        loaded.name, tuple(GroupEntry(group.layers, "", "") for group in layers.groups), "", ring_of(plan)
    )
    runner = DelegatedRunner(module, DelegatedModel(manifest, (), (), layers.kept))
    sequence = sequence_of(runner.steps(module, (), inputs))
    if memory:
        kept = groups_within(memory, runner.groups, sequence, runner.index.parameters)
        runner.keep([layer.parameter for number in kept for layer in runner.groups[number].layers])
        sequence = sequence_of(runner.steps(module, (), inputs))
    sizes = [(group.inputs, group.outputs) for group in layers.groups]
    up, down = (bytes_of(sizes, sequence, manifest.ring) for bytes_of in (request_bytes, corrections_bytes))
    online = len(sequence) * network.rtt + (up + down) * 8 / network.bandwidth
    rows = max((rows for _, rows in sequence), default=0)
    return DelegatedPrice(
        len({group for group, _ in sequence}), rows, len(sequence), up, down, down, online, down * 8 / network.bandwidth
    )


def price_of_head(
    loaded: Loaded, length: int, network: Network, plan: str | None = None, progress: Progress | None = None
) -> Estimate:
    """Of the private session of the model's last part, which one query holds in its midst. Errors: as
    `price_of_pass`, and those of `compile`."""
    lengths = None if loaded.task.medium is not None else [length]
    typical = typical_inputs(loaded, lengths, None)
    (compiled,) = compile_head(loaded, head_of(loaded.model, loaded.name), plan_name(plan), typical, progress).values()
    return estimate(compiled, network)
