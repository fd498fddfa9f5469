"""The result: to one party, or in N shares to an owner who takes no part in the protocol.

Each share goes out under a fresh sharing of zero that the dealer makes, for the reason that protocols/beaver/reveal.py
gives: shares of several results may come from the same masks. With it, what arrives is a uniformly random sharing of
the result, whatever came before. The recipient learns the result, the others nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..beaver.primitive import Primitive, Steps, size
from ..beaver.values import Shape, Share, Trace, mask_bytes
from ..operations import OWNER
from ..ring import sign_extend
from ..rounds import Swap
from ..wire import wire_bytes
from .costs import RECIPIENT, ManyCost, Moved


class Reveal(Primitive):
    """Returns the result at the recipient and None at the others; to the owner, each party's share of it."""

    op = "reveal"

    def correlate(self, offline: Any, key: str, shape: Shape, width: int, *args: Any, **attributes: Any) -> Trace:
        zero = offline.source.derived(
            f"{key}/zero", shape, lambda: torch.zeros(shape, dtype=torch.int64), mask_bytes(width)
        )
        offline.keep(key, zero)
        return Trace(key, shape, width)

    def run(self, online: Any, key: str, width: int, *args: Any, **attributes: Any) -> Steps:
        x: Share = args[0]
        zero = online.tape.take(key)
        assert isinstance(zero, Tensor)
        share = x.tensor + zero
        if attributes["to"] == OWNER:
            return share
        if online.rank != online.recipient:
            yield [Swap(share, None, wire_bytes(width), peer=online.recipient)]
            return None
        (theirs,) = yield [Swap(None, x.shape, wire_bytes(width))]
        return sign_extend(share + theirs, width)

    def cost(self, shape: Shape, width: int, *args: Any, **attributes: Any) -> Any:
        steps = () if attributes["to"] == OWNER else (Moved(gathered=wire_bytes(width) * size(shape), one=RECIPIENT),)
        return ManyCost(steps, mask_bytes(width) * size(shape))
