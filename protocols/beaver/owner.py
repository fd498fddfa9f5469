"""The data owner who takes no part in the protocol: it splits its values for the two parties, and adds their answers.

x = x0 + x1 in the ring. x1 is a key stream, so P1 is sent a seed; P0 is sent the tensor x0 = x - x1, cut
to the bytes that matter. Each alone is uniform. A seed serves one query: two queries under one seed would show P0 the
difference of their values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ..ring import sign_extend
from ..streams import Stream
from ..wire import elements, pack, unpack, wire_bytes
from .values import Shape, of_shape

Layout = Mapping[str, tuple[Shape, int]]  # shape and width, by name
PURPOSE = "inputs"


def seed_shares(seed: bytes, layout: Layout) -> dict[str, Tensor]:
    """P1's shares."""
    stream = Stream(seed, PURPOSE)
    return {name: stream.integers(name, shape) for name, (shape, _) in layout.items()}


def split(values: Mapping[str, Tensor], seed: bytes, layout: Layout) -> dict[str, Tensor]:
    """P0's shares of encoded values, whose other shares follow from the seed."""
    return {name: values[name] - of_shape(values[name], share) for name, share in seed_shares(seed, layout).items()}


def join(shares: Iterable[Mapping[str, Tensor]], layout: Layout) -> dict[str, Tensor]:
    """The values behind both parties' shares."""
    first, second = shares
    return {name: sign_extend(first[name] + second[name], width) for name, (_, width) in layout.items()}


def layout_bytes(layout: Layout) -> int:
    """Bytes of one party's shares on the wire."""
    return sum(elements(shape) * wire_bytes(width) for shape, width in layout.values())


def pack_shares(shares: Mapping[str, Tensor], layout: Layout) -> bytearray:
    return pack(((shares[name], wire_bytes(width)) for name, (_, width) in layout.items()), layout_bytes(layout))


def unpack_shares(data: bytearray, layout: Layout) -> dict[str, Tensor]:
    shares, at = {}, 0
    for name, (shape, width) in layout.items():
        shares[name] = unpack(data, at, shape, wire_bytes(width))
        at += elements(shape) * wire_bytes(width)
    return shares
