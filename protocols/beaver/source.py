"""Where correlated randomness comes from: one description, three roles.

A primitive describes its correlation once, as a function of a `Source`: which values are uniform, which follow from them.
The same description then runs in three places:

    dealer   holds both seeds: every call returns the value itself, and `derived` sends P0 a correction
    client   holds its seed: every call returns its share; `derived` shares are fresh uniform key stream
    server   holds its seed and reads corrections: `derived` shares are value minus the client's share

The client receives nothing from the dealer. The dealer receives nothing but seeds, a program hash and counters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..channel import Channel
from ..errors import CorrelationError
from ..rounds import pack, unpack
from ..streams import Stream

Shape = tuple[int, ...]
FRAME = 1 << 20  # bytes per frame of corrections


class Source(Protocol):
    role: str

    def uniform(self, label: str, shape: Shape) -> Tensor:
        """A uniform value that nobody but the dealer knows; the parties hold additive shares."""
        ...

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        """A uniform value known to `owner` ("client" or "server") alone; the other party gets zeros."""
        ...

    def derived(self, label: str, shape: Shape, value: Callable[[], Tensor], width: int = 8) -> Tensor:
        """Shares of a value computed from others. `width`: bytes per element that matter (low bytes)."""
        ...

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        """Like `uniform`, as bit planes shared by exclusive or."""
        ...

    def derived_bits(self, label: str, shape: Shape, value: Callable[[], Tensor]) -> Tensor:
        """Like `derived`, as bit planes shared by exclusive or."""
        ...


class Corrections:
    """What the dealer sends P0 for one query: a byte stream of known length, in frames of `FRAME` bytes."""

    def __init__(self, channel: Channel, total: int) -> None:
        self.channel = channel
        self.left = total
        self._buffer = bytearray()
        self._at = 0

    def write(self, tensor: Tensor, width: int) -> None:
        self._buffer += pack([(tensor, width)], tensor.numel() * width)
        while len(self._buffer) >= FRAME:
            self._send(FRAME)

    def read(self, shape: Shape, width: int) -> Tensor:
        count = width
        for n in shape:
            count *= n
        if count > self.left + len(self._buffer) - self._at:
            raise CorrelationError("dealer's corrections: more are needed than the program declares; this is a bug")
        while len(self._buffer) - self._at < count:
            frame = self.channel.recv(min(FRAME, self.left))
            self.left -= len(frame)
            self._buffer = self._buffer[self._at :] + frame
            self._at = 0
        out = unpack(self._buffer, self._at, shape, width)
        self._at += count
        return out

    def finish(self) -> None:
        """Dealer: send the rest. Fails closed if what was made is not what the program declares."""
        while self._buffer:
            self._send(min(FRAME, len(self._buffer)))
        if self.left:
            raise CorrelationError(f"dealer's corrections: {self.left} bytes short of the declared total; this is a bug")

    def _send(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise CorrelationError("dealer's corrections: longer than the program declares; this is a bug")
        self.channel.send(bytes(self._buffer[:size]))
        del self._buffer[:size]


class DealerSource:
    """The dealer's side: values in the clear, of masks only."""

    role = "dealer"

    def __init__(self, server: Stream, client: Stream, corrections: Corrections) -> None:
        self.server, self.client, self.corrections = server, client, corrections

    def uniform(self, label: str, shape: Shape) -> Tensor:
        return self.server.integers(label, shape).add_(self.client.integers(label, shape))

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return (self.client if owner == "client" else self.server).integers(label, shape)

    def derived(self, label: str, shape: Shape, value: Callable[[], Tensor], width: int = 8) -> Tensor:
        out = value()
        self.corrections.write(out - self.client.integers(label, shape), width)
        return out

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.server.integers(label, shape) ^ self.client.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, value: Callable[[], Tensor]) -> Tensor:
        out = value()
        self.corrections.write(out ^ self.client.integers(label, shape), 8)
        return out


class ClientSource:
    """P1's side: everything from its own seed."""

    role = "client"

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def uniform(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.stream.integers(label, shape) if owner == "client" else torch.zeros(shape, dtype=torch.int64)

    def derived(self, label: str, shape: Shape, value: Callable[[], Tensor], width: int = 8) -> Tensor:
        return self.stream.integers(label, shape)

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, value: Callable[[], Tensor]) -> Tensor:
        return self.stream.integers(label, shape)


class ServerSource:
    """P0's side: uniform values from its seed, derived ones from the dealer's corrections."""

    role = "server"

    def __init__(self, stream: Stream, corrections: Corrections) -> None:
        self.stream, self.corrections = stream, corrections

    def uniform(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.stream.integers(label, shape) if owner == "server" else torch.zeros(shape, dtype=torch.int64)

    def derived(self, label: str, shape: Shape, value: Callable[[], Tensor], width: int = 8) -> Tensor:
        return self.corrections.read(shape, width)

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, value: Callable[[], Tensor]) -> Tensor:
        return self.corrections.read(shape, 8)


class CountingSource:
    """Prices a correlation: counts the corrections' bytes, on tensors without storage. The declared offline cost."""

    role = "count"

    def __init__(self) -> None:
        self.bytes = 0

    def uniform(self, label: str, shape: Shape) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.uniform(label, shape)

    def derived(self, label: str, shape: Shape, value: Callable[[], Tensor], width: int = 8) -> Tensor:
        out = self.uniform(label, shape)
        self.bytes += out.numel() * width
        return out

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.uniform(label, shape)

    def derived_bits(self, label: str, shape: Shape, value: Callable[[], Tensor]) -> Tensor:
        return self.derived(label, shape, value)
