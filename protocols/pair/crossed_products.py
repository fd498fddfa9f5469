"""Crossed products of a round under the server's key (protocols/homomorphic): what travels for them, in bounded memory.

A round's products are cut into pieces of known sizes. Of each the server sends a request, numbers of its own under its
key, and the client sends a reply, products less the share that it chooses.

    linear     a weight travels once a session, by its name, and is kept; then rows of products are replies alone
    matrix     the server's matrices are the request; a piece has as many of a batch as PIECE_BYTES hold
    product    elementwise products of all jobs, those of most bits first, a polynomial's slots a piece, which has as
               many bits as its first job. Those with weights are cut by themselves, and their requests are kept like a
               weight. Others are cut by how many sums have a number of the server's

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
from ..homomorphic.products import ProductAlice, ProductBob, product_cost
from ..ring import sign_extend
from .matrix_batches import Batches
from .transfers import Crossed

PIECE_ROWS = 1 << MOST_MERGES  # of a product with a weight: whole ciphertexts, whatever the columns
PIECE_BYTES = 1 << 21  # of a request for more than one matrix


class WeightKey(NamedTuple):
    """Of a set-up: a name is one value in a session's programs.

    names   of a weight; or of those in some products, and the shapes of these
    shape   of the weight; or where the products begin in the first, and how many there are
    size    bytes of results; or bits of products
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    size: int


KeptWeights = dict[WeightKey, Buffer]  # requests, at the client; empty ones at the server


@dataclass
class Piece:
    """Products: a request of the server and a reply of the client, of known sizes; of 0 bytes nothing is sent.

    weight  of a set-up in `kept`, which is in the request's place
    kind    what the bytes are counted as
    """

    weight: WeightKey | None
    kept: KeptWeights
    kind: str = field(init=False)
    setup_bytes: int = field(init=False)
    reply_bytes: int = field(init=False, default=0)

    @property
    def request_bytes(self) -> int:
        return 0 if self.weight else self.setup_bytes

    def request(self, key: LatticeKey) -> bytes:
        return b"" if self.weight else self.setup(key)

    def setup(self, key: LatticeKey) -> bytes:
        """At the server: its numbers, encrypted."""
        raise NotImplementedError

    def answer(self, public: LatticePublic, request: Buffer) -> bytes:
        """At the client."""
        return self.reply(public, self.kept[self.weight] if self.weight else request)

    def reply(self, public: LatticePublic, setup: Buffer) -> bytes:
        raise NotImplementedError

    def take(self, key: LatticeKey, reply: Buffer) -> None:
        """At the server."""


@dataclass
class SetUpPiece(Piece):
    """The request of pieces with one weight, which the client keeps."""

    of: Piece

    def __post_init__(self) -> None:
        self.kind, self.setup_bytes = "weights", self.of.setup_bytes

    def setup(self, key: LatticeKey) -> bytes:
        return self.of.setup(key)

    def reply(self, public: LatticePublic, setup: Buffer) -> bytes:
        assert self.of.weight is not None
        self.kept[self.of.weight] = setup
        return b""


@dataclass
class MatrixPiece(Piece):
    """Some rows times a matrix, or the matrices of a batch.

    left, share   [batch, rows, inner] and [batch, rows, columns]; at the server `share` is written
    right         [batch, inner, columns], at the server
    """

    job: Crossed
    left: Tensor
    right: Tensor
    share: Tensor

    def __post_init__(self) -> None:
        (batch, rows, inner), columns = self.left.shape, self.right.shape[2]
        self.kind = self.job.kind
        self.of = (batch, inner, columns), self.job.width, None if self.weight else rows
        once = self.weight is None
        self.setup_bytes, self.reply_bytes = linear_cost(batch, rows, inner, columns, self.job.width, once)

    def setup(self, key: LatticeKey) -> bytes:
        return LinearServer(key, *self.of).setup(self.right)

    def reply(self, public: LatticePublic, setup: Buffer) -> bytes:
        return LinearClient(public, setup, *self.of).reply(self.left, self.share)

    def take(self, key: LatticeKey, reply: Buffer) -> None:
        self.share.copy_(LinearServer(key, *self.of).shares(reply, self.left.shape[1]))


@dataclass
class ProductPiece(Piece):
    """Elementwise products, at most a polynomial's slots. numbers [outputs, terms, n], of which the server has one row;
    shares [2, outputs, n], which are written."""

    numbers: Tensor
    shares: Tensor
    bits: int

    def __post_init__(self) -> None:
        self.kind, (outputs, count), terms = "product", self.shares.shape[1:], self.numbers.shape[1]
        self.setup_bytes, self.reply_bytes = product_cost(count, terms, self.bits, outputs)

    def setup(self, key: LatticeKey) -> bytes:
        return ProductAlice(key, self.bits).request(self.numbers[0])

    def reply(self, public: LatticePublic, setup: Buffer) -> bytes:
        reply, shares = ProductBob(public, self.bits).reply(setup, self.numbers)
        self.shares.copy_(shares)
        return reply

    def take(self, key: LatticeKey, reply: Buffer) -> None:
        outputs, count = self.shares.shape[1:]
        self.shares.copy_(ProductAlice(key, self.bits).share(reply, count, outputs))


class CutProducts:
    """The pieces of a round's jobs, and their shares: random at the client where it has not chosen them."""

    def __init__(self, leader: bool, jobs: Sequence[Crossed], kept: KeptWeights) -> None:
        self._leader, self._jobs, self._kept = leader, jobs, kept
        self._shares = [self._share(job) for job in jobs]
        self._joined: list[Callable[[], None]] = []

    def _share(self, job: Crossed) -> Tensor:
        if job.chosen is not None:
            return job.chosen
        if job.kind == "product":
            clients = job.theirs if self._leader else tuple(job.mine.shape)
            return torch.zeros((2, clients[0], *clients[2:]), dtype=torch.int64)
        shape = self._batches(job).product
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
        products = [number for number, job in enumerate(self._jobs) if job.kind == "product"]
        products.sort(key=lambda number: (-_bits(self._jobs[number]), -self._terms(number)))

        def group(number: int) -> tuple[bool, int]:
            return not self._jobs[number].name, self._shares[number].shape[1]

        for which in sorted(set(map(group, products))):
            yield from self._products([number for number in products if group(number) == which])

    def _terms(self, number: int) -> int:
        return self._jobs[number].mine.shape[0 if self._leader else 1]

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
            weight = WeightKey((job.name,), (batch, inner, columns), job.width)
        request = 0 if weight else linear_cost(batch, rows, inner, columns, once=True)[0]
        step = -(-batch // max(1, -(-request // PIECE_BYTES)))
        for at in range(0, batch, step):
            some = slice(at, at + step)
            rows_a_piece = PIECE_ROWS if batch == 1 and weight else rows
            for start in range(0, rows, rows_a_piece):
                lines = slice(start, start + rows_a_piece)
                of = left[some, lines], right[some], share[some, lines]
                yield from self._with_setup(MatrixPiece(weight, self._kept, job, *of))

        def join() -> None:
            self._shares[number] = batches.joined(share)

        self._joined.append(join)

    def _products(self, order: list[int]) -> Iterator[Piece]:
        jobs = [self._jobs[number] for number in order]
        numbers = torch.cat([self._numbers(number) for number in order], 2)
        shares = torch.cat([self._shares[number].flatten(2) for number in order], 2)
        sizes = [self._shares[number][0, 0].numel() for number in order]
        ends, count = torch.tensor(sizes).cumsum(0), sum(sizes)
        for start in range(0, count, DEGREE):
            some = slice(start, start + DEGREE)
            within = int((ends <= start).sum()), int((ends < min(start + DEGREE, count)).sum()) + 1
            of, bits, weight = order[slice(*within)], _bits(jobs[within[0]]), None
            mine = numbers[:, : max(map(self._terms, of)), some]
            if self._jobs[of[0]].name:
                names = tuple(f"{self._jobs[number].name} {list(self._shares[number].shape)}" for number in of)
                weight = WeightKey(names, (start - sum(sizes[: within[0]]), mine.shape[2]), bits)
            yield from self._with_setup(ProductPiece(weight, self._kept, mine, shares[..., some], bits))

        def join() -> None:
            for number, share in zip(order, shares.split(sizes, 2), strict=True):
                self._shares[number] = share.view(self._shares[number].shape)

        self._joined.append(join)

    def _numbers(self, number: int) -> Tensor:
        """Of a job [outputs, 2, n]; at the server of one output."""
        job = self._jobs[number]
        mine = job.mine[None] if self._leader else job.mine
        mine = mine.long().flatten(2)  # of a weight: narrower
        if not job.bits:
            mine = sign_extend(mine, 8 * job.width)
        return mine if mine.shape[1] == 2 else torch.cat([mine, torch.zeros_like(mine)], 1)

    def _with_setup(self, piece: Piece) -> Iterator[Piece]:
        if piece.weight and piece.weight not in self._kept:
            yield SetUpPiece(None, self._kept, piece)
            self._kept.setdefault(piece.weight, b"")
        yield piece


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
            reply = piece.answer(public, self._swap(reply, piece.request_bytes))
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
