"""What a query's correlations cost two parties that make them without a dealer. Exact: what is metered is the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...models.program.correlations import Correlations
from ...models.program.pricing import Network
from ...models.program.program import Program
from ..session.pair_corrections import check_pair

if TYPE_CHECKING:
    from ...protocols.pair.declared import BothWays, PairCost


@dataclass(frozen=True)
class PairEstimate:
    """Payload in bytes.

    setup      of a session, once: base transfers, the lattice key and the encrypted weights
    query      of each query after the first: by kind, and rounds
    network_s  seconds of a query on the network: its round trips and bytes, without computing
    """

    setup: BothWays
    query: PairCost
    network_s: float


def estimate_pair(program: Program, network: Network) -> PairEstimate:
    """Of one query. Errors: BlindformerError for a program whose correlations take a dealer."""
    check_pair(program)
    from ...protocols.pair.declared import SessionCosts, setup_traffic  # of an extra

    costs, setup, walk = SessionCosts(), setup_traffic(), Correlations(program).pair_walk({})
    if (weights := costs.of(walk).traffic.get("weights")) is not None:
        setup.add(weights.to_client, weights.to_server)
    query = costs.of(walk)
    both = query.total.to_client + query.total.to_server
    return PairEstimate(setup, query, query.rounds * network.rtt + 8 * both / network.bandwidth)
