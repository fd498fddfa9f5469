"""Rounds on a CrypTen communicator: one message to each other party and round, cut to the bytes that matter.

An opening is not CrypTen's all-reduce, which sends eight bytes an element, but the same packed message to everybody,
added up on arrival. So a round takes one flight of messages, whatever N.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..devices import CPU
from ..rounds import Swap, Wire
from ..wire import elements, pack, unpack


class Communicator(Protocol):
    """What this needs of `crypten.communicator.get()`."""

    def get_rank(self) -> int: ...
    def get_world_size(self) -> int: ...
    def isend(self, tensor: Tensor, dst: int) -> Any: ...
    def irecv(self, tensor: Tensor, src: int) -> Any: ...


@dataclass
class Traffic:
    """Payload bytes of one party, by peer."""

    sent: dict[int, int] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.sent.values()) + sum(self.received.values())


def over_communicator(communicator: Communicator, traffic: Traffic | None = None, device: torch.device = CPU) -> Wire:
    """The wire of a session of N parties. `traffic` is added to; `device`: gets what comes. Errors: those of the
    communicator."""
    rank, counted = communicator.get_rank(), traffic or Traffic()
    peers = [peer for peer in range(communicator.get_world_size()) if peer != rank]

    def exchange(swaps: list[Swap]) -> list[Tensor | None]:
        waiting, arrived, packed = [], {}, {}
        for peer in peers:
            mine = tuple(i for i, s in enumerate(swaps) if s.send is not None and s.peer in (None, peer))
            size = sum(swaps[i].send_bytes for i in mine)
            if size:
                if mine not in packed:
                    packed[mine] = torch.frombuffer(_pack([swaps[i] for i in mine], size), dtype=torch.uint8)
                waiting.append(communicator.isend(packed[mine], peer))
                counted.sent[peer] = counted.sent.get(peer, 0) + size
        for peer in peers:
            size = sum(s.expect_bytes for s in swaps if s.expect is not None and s.peer in (None, peer))
            if size:
                arrived[peer] = torch.empty(size, dtype=torch.uint8)
                waiting.append(communicator.irecv(arrived[peer], peer))
                counted.received[peer] = counted.received.get(peer, 0) + size
        for work in waiting:
            work.wait()
        return _join(swaps, arrived, device)

    return exchange


def _pack(swaps: list[Swap], size: int) -> bytearray:
    return pack(((s.send, s.width) for s in swaps if s.send is not None), size)


def _join(swaps: list[Swap], arrived: dict[int, Tensor], device: torch.device) -> list[Tensor | None]:
    """Of each swap, what all that take part in it sent: added up, or joined by exclusive or."""
    at = dict.fromkeys(arrived, 0)
    data = {peer: memoryview(message.numpy()) for peer, message in arrived.items()}  # type: ignore[arg-type]
    results: list[Tensor | None] = []
    for swap in swaps:
        total: Tensor | None = None
        if swap.expect is not None and not elements(swap.expect):
            total = torch.zeros(swap.expect, dtype=torch.int64, device=device)
        elif swap.expect is not None:
            for peer in data if swap.peer is None else (swap.peer,):
                part = unpack(data[peer], at[peer], swap.expect, swap.width, device=device)
                at[peer] += swap.expect_bytes
                if total is None:
                    total = part
                elif swap.xor:
                    total ^= part
                else:
                    total += part
        results.append(total)
    return results
