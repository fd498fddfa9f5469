"""The result: to one party, or in N shares to an owner who takes no part in the protocol.

As in protocols/beaver/reveal.py. One party opens z + r and never the recipient: the first, or the second where the
first gets the results. Each share then goes out under a fresh sharing that the dealer makes, of low or of zero, so what
arrives is a uniformly random sharing of the answer, whatever came before. The recipient learns the answer, the others
nothing. Recipient and opener together learn z + (r mod 2^bits): the answer with noise of one unit.
"""

from __future__ import annotations

from typing import Any

from ..beaver.primitive import Primitive, Steps, size
from ..beaver.reveal import rounded, rounding, zero
from ..beaver.values import Shape, Trace, mask_bytes
from ..operations import OWNER
from ..ring import sign_extend
from ..rounds import Swap
from ..wire import wire_bytes
from .context import LEADER
from .costs import OPENER, RECIPIENT, ManyCost, Moved, opener_of


class RevealToOne(Primitive):
    """Returns the result at the recipient and None at the others; to the owner, each party's share of it."""

    op = "reveal"

    def correlate(self, offline: Any, key: str, shape: Shape, width: int, *args: Any, **attributes: Any) -> Trace:
        made = rounding(offline, key, shape, width, **attributes) if attributes.get("bits") else None
        offline.keep(key, made or zero(offline, key, shape, width))
        return Trace(key, shape, width)

    def run(self, online: Any, key: str, width: int, *args: Any, **attributes: Any) -> Steps:
        to_owner = attributes["to"] == OWNER
        if attributes.get("bits"):
            opener = LEADER if to_owner else opener_of(online.recipient)
            share = yield from rounded(online, key, args[0], online.rank == opener, opener, **attributes)
        else:
            share = args[0].tensor + online.tape.take(key)
        if to_owner:
            return share
        if online.rank != online.recipient:
            yield [Swap(share, None, wire_bytes(width), peer=online.recipient)]
            return None
        (theirs,) = yield [Swap(None, tuple(share.shape), wire_bytes(width))]
        return sign_extend(share + theirs, width)

    def cost(self, shape: Shape, width: int, *args: Any, **attributes: Any) -> Any:
        steps, to_owner = (), attributes["to"] == OWNER
        if attributes.get("bits"):
            opening = wire_bytes(attributes["ring"]) * size(shape)
            steps += (Moved(gathered=opening, one=LEADER if to_owner else OPENER),)
        if not to_owner:
            steps += (Moved(gathered=wire_bytes(width) * size(shape), one=RECIPIENT),)
        return ManyCost(steps, mask_bytes(width) * size(shape))
