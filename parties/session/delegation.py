"""Messages of delegated sessions, and what server and dealer check of them before anything is made.

    client -> server   {"declare": k, "calls": [[group, rows], ...]}     a sequence of calls, k counts up
                       {"query": n, "sequence": k, "runs": c, "ahead": {...}}
    server -> client   {"ready": n}                                      the corrections of pass n are here
    for each call      client -> server   q - r        rows x inputs integers of the ring, 4 or 3 bytes each
                       server -> client   W q - s      rows x outputs
    server -> client   {"done": n}
    server -> dealer   {"deal": n, "runs": c, "calls": [...]}            W r - s of c passes, numbered from n on
    dealer -> server   {"dealing": n}, a tensor [runs, rows, outputs] for each call, {"dealt": n}

Numbers count up, and each is dealt once and used once. What a peer gains that lies about a sequence: other masks, so an
answer that fails the client's check.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from pydantic import Field
from torch import Tensor

from ...models.delegated.manifest import Manifest
from ...models.delegated.sequences import GroupCalls
from ...protocols.channel import Channel
from ...protocols.errors import PeerProtocolError
from ...protocols.wire import wire_bytes
from ...versions import spoken_version
from ..transport.handshake import Hello
from .messages import Message
from .spool.spool import Number

MOST_CALLS, MOST_SEQUENCES, MOST_RUNS = 4096, 256, 64
HELD_BYTES = 4  # of a number, in memory

_Small = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Call = Annotated[list[_Small], Field(min_length=2, max_length=2)]
_Calls = Annotated[list[_Call], Field(min_length=1, max_length=MOST_CALLS)]
_Runs = Annotated[int, Field(ge=1, le=MOST_RUNS, strict=True)]


class Declare(Message):
    """Sequence number `declare`, from now on."""

    declare: _Small
    calls: _Calls


class PassBlock(Message):
    """The passes `first` to `first + runs` go through one sequence: their corrections are made together."""

    first: Number
    sequence: _Small
    runs: _Runs = 1


class AskPass(Message):
    """Pass `query` follows, through this sequence. Where its corrections are not there yet, those of `runs` passes are
    made, from it on. `ahead`: what may be made while it runs."""

    query: Number
    sequence: _Small
    runs: _Runs = 1
    ahead: PassBlock | None = None


class Ahead(Message):
    """Between two passes: what may be made now."""

    ahead: PassBlock


class Deal(Message):
    deal: Number
    runs: _Runs
    calls: _Calls


@dataclass(frozen=True)
class PublicWeights:
    """What server and dealer hold: by group, integers [outputs, inputs]."""

    manifest: Manifest
    integers: Sequence[Tensor]

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) by group."""
        return [(matrix.shape[1], matrix.shape[0]) for matrix in self.integers]

    @property
    def ring(self) -> int:
        return self.manifest.ring

    @property
    def about(self) -> str:
        numbers = sum(matrix.numel() for matrix in self.integers)
        layers = f"{len(self.integers)} groups of public layers, {numbers / 1e6:.0f} M weights"
        return f"{self.manifest.model or 'model'}, {layers}"

    def checked(self, channel: Channel, calls: Sequence[Sequence[int]], runs: int, memory: float) -> GroupCalls:
        """The calls as a sequence. Errors: PeerProtocolError for groups that there are not, and for more than `memory`
        bytes of corrections, or of one layer's masks."""
        if any(group >= len(self.sizes) or rows < 1 for group, rows in calls):
            raise PeerProtocolError(channel.peer, "named a group that the model has not", "prepare the model again")
        sequence = tuple((group, rows) for group, rows in calls)
        needed = runs * memory_bytes(self.sizes, sequence)
        if needed > memory:
            what = f"asks for {needed / 1e9:.3g} GB of corrections at once, and {memory / 1e9:.3g} GB are allowed"
            raise PeerProtocolError(channel.peer, what, "ask for fewer rows: a shorter text, or a smaller batch")
        return sequence


def corrections_bytes(sizes: Sequence[tuple[int, int]], sequence: GroupCalls, ring: int) -> int:
    """Bytes from dealer to server for one pass; the same come online from the server."""
    return wire_bytes(ring) * sum(rows * sizes[group][1] for group, rows in sequence)


def request_bytes(sizes: Sequence[tuple[int, int]], sequence: GroupCalls, ring: int) -> int:
    """Bytes from client to server, online, for one pass."""
    return wire_bytes(ring) * sum(rows * sizes[group][0] for group, rows in sequence)


def memory_bytes(sizes: Sequence[tuple[int, int]], sequence: GroupCalls) -> int:
    """Bytes that one pass takes at most at once: the server holds its corrections, and the dealer a call's masks."""
    masks = max(rows * max(sizes[group]) for group, rows in sequence)
    return HELD_BYTES * max(masks, sum(rows * sizes[group][1] for group, rows in sequence))


def delegated_hello(manifest: Manifest, role: str, session: str = "", config: str = "") -> Hello:
    """This party's hello. An empty `session` takes the peer's. `config`: Settings.shared_hash()."""
    return Hello(
        blindformer=spoken_version(),
        role=role,
        topology="dealer",
        program=manifest.digest,
        ring=manifest.ring,
        plan="",
        protocol="delegated",
        session=session,
        config=config,
        audits="0",
    )
