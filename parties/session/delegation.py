"""Messages of delegated sessions, and what server and dealer check of them before anything is made.

    client -> server   {"declare": k, "calls": [[group, rows], ...]}     a sequence of calls, k counts up
                       {"query": n, "sequence": k, "runs": c, "ahead": {...}}
    server -> client   {"ready": n}                                      the corrections of pass n are here
    for each call      client -> server   q - r        rows x inputs integers of the ring, 4 or 3 bytes each
                       server -> client   W q - s      rows x outputs; both in halves, if there are many rows
    server -> client   {"done": n}
    server -> dealer   {"deal": n, "runs": c, "calls": [...]}            W r - s of c passes, numbered from n on
    dealer -> server   {"dealing": n}, a tensor [runs, rows, outputs] for each call, {"dealt": n}

Made ahead, for passes of later sessions:
    client -> server   {"store": {...}, "mine": b}                       of a block, by the dealer or (mine) this client
    server -> client   {"send": n}, if mine; then the client sends what the dealer would
                       {"stored": n}                                     now the client keeps the keys of these passes
    client -> server   {"kept": n}, or "stop"; without it the server sweeps them away later
    client -> server   {"query": n, "sequence": k, "store": {...}}       on stored ones, which the client has marked
    server -> client   {"ready": n}, or "missing", or "spent"

Numbers count up, and each is dealt once and used once. What a peer gains that lies about a sequence: other masks, so an
answer that fails the client's check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ...models.delegated.manifest import Manifest
from ...models.delegated.sequences import GroupCalls
from ...protocols.channel import Channel
from ...protocols.delegated.arithmetic import PassMasks, linear32, pack_ring, ring_bytes, unpack_ring
from ...protocols.errors import PeerProtocolError
from ...protocols.wire import wire_bytes
from .messages import Message
from .preprocessed import GB
from .preprocessing_store import Number, Ref
from .statements import SessionNotes

ADVERSARY = "parties that deviate in any way, as long as server and dealer do not collude; answers are checked"
PROTOCOL = "delegated"
MOST_CALLS, MOST_SEQUENCES, MOST_RUNS = 4096, 256, 64
ROW = 3  # stored passes, behind which others are expected
HELD_BYTES = 4  # of a number, in memory
MEMORY_BYTES = 4 * GB  # for the corrections of one block, unless the settings say otherwise
MANY = 32  # rows, which travel in halves: one side computes on one while the other is under way

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
    made, from it on. `ahead`: what may be made while it runs. `store`: on these stored ones."""

    query: Number
    sequence: _Small
    runs: _Runs = 1
    ahead: PassBlock | None = None
    store: Ref | None = None


class Ahead(Message):
    """Between two passes: what may be made now."""

    ahead: PassBlock


class StorePasses(Message):
    """The corrections of these passes are to be stored. `mine`: the client makes them itself."""

    store: PassBlock
    mine: Annotated[bool, Field(strict=True)] = False


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


class DelegatedNotes(SessionNotes):
    """`program`: the manifest."""

    def about(self) -> dict[str, Any]:
        return {"topology": "dealer", "plan": "", "verify": "products", "passed": True if self.queries else None}


def deal(
    weights: PublicWeights, keys: Sequence[bytes], certificate: str, sequence: GroupCalls
) -> Iterator[memoryview | bytearray]:
    """W r - s of passes with these keys, call by call [runs x rows, outputs], as it is sent. Each weight is read once
    for all of them. `certificate`: the server's fingerprint."""
    masks = [PassMasks(key, weights.manifest.digest, certificate, sequence) for key in keys]
    for group, rows in sequence:
        inputs, outputs = weights.sizes[group]
        drawn = [each.next(rows, inputs, outputs) for each in masks]
        r, s = (torch.cat(part) for part in zip(*drawn, strict=True))
        yield pack_ring(linear32(r, weights.integers[group]).sub_(s), weights.ring)


def receive_dealt(channel: Channel, weights: PublicWeights, sequence: GroupCalls, runs: int) -> list[Tensor]:
    """What `deal` makes, from who has made it: by call, int32 [runs, rows, outputs]."""
    shapes, ring = [(runs, rows, weights.sizes[group][1]) for group, rows in sequence], weights.ring
    return [unpack_ring(channel.recv(ring_bytes(shape, ring)), shape, ring) for shape in shapes]


def parts_of(rows: int) -> list[slice]:
    """The rows of a call, as they travel: both before an answer, so that a call is one round."""
    half = rows // 2
    return [slice(0, rows)] if rows < MANY else [slice(0, half), slice(half, rows)]


def row_of(before: tuple[Ref | None, int], ref: Ref) -> int:
    """How many stored passes have followed each other, with this one. After ROW of them both sides mark the next one
    while this one runs: it takes a disk's time, and a session loses one pass by it at its end."""
    last, count = before
    return count + 1 if last == Ref(session=ref.session, number=max(0, ref.number - 1)) else 1


def stored_for(sequence: GroupCalls, *bound: str) -> str:
    """What stored corrections are for, in a store, beside the manifest: this sequence, and the parties `bound`."""
    return hashlib.sha256(json.dumps([sequence, bound]).encode()).hexdigest()


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
