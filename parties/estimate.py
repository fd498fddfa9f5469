"""What a private query will cost, before anybody runs one. Bytes and rounds are exact: a run meters the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..models.compile import Compiled
from ..models.pricing import NETWORKS, Network, price
from ..models.program import Program
from ..protocols.errors import BlindformerError
from .report import Layer, layers

PROTOCOLS = ("beaver",)


@dataclass
class Estimate:
    """Bytes are payload. `online_s` is a model: rounds, wire and integer products one after the other, no overlap.

    `up`, `down`: online bytes from client to server and back. `offline_wire_s`: the dealer's bytes on the wire alone.
    """

    network: str
    rounds: int
    up: int
    down: int
    online_bytes: int
    offline_bytes: int
    setup_bytes: int
    macs: int
    online_s: float
    offline_wire_s: float
    layers: list[Layer]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(program: Program | Compiled, network: str | Network = "lan") -> Estimate:
    """The price of one query. `network`: loopback, lan, wan, or one of your own.

    Errors: BlindformerError for an unknown network; ProgramError if the protocol does not offer what the program needs.
    """
    if isinstance(network, str):
        if network not in NETWORKS:
            raise BlindformerError(f"network {network}: not known; choose one of {', '.join(NETWORKS)}")
        network = NETWORKS[network]
    found = price(program.program if isinstance(program, Compiled) else program)
    return Estimate(
        network=network.name,
        rounds=found.rounds,
        up=found.up,
        down=found.down,
        online_bytes=found.online_bytes,
        offline_bytes=found.offline_bytes,
        setup_bytes=found.setup_bytes,
        macs=found.macs,
        online_s=found.seconds(network),
        offline_wire_s=8 * found.offline_bytes / network.bandwidth,
        layers=layers(found),
    )
