"""The result: to one party, or in N shares to an owner who takes no part in the protocol.

As in protocols/beaver/reveal.py. One party opens z + r and never the recipient: the first, or the second where the
first gets the results. Each share then goes out under a fresh sharing that the dealer makes, of low or of zero, so what
arrives is a uniformly random sharing of the answer, whatever came before. The recipient learns the answer, the others
nothing. Recipient and opener together learn z + (r mod 2^bits): the answer with noise of one unit.
"""

from __future__ import annotations

from ...beaver.primitive import Primitive, size
from ...beaver.reveal import rounded, rounding, zero
from ...beaver.values import OfflineValue, Shape, Share, mask_bytes, of_shape
from ...operations import OWNER
from ...ring import sign_extend
from ...rounds import Step, Swap
from ...wire import wire_bytes
from ..context import LEADER, OPENER, RECIPIENT, Moved, NPartyCost, NPartyOffline, NPartyOnline, opener_of


class RevealToOne(Primitive):
    """Returns the result at the recipient and None at the others; to the owner, each party's share of it."""

    op = "reveal"

    def correlate(
        self,
        offline: NPartyOffline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        to: str,
        bits: int = 0,
        ring: int = 64,
    ) -> OfflineValue:
        correlation = rounding(offline, key, shape, width, bits, ring) if bits else None
        offline.keep(key, correlation or zero(offline, key, shape, width))
        return OfflineValue(key, shape, width)

    def run(self, online: NPartyOnline, key: str, width: int, x: Share, to: str, bits: int = 0, ring: int = 64) -> Step:
        to_owner = to == OWNER
        if bits:
            opener = LEADER if to_owner else opener_of(online.recipient)
            share = yield from rounded(online, key, x, online.rank == opener, opener, bits, ring)
        else:
            share = x.tensor + of_shape(x.tensor, online.tape.share(key))
        if to_owner:
            return share
        if online.rank != online.recipient:
            yield [Swap(share, None, wire_bytes(width), peer=online.recipient)]
            return None
        (theirs,) = yield [Swap(None, tuple(share.shape), wire_bytes(width))]
        return sign_extend(share + theirs, width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, to: str, bits: int = 0, ring: int = 64) -> NPartyCost:
        steps, to_owner = (), to == OWNER
        if bits:
            opening = wire_bytes(ring) * size(shape)
            steps += (Moved(gathered=opening, one=LEADER if to_owner else OPENER),)
        if not to_owner:
            steps += (Moved(gathered=wire_bytes(width) * size(shape), one=RECIPIENT),)
        return NPartyCost(steps, mask_bytes(width) * size(shape))
