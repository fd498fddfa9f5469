"""The result: opened to the client, or handed in two shares to an owner who takes no part in the protocol.

to the client   The server sends its share. The client learns the result, the server nothing.
to the owner    Each party adds its share of a fresh zero and keeps the sum for the owner, who adds the two. The parties
                learn nothing: no message passes between them.

Why the zero: shares of results are functions of opened values and of masks. One alone looks uniform, but those of
several results may come from the same masks, and together they would tell the owner about intermediate values, hence
about the weights. With the zero, the pair of answer shares is a uniformly random sharing of the result, whatever came
before: whoever knows the result can draw such a pair himself.

The zero's shares are s and -s, where s is P1's key stream and -s a correction like all others. So the dealer and both
parties know them; the owner does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..operations import OWNER
from ..ring import sign_extend
from ..rounds import Swap
from ..wire import wire_bytes
from .context import Offline, Online
from .primitive import Cost, Primitive, Steps, size
from .values import Shape, Share, Trace, mask_bytes


class Reveal(Primitive):
    """Returns the result at the client and None at the server; to the owner, each party's share of it."""

    op = "reveal"

    def correlate(self, offline: Offline, key: str, shape: Shape, width: int, *args: Any, **attributes: Any) -> Trace:
        if attributes["to"] == OWNER:
            zero = offline.source.derived(f"{key}/zero", shape, lambda: _zeros(shape), mask_bytes(width))
            offline.keep(key, zero)
        return Trace(key, shape, width)

    def run(self, online: Online, key: str, width: int, *args: Any, **attributes: Any) -> Steps:
        x: Share = args[0]
        if attributes["to"] == OWNER:
            zero = online.tape.take(key)
            assert isinstance(zero, Tensor)
            return x.tensor + zero
        if online.leader:
            yield [Swap(x.tensor, None, wire_bytes(width))]
            return None
        (theirs,) = yield [Swap(None, x.shape, wire_bytes(width))]
        return sign_extend(x.tensor + theirs, width)

    def cost(self, shape: Shape, width: int, *args: Any, **attributes: Any) -> Cost:
        if attributes["to"] == OWNER:
            return Cost(offline=mask_bytes(width) * size(shape))
        return Cost(((wire_bytes(width) * size(shape), 0),))


def _zeros(shape: Shape) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)
