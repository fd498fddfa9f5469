"""Crossed products of a round under the server's key (protocols/homomorphic): what travels for them, in bounded memory.

A round's products are cut into pieces of known sizes. Of each the server sends a request, numbers of its own under its
key, and the client sends a reply, products less the share that it chooses.

    linear     a weight travels once a session, by its name, and is kept; then rows of products are replies alone
    matrix     the server's matrices are the request; a piece has as many of a batch as PIECE_BYTES hold
    product    elementwise products of all jobs, those of most bits first, a polynomial's slots a piece, which has as
               many bits as its first job; above its bytes the client's share of a job is random

Both parties work at once: while the client replies to a piece the server encrypts the next one.

Who learns what: of every product the client learns nothing, and the server learns its share, which is uniform
(homomorphic/linear.py, products.py). Requests and replies have the sizes that the jobs' shapes give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..channel import Buffer, Frames
from ..errors import CorrelationError
from ..homomorphic.lattice import DEGREE, MOST_MERGES, LatticeKey, LatticePublic, random_words
from ..homomorphic.linear import LinearClient, LinearServer, linear_cost
from ..homomorphic.linear import Shape as MatrixShape
from ..homomorphic.products import ProductAlice, ProductBob, product_cost
from ..ring import sign_extend
from .matrix_batches import Batches
from .transfers import Crossed

PIECE_ROWS = 1 << MOST_MERGES  # of a product with a weight: whole ciphertexts, whatever the columns
PIECE_BYTES = 1 << 21  # of a request for more than one matrix


class WeightKey(NamedTuple):
    """Of a weight's set-up: a name is one value in a session's programs."""

    name: str
    shape: MatrixShape
    width: int


KeptWeights = dict[WeightKey, LinearClient | None]  # the client's; None at the server


@dataclass
class Piece:
    """A request of the server and a reply of the client, of known sizes; of 0 bytes nothing is sent. `kind`: what they
    are counted as."""

    kind: str = field(init=False, default="")
    request_bytes: int = field(init=False, default=0)
    reply_bytes: int = field(init=False, default=0)

    def request(self, key: LatticeKey) -> bytes:
        """At the server."""
        return b""

    def reply(self, public: LatticePublic, request: Buffer) -> bytes:
        """At the client."""
        return b""

    def take(self, key: LatticeKey, reply: Buffer) -> None:
        """At the server."""


@dataclass
class WeightPiece(Piece):
    """A weight's set-up, which the client keeps in `kept`."""

    key: WeightKey
    weights: Tensor  # at the server
    kept: KeptWeights

    def __post_init__(self) -> None:
        self.kind, (batch, inner, columns) = "weights", self.key.shape
        self.request_bytes = linear_cost(batch, 1, inner, columns, self.key.width)[0]

    def request(self, key: LatticeKey) -> bytes:
        return LinearServer(key, self.key.shape, self.key.width).setup(self.weights)

    def reply(self, public: LatticePublic, request: Buffer) -> bytes:
        self.kept[self.key] = LinearClient(public, request, self.key.shape, self.key.width)
        return b""


@dataclass
class MatrixPiece(Piece):
    """Some rows times a matrix, or the matrices of a batch.

    left, share   [batch, rows, inner] and [batch, rows, columns]; at the server `share` is written
    right         [batch, inner, columns], at the server; `kept`: at the client, if it is a weight
    """

    job: Crossed
    left: Tensor
    right: Tensor
    share: Tensor
    weight: WeightKey | None
    kept: KeptWeights

    def __post_init__(self) -> None:
        (batch, rows, inner), columns = self.left.shape, self.right.shape[2]
        self.kind = self.job.kind
        self.of = (batch, inner, columns), self.job.width, None if self.weight else rows
        setup, self.reply_bytes = linear_cost(batch, rows, inner, columns, self.job.width, self.weight is None)
        self.request_bytes = 0 if self.weight else setup

    def request(self, key: LatticeKey) -> bytes:
        return b"" if self.weight else LinearServer(key, *self.of).setup(self.right)

    def reply(self, public: LatticePublic, request: Buffer) -> bytes:
        client = self.kept[self.weight] if self.weight else LinearClient(public, request, *self.of)
        assert client is not None
        return client.reply(self.left, self.share)

    def take(self, key: LatticeKey, reply: Buffer) -> None:
        self.share.copy_(LinearServer(key, *self.of).shares(reply, self.left.shape[1]))


@dataclass
class ProductPiece(Piece):
    """Elementwise products, at most a polynomial's slots. numbers [terms, n], shares [n]."""

    numbers: Tensor
    shares: Tensor
    bits: int
    alice: ProductAlice | None = None

    def __post_init__(self) -> None:
        self.kind, (terms, count) = "product", self.numbers.shape
        self.request_bytes, self.reply_bytes = product_cost(count, terms, self.bits)

    def request(self, key: LatticeKey) -> bytes:
        self.alice = ProductAlice(key, self.bits)
        return self.alice.request(self.numbers)

    def reply(self, public: LatticePublic, request: Buffer) -> bytes:
        return ProductBob(public, self.bits).reply(request, self.numbers, self.shares)

    def take(self, key: LatticeKey, reply: Buffer) -> None:
        assert self.alice is not None
        self.shares.copy_(self.alice.share(reply))


class CutProducts:
    """The pieces of a round's jobs, and their shares: random at the client where it has not chosen them."""

    def __init__(self, leader: bool, jobs: Sequence[Crossed], kept: KeptWeights) -> None:
        self._leader, self._jobs, self._kept = leader, jobs, kept
        self._shares = [self._share(job) for job in jobs]
        self._joined: list[Callable[[], None]] = []

    def _share(self, job: Crossed) -> Tensor:
        if job.chosen is not None:
            return job.chosen
        shape = tuple(job.mine.shape[1:]) if job.kind == "product" else self._batches(job).product
        return torch.empty(shape, dtype=torch.int64) if self._leader else random_share(shape)

    def _batches(self, job: Crossed) -> Batches:
        mine = tuple(job.mine.shape)
        return Batches(job.theirs, mine) if self._leader else Batches(mine, job.theirs)

    def shares(self) -> list[Tensor]:
        """Of every job, once all pieces are done."""
        for join in self._joined:
            join()
        return self._shares

    def pieces(self) -> Iterator[Piece]:
        for number, job in enumerate(self._jobs):
            if job.kind != "product":
                yield from self._matrices(number, job)
        yield from self._products()

    def _matrices(self, number: int, job: Crossed) -> Iterator[Piece]:
        batches = self._batches(job)
        batch, rows, inner, columns = batches.sizes
        nothing = torch.zeros((), dtype=torch.int64)
        left, right = nothing.expand(batch, rows, inner), nothing.expand(batch, inner, columns)
        if self._leader:
            right = batches.rights(job.mine).long()
        else:
            left = batches.lefts(job.mine)
        share, weight = batches.split(self._shares[number]), None
        if job.kind == "linear":
            weight = WeightKey(job.name, (batch, inner, columns), job.width)
            if weight not in self._kept:
                yield WeightPiece(weight, right, self._kept)
                self._kept.setdefault(weight, None)
        request = 0 if weight else linear_cost(batch, rows, inner, columns, once=True)[0]
        step = -(-batch // max(1, -(-request // PIECE_BYTES)))
        for at in range(0, batch, step):
            some = slice(at, at + step)
            rows_a_piece = PIECE_ROWS if batch == 1 and weight else rows
            for start in range(0, rows, rows_a_piece):
                lines = slice(start, start + rows_a_piece)
                yield MatrixPiece(job, left[some, lines], right[some], share[some, lines], weight, self._kept)

        def join() -> None:
            self._shares[number] = batches.joined(share)

        self._joined.append(join)

    def _products(self) -> Iterator[Piece]:
        order = [number for number, job in enumerate(self._jobs) if job.kind == "product"]
        order.sort(key=lambda number: (-_bits(self._jobs[number]), -len(self._jobs[number].mine)))
        if not order:
            return
        jobs = [self._jobs[number] for number in order]
        numbers = torch.cat([_two_terms(job).flatten(1) for job in jobs], 1)
        shares = torch.cat([self._masks(number).reshape(-1) for number in order])
        sizes = [self._shares[number].numel() for number in order]
        ends = torch.tensor(sizes).cumsum(0)
        for start in range(0, len(shares), DEGREE):
            some = slice(start, start + DEGREE)
            within = int((ends <= start).sum()), int((ends < min(start + DEGREE, len(shares))).sum()) + 1
            terms = max(len(job.mine) for job in jobs[slice(*within)])
            yield ProductPiece(numbers[:terms, some], shares[some], _bits(jobs[within[0]]))

        def join() -> None:
            for number, share in zip(order, shares.split(sizes), strict=True):
                self._shares[number] = share.view(self._shares[number].shape)

        self._joined.append(join)

    def _masks(self, number: int) -> Tensor:
        """The share of an elementwise product, with random bytes above those that the job has chosen."""
        share, bits = self._shares[number], 8 * self._jobs[number].width
        if self._leader or bits == 64:
            return share
        return share & (1 << bits) - 1 | random_share(tuple(share.shape)) << bits


class EncryptedProducts:
    """A party's end of a session's crossed products: the server has the key, the client its public part."""

    def __init__(self, channel: Frames, key: LatticeKey | LatticePublic) -> None:
        self._channel, self._key = channel, key
        self._weights: KeptWeights = {}
        self._open = True

    def cross(self, jobs: Sequence[Crossed]) -> list[Tensor]:
        """Errors: of the channel, HomomorphicError of what a peer sent, after which nothing more is given."""
        if not self._open:
            raise CorrelationError("encrypted products: failed before; start a new session")
        self._open = False
        cut = CutProducts(isinstance(self._key, LatticeKey), jobs, self._weights)
        if isinstance(self._key, LatticeKey):
            self._ask(self._key, cut.pieces())
        else:
            self._answer(self._key, cut.pieces())
        self._open = True
        return cut.shares()

    def _ask(self, key: LatticeKey, pieces: Iterator[Piece]) -> None:
        before = None
        for piece in pieces:
            reply = self._swap(piece.request(key), before.reply_bytes if before else 0)
            if before:
                before.take(key, reply)
            before = piece
        if before:
            before.take(key, self._swap(b"", before.reply_bytes))

    def _answer(self, public: LatticePublic, pieces: Iterator[Piece]) -> None:
        reply = b""
        for piece in pieces:
            reply = piece.reply(public, self._swap(reply, piece.request_bytes))
        self._swap(reply, 0)

    def _swap(self, data: bytes, size: int) -> Buffer:
        if data and size:
            return self._channel.exchange(data, size)
        if data:
            self._channel.send(data)
        return self._channel.recv(size) if size else b""


def random_share(shape: tuple[int, ...]) -> Tensor:
    count = torch.Size(shape).numel()
    return torch.from_numpy(random_words(count).copy().view("int64")).view(shape)


def _bits(job: Crossed) -> int:
    return job.bits or 16 * job.width


def _two_terms(job: Crossed) -> Tensor:
    numbers = job.mine.long()  # of a weight: narrower
    if not job.bits:
        numbers = sign_extend(numbers, 8 * job.width)
    return numbers if len(numbers) == 2 else torch.cat([numbers, torch.zeros_like(numbers)])
