"""What a private query will cost, before anybody runs one.

Bytes and rounds are exact: a run meters the same. Seconds are a query replayed on a virtual clock: each party's CPU
time as this machine needs it (rehearsal.py), each frame as a network would carry it (shaping.py). So rounds, bytes in
each direction, bytes in flight while both sides compute, and the dealer on its own link are counted as they happen.
Each party is taken to have a core of this machine for itself.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...models.compile import Compiled
from ...models.program.pricing import NETWORKS, Network, PriceAmong, price_among
from ...models.program.program import Program
from ...protocols.errors import BlindformerError
from ..session.parties import Parties
from ..session.rehearsal import Move, Rehearsal, rehearse
from ..transport.shaping import Link
from .report import QueryPrice, declared


@dataclass(kw_only=True)
class Estimate(QueryPrice):
    """One query, with its seconds on a network.

    `offline_s`: from asking for correlations until they are there (of several runs at once: one run's part);
    `online_s`: from then to the result, both at the client. `setup_s`: the masked weights on the wire, once.
    `compute_s`: CPU seconds in these, by party and phase.
    `rtt_s`: seconds there and back; `bandwidth`: bits a second, each way.
    """

    network: str
    rtt_s: float
    bandwidth: float
    setup_s: float
    offline_s: float
    online_s: float
    compute_s: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    program: Program | Compiled,
    network: str | Network = "lan",
    *,
    dealer: str | Network | None = None,
    rehearsal: Rehearsal | None = None,
) -> Estimate:
    """The price of one query. `network`: loopback, lan, wan, or one of your own; `dealer`: the one between dealer and
    server, if it is another. `rehearsal`: for several networks; without it one is made, which takes about as long as
    the computation of two queries.

    Errors: BlindformerError for an unknown network, and for a conversation's program (estimate_conversation prices
    that); ProgramError if the protocol does not offer what the program needs.
    """
    near = network if isinstance(network, Network) else find_network(network)
    far = near if dealer is None else dealer if isinstance(dealer, Network) else find_network(dealer)
    weights = program.weights if isinstance(program, Compiled) else None
    program = program.program if isinstance(program, Compiled) else program
    if program.parts:
        raise BlindformerError(f"{program.model}: is compiled for conversations; use estimate_conversation")
    prices = declared(program)
    rehearsal = rehearsal or rehearse(program, weights)
    clock = replay(rehearsal.moves, near, far)["client"]
    ready = clock[rehearsal.ready["client"] - 1]
    return Estimate(
        network=near.name,
        rtt_s=near.rtt,
        bandwidth=near.bandwidth,
        setup_s=Link(near).arrival(0.0, prices["setup_bytes"]),
        offline_s=ready / rehearsal.runs,
        online_s=clock[-1] - ready,
        compute_s=rehearsal.compute_s(),
        **prices,
    )


def price_of_two(compiled: Compiled, network: Network, parties: Parties) -> Estimate:
    """As the registry names it."""
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


def find_network(name: str, rtt: float | None = None, bandwidth: float | None = None) -> Network:
    """A network by name, with another round-trip time (seconds) or bandwidth (bits a second) where given.

    Errors: BlindformerError for an unknown name.
    """
    if name not in NETWORKS:
        raise BlindformerError(f"network {name}: not known; choose one of {', '.join(NETWORKS)}")
    named = NETWORKS[name]
    if rtt is None and bandwidth is None:
        return named
    return Network("as given", named.rtt if rtt is None else rtt, bandwidth or named.bandwidth)
