"""Steps that the two parties take together, on bits shared by exclusive or and on numbers shared additively.

and        x y = c + X b + Y a + X Y over bits, X = x + a and Y = y + b opened, [a b] = c random (transfers.py): one
           round, two bits each way
carries    of a0 + a1, each known to a party: c' = c + (a0 + c)(a1 + c) over bits, from the lowest bit up: a round each
numbers    a shared bit b = b0 + b1 (over bits) as a number, the client's share s being given: the server chooses by b0
           among the client's (j xor b1) + own - s for j = 0 and 1. It sends b0 under the random choice of a transfer,
           and receives both, each under a number of its own: two rounds
settled    v = v0 + v1 with the client's share s given: it sends v1 - s
picked     b d, of the server's bit b and the client's number d: of a random transfer of r0 and r1 by b, the client has
           -r0 and sends d + r0 - r1, which makes r1 to r0 + d: two rounds
chosen     b v, of a shared bit b = b0 + b1 (over bits) and shares of a number v: each party's d = v_i (1 - 2 b_i) is
           picked by the other, and has v_i b_i added. Over bits d = v_i. A round for the choices, and one for the
           numbers (Gilboa, CRYPTO 1999; Asharov and others, CCS 2013)
shifted    v / 2^k of v = v0 + v1 modulo 2^r that is below 2^(r-1): each party shifts its share, and takes off the wrap,
           which there is unless both top bits are 0 (Rathee and others, CCS 2020): one picked

Who learns what. Opened wires are masked by random bits of which each party holds one share. Choices are masked by a
random bit of the receiver's, and d by the one of r0 and r1 that it has not. Of two numbers the server learns the chosen
one, as the other's mask is unknown to it; and that, like v1 - s, is masked by s, the client's key stream for this value
alone: it is what the dealer's correction would be.

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

from ..beaver.bitslice import from_plane, to_planes
from ..beaver.values import Shape
from ..errors import CorrelationError
from ..ring import logical_shift, top_bit
from ..rounds import Step, Swap
from ..streams import Stream
from ..wire import wire_bytes
from .transfers import Crossed, TransferPool

One = Generator[list[Swap], list[Any], Tensor]


@dataclass(frozen=True)
class Derivation:
    """A value to derive. `width`: bytes of an element that matter; `share`: the client's, at the client."""

    recipe: Any
    shape: Shape
    width: int
    share: Tensor | None = None


@dataclass(frozen=True)
class Chooser:
    """This party's shares of bits [n], and random transfers turned by them, one each way for a bit. `sent` [2, n]: what
    the other has received where its share is 0, and where it is 1."""

    bits: Tensor
    sent: Tensor
    received: Tensor


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
        rest, mine = (own - share).reshape(-1), from_plane(plane, count)
        masks = _turned(masks, flips, count)
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

    def picked(self, mine: Tensor, width: int) -> One:
        """Shares of the server's bits times the client's numbers [n], of which each has `mine`."""
        count = mine.numel()
        if self.leader:
            plane = to_planes(mine, 1)[0]
            choices, received = self.pool.received_numbers(plane.shape[0])
            yield [Swap(plane ^ choices, None)]
            (numbers,) = yield [Swap(None, (count,), width)]
            return received[:count] + mine * numbers
        words = (count + 63) // 64
        sent = self.pool.sent_numbers(words)
        (flips,) = yield [Swap(None, (words,))]
        first, second = _turned(sent, flips, count)
        yield [Swap(mine + first - second, None, width)]
        return -first

    def number(self, bits: Tensor, width: int) -> One:
        """Additive shares of bits [n] shared by exclusive or."""
        share = yield from self.picked(bits if self.leader else 1 - 2 * bits, width)
        return share if self.leader else share + bits

    def chooser(self, bits: Tensor) -> Generator[list[Swap], list[Any], Chooser]:
        """Of bits [n] shared by exclusive or: each can then choose once."""
        plane = to_planes(bits, 1)[0]
        sent, (choices, received) = self.pool.exchanged_numbers(plane.shape[0])
        (flips,) = yield [Swap(plane ^ choices, tuple(plane.shape))]
        return Chooser(bits, _turned(sent, flips, len(bits)), received[: len(bits)])

    def chosen(self, by: Chooser, values: Tensor, width: int = 8, xor: bool = False) -> One:
        """Shares of bits times values, of shares of both [n]; with `xor`, of values shared by exclusive or."""
        first, second = by.sent
        if xor:
            (theirs,) = yield [Swap(values ^ first ^ second, tuple(values.shape), width)]
            return -by.bits & (values ^ theirs) ^ first ^ by.received
        (theirs,) = yield [Swap(values * (1 - 2 * by.bits) + first - second, tuple(values.shape), width)]
        return by.bits * (values + theirs) - first + by.received

    def times_bits(self, bits: Tensor, values: Tensor, width: int) -> One:
        """Shares of bits times numbers, both of one shape."""
        by = yield from self.chooser(bits.reshape(-1))
        products = yield from self.chosen(by, values.reshape(-1), width)
        return products.view(values.shape)

    def shifted(self, mine: Tensor, bits: int, ring: int, width: int) -> One:
        """Shares of v / 2^bits, less than a unit off, of shares modulo 2^ring of v from 0 to 2^(ring - 1)."""
        share = logical_shift(mine, bits, ring) + (1 if self.leader else 0)  # both round down
        if size := wire_bytes(8 * width - (ring - bits)):
            top = top_bit(mine, ring)
            both = yield from self.picked(top.reshape(-1), size)
            share = share - (top - both.view(mine.shape) << ring - bits)
        return share

    def multiplied(self, clients: Tensor, servers: Tensor, width: int, bits: int = 0, name: str = "") -> One:
        """Shares [sums, ...] of the client's numbers [sums, terms, ...] times the server's [terms, ...], modulo 2^(8
        width), as `crossed` has them."""
        share, lack = yield from self.crossed("product", clients, servers, width, name=name, bits=bits)
        return share + (yield from self.picked(lack.reshape(-1), width)).view(share.shape)

    def crossed(
        self,
        kind: str,
        clients: Tensor,
        servers: Tensor,
        width: int,
        chosen: Tensor | None = None,
        name: str = "",
        bits: int = 0,
    ) -> One:
        """This party's share of the client's value times the server's: `clients`, `servers` are what it has of each,
        of the other's but the shape. `chosen`, `name`, `bits`, and what it gets of elementwise products: as of
        `Crossed`."""
        mine, theirs = (servers, clients) if self.leader else (clients, servers)
        part = Crossed(None, None, width, kind=kind, mine=mine, theirs=tuple(theirs.shape), chosen=chosen)
        part.name, part.bits = name, bits
        (share,) = yield [part]
        return share


def _turned(sent: Tensor, flips: Tensor, count: int) -> Tensor:
    """The numbers of random transfers [2, n], changed round where the receiver's choice was another than it wants."""
    sent = sent[:, :count]
    return torch.where(from_plane(flips, count).bool(), sent.flip(0), sent)
