"""Steps that the two parties take together, on bits shared by exclusive or and on numbers shared additively.

and        x y = c + X b + Y a + X Y over bits, X = x + a and Y = y + b opened, [a b] = c random (transfers.py): one
           round, two bits each way
carries    of a0 + a1, each known to a party: c' = c + (a0 + c)(a1 + c) over bits, from the lowest bit up: a round each
numbers    a shared bit b = b0 + b1 (over bits) as a number, the client's share s being given: the server chooses by b0
           among the client's (j xor b1) + own - s for j = 0 and 1. It sends b0 under the random choice of a transfer,
           and receives both, each under a number of its own: two rounds
settled    v = v0 + v1 with the client's share s given: it sends v1 - s

Who learns what. Opened wires are masked by random bits of which each party holds one share. The choice that the client
receives is masked by a bit of the server's. Of two numbers the server learns the chosen one, as the other's mask is
unknown to it; and that, like v1 - s, is masked by s, the client's key stream for this value alone: it is what the
dealer's correction would be.

Once, and fail closed. A stream's s masks one run: in a second one a server that chose another b0, or another weight,
would learn the difference of both corrections, hence b or A (W - W'). So a pair refuses a stream that it has used, and
after an error everything: a new session has new seeds and new transfers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..beaver.bitslice import from_plane
from ..errors import CorrelationError
from ..rounds import Step, Swap
from ..streams import Stream
from .transfers import Crossed, TransferPool

One = Generator[list[Swap], list[Any], Tensor]


@dataclass
class Pair:
    """One party of the two. `leader`: the server. `kept`: what several recipes read; None while it is being made.

    `spent`: keys of the streams whose masks were used; `failed`: whether something has, or is not finished.
    """

    leader: bool
    pool: TransferPool
    kept: dict[object, Tensor | None] = field(default_factory=dict)
    spent: set[bytes] = field(default_factory=set)
    failed: bool = False

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """While corrections are made of a stream's masks. Errors: CorrelationError for one that was used, and for any
        after an error."""
        if self.failed:
            raise CorrelationError("corrections without a dealer: failed before; start a new session")
        if stream.key in self.spent:
            raise CorrelationError("corrections without a dealer: this seed's masks were used before; draw a new seed")
        self.spent.add(stream.key)
        self.failed = True
        yield
        self.failed = False

    def once(self, key: object, step: Callable[[], One]) -> One:
        """The result of a step that is taken once, by who comes first; others wait."""
        while key in self.kept and self.kept[key] is None:
            yield []
        if key not in self.kept:
            self.kept[key] = None
            self.kept[key] = yield from step()
        result = self.kept[key]
        assert result is not None
        return result

    def both(self, x: Tensor, y: Tensor) -> One:
        """x and y, planes of one shape."""
        a, b, product = self.pool.triples(tuple(x.shape))
        mine = torch.stack([x ^ a, y ^ b])
        (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
        left, right = mine ^ theirs
        share = product ^ left & b ^ right & a
        return share ^ left & right if self.leader else share

    def carries(self, mine: Tensor) -> One:
        """Planes [k, W] of this party's number -> shares of the carries into each bit, and out of the last:
        [k + 1, W]."""
        carry = mine.new_zeros(mine.shape[1:])
        carries = [carry]
        for plane in mine:
            known = plane ^ carry
            flips = yield from self.both(*((known, carry) if self.leader else (carry, known)))
            carry = carry ^ flips
            carries.append(carry)
        return torch.stack(carries)

    def numbers(self, plane: Tensor, own: Tensor, width: int, share: Tensor | None) -> Step:
        """The correction, at the server, of `own` of both parties and the shared bits of a plane. `share`: the
        client's."""
        words, count = plane.shape[0], own.numel()
        if self.leader:
            choices, chosen = self.pool.received_numbers(words)
            yield [Swap(plane ^ choices, None)]
            (both,) = yield [Swap(None, (2, count), width)]
            mine = from_plane(plane, count)
            picked = torch.where(mine.bool(), both[1], both[0])
            return (picked - chosen[:count] + own.reshape(-1)).view(own.shape)
        masks = self.pool.sent_numbers(words)
        (flips,) = yield [Swap(None, (words,))]
        assert share is not None
        flipped, mine = from_plane(flips, count).bool(), from_plane(plane, count)
        rest = (own - share).reshape(-1)
        masks = masks[:, :count]
        masks = torch.where(flipped, masks.flip(0), masks)
        yield [Swap(torch.stack([mine + rest, 1 - mine + rest]) + masks, None, width)]
        return None

    def settled(self, mine: Tensor, width: int, share: Tensor | None) -> Step:
        """The correction, at the server, of a value in additive shares. `share`: the client's."""
        if self.leader:
            (theirs,) = yield [Swap(None, tuple(mine.shape), width)]
            return mine + theirs
        assert share is not None
        yield [Swap(mine - share, None, width)]
        return None

    def settled_bits(self, mine: Tensor, width: int, share: Tensor | None) -> Step:
        """The same of bits."""
        if self.leader:
            (theirs,) = yield [Swap(None, tuple(mine.shape), width)]
            return mine ^ theirs
        assert share is not None
        yield [Swap(mine ^ share, None, width)]
        return None

    def crossed(self, kind: str, clients: Tensor, servers: Tensor, width: int, chosen: Tensor | None = None) -> One:
        """This party's share of the client's value times the server's: `clients`, `servers` are what it has of each,
        of the other's but the shape."""
        mine, theirs = (servers, clients) if self.leader else (clients, servers)
        (share,) = yield [Crossed(None, None, width, kind=kind, mine=mine, theirs=tuple(theirs.shape), chosen=chosen)]
        return share

    def times(self, x: Tensor, y: Tensor, width: int) -> One:
        """x y elementwise, of additive shares of one shape."""
        if x is y:
            share = yield from self.crossed("product", x, x, width)
            return x * x + 2 * share
        ways = (x, y), (y, x)
        mine = [pair[1] if self.leader else pair[0] for pair in ways]
        shares = yield [Crossed(None, None, width, mine=one, theirs=tuple(one.shape)) for one in mine]
        return x * y + shares[0] + shares[1]
