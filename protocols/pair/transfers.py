"""What the pair needs of oblivious transfer and of encryption, as interfaces; and what is made of random transfers.

Random transfers of one bit, one in each direction, make a product of shared bits without a message (Gilboa, CRYPTO
1999, for bits; Goldreich, Micali, Wigderson, STOC 1987). The sender of one has r0 and r1, the receiver c and r_c:

    r0 + r_c = c (r0 + r1)         over bits: shares of a product of the sender's random bit by the receiver's

Who learns what: nothing. Each party holds bits of its own, and shares that are uniform without the other's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from ..rounds import Swap
from ..wire import elements

T = TypeVar("T")
U = TypeVar("U")
WORD = 64
BATCH_WORDS = 1 << 10  # of triples that are made together, at least: most requests are small


class SendingTransfers(Protocol):
    """The sender of random transfers: both of each."""

    def bits(self, count: int) -> tuple[Tensor, Tensor]:
        """r0 and r1 of one bit each, as planes of 64 a word. `count`: a multiple of 64."""
        ...

    def numbers(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        """r0 and r1, int64 of which the low `width` bytes are uniform."""
        ...


class ReceivingTransfers(Protocol):
    """The receiver: its random choices as a plane, and the one of each that was chosen."""

    def bits(self, count: int) -> tuple[Tensor, Tensor]: ...

    def numbers(self, count: int, width: int) -> tuple[Tensor, Tensor]: ...


@dataclass
class Crossed(Swap):
    """A part of a round that needs encryption: shares of the client's `mine` times the server's, modulo 2^(8 width).

    kind    "product": elementwise, of the server's [terms, ...] and the client's [sums, terms, ...], summed over one or
            two terms. "matrix": of matrices, batched, the client's on the left; "linear": the same, the server's being
            a weight
    theirs  the shape of the other's
    chosen  at the client, of matrices, the share that it will have; None: any
    name    of the weight: one value in all programs of a session
    bits    of elementwise products: numbers are signed, and sums at most 2^(bits - 1) either way; 0: any numbers

    Of elementwise products each party gets [2, sums, ...]: its share less what both lack, and of that the server a bit,
    the client a number, the bit times which is to be added (homomorphic/products.py).
    """

    kind: str = "product"
    mine: Tensor = field(default_factory=lambda: torch.empty(0))
    theirs: tuple[int, ...] = ()
    chosen: Tensor | None = None
    name: str = ""
    bits: int = 0


class TwoPartyProducts(Protocol):
    """One party's end of what computes crossed products: those of a round travel together."""

    def cross(self, jobs: Sequence[Crossed]) -> list[Tensor]:
        """This party's share of each."""
        ...


class Triples(NamedTuple):
    """Shares of random bits a, b and of a b."""

    a: Tensor
    b: Tensor
    product: Tensor


class TransferPool:
    """Random transfers of both directions, drawn by both parties at the same places, each used once."""

    def __init__(self, leader: bool, sending: SendingTransfers, receiving: ReceivingTransfers) -> None:
        """`leader`: the server, whose sending comes first."""
        self._leader, self._sending, self._receiving = leader, sending, receiving
        self._bits = torch.empty(3, 0, dtype=torch.int64)

    def triples(self, shape: tuple[int, ...]) -> Triples:
        """Planes of this shape."""
        words = elements(shape)
        if (missing := words - self._bits.shape[1]) > 0:
            self._bits = torch.cat([self._bits, self._more_triples(max(missing, BATCH_WORDS))], 1)
        taken, self._bits = self._bits[:, :words], self._bits[:, words:]
        return Triples(*(part.view(shape) for part in taken))

    def _more_triples(self, words: int) -> Tensor:
        count = WORD * words
        (first, second), (choice, chosen) = self._both(
            lambda: self._sending.bits(count), lambda: self._receiving.bits(count)
        )
        mine = first ^ second
        return torch.stack([mine, choice, first ^ chosen ^ mine & choice])

    def sent_numbers(self, words: int) -> Tensor:
        """Pairs of numbers [2, 64 words], of which the other receives one."""
        return torch.stack(self._sending.numbers(WORD * words, 8))

    def received_numbers(self, words: int) -> tuple[Tensor, Tensor]:
        """Choices as a plane [words], and the number that was chosen of each pair [64 words]."""
        return self._receiving.numbers(WORD * words, 8)

    def exchanged_numbers(self, words: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As many of both directions, at both parties: what is sent, and what is received."""
        return self._both(lambda: self.sent_numbers(words), lambda: self.received_numbers(words))

    def _both(self, send: Callable[[], T], receive: Callable[[], U]) -> tuple[T, U]:
        if self._leader:
            sent = send()
            return sent, receive()
        received = receive()
        return send(), received
