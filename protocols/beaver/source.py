"""Where correlated randomness comes from: one description, three roles.

A primitive describes its correlation once, as a function of a `Source`: which values are uniform, which follow from
them. The same description then runs in three places:

    dealer   holds both seeds: every call returns the value itself, and `derived` sends P0 a correction
    client   holds its seed: every call returns its share; `derived` shares are fresh uniform key stream
    server   holds its seed and reads corrections: `derived` shares are value minus the client's share

The client receives nothing from the dealer; of tables by keys (point_function.py) the server passes on to it what the
dealer has sent. The dealer receives nothing but seeds, a program hash and counters.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ..channel import Channel
from ..devices import CPU, META
from ..errors import CorrelationError
from ..streams import Stream
from ..wire import elements, held_in, pack_into, unpack
from .point_function import KEYS, PointGroup, PointKeys, deal_points, sets_of

Shape = tuple[int, ...]
Pause = Callable[[int, int], None]
FRAME = 1 << 18  # bytes up to which small corrections share a frame
PIECE = 1 << 26  # bytes after which the dealer waits until P0 has room for more
DEALER_OVERHEAD_FACTOR = 6  # peak memory of a dealer beside each value, as a multiple of its size: terms, shares, frame


class Recipe(Protocol):
    """Of what a correlation is computed, and how: data of earlier values, so that a role may read it as it needs."""

    def value(self) -> Tensor:
        """The value itself, of the values that it reads: at the dealer."""
        ...


class Source(Protocol):
    role: str
    device: torch.device  # of what it gives
    evaluates: bool  # whether it reads recipes, which then need all that they name
    narrow: bool  # whether all shares are in the narrowest integers that hold them, which a large tape has room for

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        """A uniform value that nobody but the dealer knows; the parties hold additive shares. `width`: bytes per
        element that matter (low bytes)."""
        ...

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        """A uniform value known to `owner` ("client" or "server") alone; the other party gets zeros."""
        ...

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        """Shares of a value computed from others. `narrow`: in the narrowest integers that hold `width` bytes, of which
        the dealer may make the value."""
        ...

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        """Like `uniform`, as bit planes shared by exclusive or."""
        ...

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        """Like `derived`, shared by exclusive or."""
        ...


class PointSource(Source, Protocol):
    """A source of two parties."""

    def points(self, group: PointGroup) -> PointKeys | None:
        """Keys for all points, which the dealer makes; None at the dealer."""
        ...


class Corrections:
    """What the dealer sends P0 for one query.

    `layout`: the bytes of every correction, in order, known to both from the program. Small corrections share a frame.
    Anything that differs from the layout fails closed. `pause`: as of `paced`; `device`: gets what is read.
    """

    def __init__(
        self, channel: Channel, layout: tuple[int, ...], pause: Pause | None = None, device: torch.device = CPU
    ) -> None:
        self.channel, self.device = channel, device
        self._layout = iter(layout)
        self._frames = paced(layout, pause)
        self._frame = bytearray()
        self._at = 0

    def write(self, tensor: Tensor, width: int, minus: Tensor | None = None) -> None:
        self._check(tensor.numel() * width)
        if self._at == len(self._frame):
            self._frame, self._at = bytearray(next(self._frames)), 0
        self._at = pack_into(self._frame, self._at, tensor, width, minus)
        if self._at == len(self._frame):
            self.channel.send(self._frame)

    def read(self, shape: Shape, width: int, narrow: bool = False, device: torch.device | None = None) -> Tensor:
        size = elements(shape) * width
        self._check(size)
        if self._at == len(self._frame):
            self._frame, self._at = self.channel.recv(next(self._frames)), 0
        out = unpack(self._frame, self._at, shape, width, held_in(width, narrow), device or self.device)
        self._at += size
        return out

    def finish(self) -> None:
        """Fails closed if less was made than the program declares."""
        if next(self._layout, None) is not None:
            raise CorrelationError("dealer's corrections: fewer than the program declares; this is a bug")

    def _check(self, size: int) -> None:
        declared = next(self._layout, None)
        if declared != size:
            raise CorrelationError(
                f"dealer's corrections: {size} bytes where the program declares {declared}; this is a bug"
            )


def frames(layout: tuple[int, ...]) -> list[int]:
    """Sizes of the frames: corrections in order, merged up to `FRAME` bytes, larger ones alone."""
    sizes: list[int] = []
    open_ = False
    for size in layout:
        if open_ and sizes[-1] + size <= FRAME:
            sizes[-1] += size
        else:
            sizes.append(size)
        open_ = sizes[-1] < FRAME
    return sizes


def paced(layout: tuple[int, ...], pause: Pause | None = None) -> Iterator[int]:
    """The frames' sizes. `pause`: called between two pieces of `PIECE` bytes, at both ends at the same places, with the
    bytes of all frames to the end of the next piece, and of all that come."""
    total, before, ahead = sum(layout), 0, PIECE
    for size in frames(layout):
        if pause is not None and before >= ahead:
            ahead = before + PIECE
            pause(min(ahead, total), total)
        before += size
        yield size


class DealerSource:
    """The dealer's side: values in the clear, of masks only."""

    role, narrow, evaluates = "dealer", False, True

    def __init__(self, server: Stream, client: Stream, corrections: Corrections) -> None:
        self.server, self.client, self.corrections, self.device = server, client, corrections, client.device

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        return self.server.integers(label, shape, width).add_(self.client.integers(label, shape, width))

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return (self.client if owner == "client" else self.server).integers(label, shape)

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        out = recipe.value()
        share = self.client.integers(label, shape, width, out.dtype is not torch.int64)
        self.corrections.write(out, width, share)
        return out

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.server.integers(label, shape) ^ self.client.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        out = recipe.value()
        self.corrections.write(out ^ self.client.integers(label, shape, width), width)
        return out

    def points(self, group: PointGroup) -> None:
        roots = roots_of(self.server, group), roots_of(self.client, group)
        words = deal_points(group.layout, roots, aes_keys_of(self.server, group), group.points(), group.runs)
        self.corrections.write(words, 8)


class PartyMasks:
    """What a party draws from its own seed, whatever its seat."""

    evaluates = False
    stream: Stream
    device: torch.device

    def drawn_if(self, known: bool, label: str, shape: Shape) -> Tensor:
        """A value that this party knows, or does not know: then zeros."""
        return (
            self.stream.integers(label, shape) if known else torch.zeros(shape, dtype=torch.int64, device=self.device)
        )


class ClientSource(PartyMasks):
    """P1's side: everything from its own seed. `later`: many numbers at once are drawn where they are used, and a tape
    does not hold them."""

    role = "client"

    def __init__(self, stream: Stream, narrow: bool = False, later: bool = False) -> None:
        self.stream, self.device, self.narrow, self.later = stream, stream.device, narrow, later

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        return self.stream.integers(label, shape, width, self.narrow)

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.drawn_if(owner == "client", label, shape)

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.stream.integers(label, shape, width, narrow or self.narrow)

    def drawn_later(self, label: str, shape: Shape, width: int) -> Callable[[], Tensor]:
        """What `derived` gives, when it is called. Once, as all that is drawn."""
        return lambda: self.stream.integers(label, shape, width, True)

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.stream.integers(label, shape, width, narrow)

    def points(self, group: PointGroup) -> PointKeys:
        return PointKeys(group.layout, roots_of(self.stream, group), 1, runs=group.runs, device=self.device)


class ServerSource(PartyMasks):
    """P0's side: uniform values from its seed, derived ones from the dealer's corrections. `ahead`: numbers out of keys
    are made ahead of the query."""

    role = "server"

    def __init__(self, stream: Stream, corrections: Corrections, narrow: bool = False, ahead: bool = True) -> None:
        self.stream, self.corrections, self.device = stream, corrections, stream.device
        self.narrow, self.ahead = narrow, ahead

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        return self.stream.integers(label, shape, width, self.narrow)

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.drawn_if(owner == "server", label, shape)

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.corrections.read(shape, width, narrow or self.narrow)

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.corrections.read(shape, width, narrow)

    def points(self, group: PointGroup) -> PointKeys:
        layout, runs = group.layout, group.runs
        roots = roots_of(self.stream, group)
        words = self.corrections.read((runs * group.count, layout.words), 8, device=CPU)
        keys = PointKeys(layout, roots, 0, words, aes_keys_of(self.stream, group), runs, device=self.device)
        if self.ahead:
            keys.keep_numbers()
        return keys


class CountingSource:
    """Prices a correlation on tensors without storage.

    layout   bytes of the corrections: the declared offline cost
    held     bytes of the values that something still reads; `peak`: the most that a dealer ever holds
    grown    bytes of the numbers that a party makes out of keys
    """

    role, device, narrow, evaluates = "count", META, False, False

    def __init__(self) -> None:
        self.layout: list[int] = []
        self.held = self.peak = self.grown = 0

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        tensor = torch.empty(shape, dtype=torch.int64, device=self.device)
        size = 8 * tensor.numel()
        self.peak = max(self.peak, self.held + (1 + DEALER_OVERHEAD_FACTOR) * size)
        self._hold(size)
        weakref.finalize(tensor, self._hold, -size)
        return tensor

    def _hold(self, size: int) -> None:
        self.held += size

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.uniform(label, shape)

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        out = self.uniform(label, shape)
        self.layout.append(out.numel() * width)
        return out

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.uniform(label, shape)

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.derived(label, shape, recipe, width)

    def gathered(self, group: PointGroup, count: int) -> None:
        """So many points more, which the dealer holds until their keys are made; and what it takes to find them."""
        size = count * group.layout.gathered
        self.peak = max(self.peak, self.held + 3 * size + 24 * count)
        self._hold(size)

    def points(self, group: PointGroup) -> None:
        count, layout = group.runs * group.count, group.layout
        self.layout.append(8 * count * layout.words)
        self.peak = max(self.peak, self.held + layout.dealing(count))
        self._hold(-count * layout.gathered)
        self.grown += count * layout.numbers


# Trees of keys grow on the processor, which has the cipher.


def roots_of(stream: Stream, group: PointGroup) -> Tensor:
    return stream.on(CPU).integers(f"{group.label}/root", (group.runs * group.count, 2))


def aes_keys_of(server: Stream, group: PointGroup) -> Tensor:
    return server.on(CPU).integers(f"{group.label}/keys", (group.runs * sets_of(group.count), KEYS, 2))
