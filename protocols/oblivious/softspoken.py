"""Random oblivious transfers by the million, out of 128 base transfers: SoftSpokenOT (Roy, CRYPTO 2022,
https://eprint.iacr.org/2022/192), with its check against a malicious receiver.

In each transfer the sender gets r_0 and r_1, and the receiver gets a random choice c and r_c. A caller that needs
chosen choices or messages corrects these, by one bit or number a transfer.

Set-up. The sender draws Delta, 128 bits, and cuts it into pieces Delta_i of k bits (the last one may have fewer). Tree
i has 2^k leaves. The receiver has all leaves, the sender all but leaf Delta_i (base_transfer.py, trees.py).

Extension. Leaf y of tree i gives a stream of n bits. The receiver's u_i is the sum (exclusive or) of a tree's streams,
and v_ij is the sum of those with bit j of y set. The sender computes w_ij = v_ij + Delta_ij u_i: it indexes leaves by y
xor Delta_i, so the leaf that it misses counts zero times (section 3.1, figure 7). The choices are u = u_0. For every
other tree the receiver sends u_i + u, and the sender adds Delta_ij (u_i + u) to w_ij (section 3.2, with a repetition
code). Row by row, now W = V + u Delta. The sender's results are the hashes of W and W + Delta; the receiver's is the
hash of V (folding.py).

Privacy, semi-honest. r_(1-c) is a hash under Delta, of which the receiver knows nothing. Each u_i holds the stream of a
leaf that the sender misses, so all that the sender receives is pseudo-random, whatever the choices.

A malicious receiver may send something else than u_i + u, and learn bits of Delta from what the sender then does. So
both parties add up blocks of 128 rows, times random factors in GF(2^128). The receiver sends the sum of u, and a hash
of the sums of all v_ij, which the sender computes from its W. Another 128 rows, of factor one, mask these sums and are
dropped. That is the check of section 4, with the universal hash that Keller, Orsini and Scholl took for it
(https://eprint.iacr.org/2015/546, figure 10 of its corrected version). Errors of two trees that differ have equal sums
with probability 2^-128. If they do not, a message passes for one value of the pieces of Delta that it touches, and
otherwise ends the session: n bits are guessed with probability 2^-n, and all others stay secret.

The factors come from a hash of all that was sent (Fiat and Shamir), as in Doerner and others
(https://eprint.iacr.org/2023/765, section 5.1), which saves two messages; in the paper the sender draws them. So a
receiver may try messages: after 2^t hashes it has cheated with probability 2^(t - 115) at most, by one of at most 2^13
pairs of trees. A check of 40 bits, enough for factors of the sender, would not do here.

A malicious sender sends nothing after the set-up, and learns nothing. It can make results wrong; a protocol that uses
transfers says what follows from that.

Level: 128 bits, less what row hashes lose (folding.py). A set-up ends after 2^32 rows: AES in counter mode then differs
from random streams with probability 2^-67, for 2^12 keys.

Both parties ask for the same numbers in the same order. Position, count and width are in the hash that factors and the
keys of row hashes come from. So parties that disagree fail the check; and after any failure, nothing more is given.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ..channel import Channel
from ..errors import CorrelationError, PeerProtocolError
from .base_transfer import POINT_BYTES, REMEDY, receive_keys, send_keys
from .folding import BITS, WORDS, check_sums, fold, hash_rows, key_stream, transpose_planes
from .trees import grow, message_bytes, plant

DEPTH = 8  # of trees: the fewest bytes; 4 takes twice the bytes and half the time
_MOST_ROWS = 1 << 16  # at once: their planes stay in a processor's cache
_LIFETIME_ROWS = 1 << 32  # of a set-up
_SUM_BYTES, _HASH_BYTES = 16, 32
_PROOF_BYTES = _SUM_BYTES + _HASH_BYTES
Pair = tuple[Tensor, Tensor]


class TransferCost(NamedTuple):
    """Payload in bytes, and messages in sequence."""

    from_receiver: int
    from_sender: int
    rounds: int


def setup_cost(depth: int = DEPTH) -> TransferCost:
    """Of one direction, once."""
    points = BITS * POINT_BYTES
    return TransferCost(points + message_bytes(_depths(depth)), 2 * points, 2)


def cost(count: int, depth: int = DEPTH) -> TransferCost:
    """Of `count` transfers that are asked for together, bits or numbers of any width."""
    corrections = sum(_rows(size) for _, size in _batches(count)) // 8 * (len(_depths(depth)) - 1)
    return TransferCost(corrections + _PROOF_BYTES * len(_batches(count)), 0, 1 if count else 0)


def _depths(depth: int) -> list[int]:
    if not 1 <= depth <= 8:
        raise CorrelationError(f"oblivious transfer: trees of depth {depth}; choose 1 to 8")
    return [depth] * (BITS // depth) + [BITS % depth] * (BITS % depth > 0)


def _batches(count: int) -> list[tuple[int, int]]:
    """Where each starts, and its transfers."""
    most = _MOST_ROWS - BITS
    return [(at, min(most, count - at)) for at in range(0, count, most)]


def _rows(size: int) -> int:
    """Of a batch: transfers, those that mask the sums, and those that fill vectors up."""
    return -(-(size + BITS) // (64 * WORDS)) * 64 * WORDS


class RandomTransfers:
    """How the parties of one direction set up.

    session    bytes that both parties agree on, and use once
    direction  who sends to whom, as "server to client": two set-ups of a session differ in it
    depth      of the trees, 1 to 8

    The receiver sends while the sender reads, so both parties ask at the same time, and for one direction after the
    other. Errors of all methods: those of the channel, PeerProtocolError of a peer that deviates, CorrelationError.
    """

    @staticmethod
    def sender(channel: Channel, session: bytes, direction: str, depth: int = DEPTH) -> TransferSender:
        depths, name = _depths(depth), _name(session, direction, depth)
        delta = secrets.token_bytes(BITS // 8)
        bits = [delta[bit // 8] >> bit % 8 & 1 for bit in range(BITS)]
        keys = receive_keys(channel, name, [1 - bit for bit in bits])
        starts = [sum(depths[:tree]) for tree in range(len(depths))]
        missing = [sum(bits[start + j] << j for j in range(depth)) for start, depth in zip(starts, depths, strict=True)]
        message = bytes(channel.recv(message_bytes(depths)))
        leaves = grow(name, depths, missing, keys, message, channel.peer)
        moved = [
            tree[torch.arange(len(tree)) ^ place].contiguous() for tree, place in zip(leaves, missing, strict=True)
        ]
        return TransferSender(channel, _bound(name, message), moved, torch.tensor(bits), delta)

    @staticmethod
    def receiver(channel: Channel, session: bytes, direction: str, depth: int = DEPTH) -> TransferReceiver:
        depths, name = _depths(depth), _name(session, direction, depth)
        leaves, message = plant(name, depths, send_keys(channel, name, BITS))
        channel.send(message)
        return TransferReceiver(channel, _bound(name, message), leaves)


def _name(session: bytes, direction: str, depth: int) -> bytes:
    parts = (b"blindformer oblivious transfer", session, direction.encode(), bytes([depth]))
    return hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()


def _bound(name: bytes, message: bytes) -> bytes:
    return hashlib.sha256(name + message).digest()


class _Challenge(NamedTuple):
    factors: Tensor  # [words]
    key: Tensor  # of row hashes


class _Transfers:
    """What both parties hold: a set-up's leaves, how many rows of their streams were used, and room for a batch."""

    known = True  # the first leaf of each tree

    def __init__(self, channel: Channel, bound: bytes, leaves: list[Tensor]) -> None:
        self._channel, self._bound, self._leaves = channel, bound, leaves
        self._used, self._open = 0, True
        self._room = [torch.empty(0, dtype=torch.int64)] * 3

    @contextmanager
    def _using(self, count: int, width: int) -> Iterator[list[tuple[int, int]]]:
        """The batches of a call, after which this is open again only if nothing failed."""
        batches = _batches(count)
        if not self._open:
            raise CorrelationError("oblivious transfer: failed before; start a new session")
        if count < 0:
            raise CorrelationError(f"oblivious transfer: {count} transfers; ask for 0 or more")
        if self._used + sum(_rows(size) for _, size in batches) > _LIFETIME_ROWS:
            raise CorrelationError("oblivious transfer: this session's are used up; start a new session")
        self._open = False
        yield batches
        self._open = True

    def _fold(self, size: int) -> tuple[int, Tensor, Tensor]:
        """The next streams, for a batch of this size, are used now: their first row, planes [128, words], and sums of
        trees [trees, words]."""
        first, words = self._used, _rows(size) // 64
        self._used += _rows(size)
        planes, totals = self._array(0, BITS, words), self._array(1, len(self._leaves), words)
        at = 0
        for leaves, total in zip(self._leaves, totals, strict=True):
            depth = len(leaves).bit_length() - 1
            fold(leaves, self.known, first // BITS, planes[at : at + depth], total)
            at += depth
        return first, planes, totals

    def _challenge(self, first: int, size: int, width: int, corrections: Tensor) -> _Challenge:
        """What follows from a batch's message, and from what both parties must agree on."""
        place = first.to_bytes(8) + size.to_bytes(8) + bytes([width])
        transcript = hashlib.sha256(self._bound + place)
        transcript.update(corrections.numpy().data.cast("B"))
        drawn = hashlib.sha512(b"blindformer transfer challenge" + transcript.digest()).digest()
        factors = key_stream(drawn[:16], drawn[16:32], 0, _rows(size) // 64)
        factors[-2:] = torch.tensor([1, 0])  # of the rows that mask
        return _Challenge(factors, torch.frombuffer(bytearray(drawn[32:48]), dtype=torch.int64))

    def _hashed(
        self, planes: Tensor, offsets: Sequence[Tensor], first: int, key: Tensor, width: int, outs: Sequence[Tensor]
    ) -> None:
        """Write the hashes of as many rows as `outs` have room for, with each offset."""
        rows = transpose_planes(planes, self._array(2, 64 * planes.shape[1], 2))
        for offset, out in zip(offsets, outs, strict=True):
            hash_rows(rows[: out.numel() * (1 if width else 64)], offset, first, key, width, out)

    def _array(self, place: int, n: int, m: int) -> Tensor:
        if self._room[place].numel() < n * m:
            self._room[place] = torch.empty(n * m, dtype=torch.int64)
        return self._room[place][: n * m].view(n, m)


class TransferSender(_Transfers):
    """Who gets both results."""

    known = False

    def __init__(self, channel: Channel, bound: bytes, leaves: list[Tensor], bits: Tensor, delta: bytes) -> None:
        super().__init__(channel, bound, leaves)
        self._delta, self._masks = torch.frombuffer(bytearray(delta), dtype=torch.int64), -bits[:, None]
        depths = [len(tree).bit_length() - 1 for tree in leaves[1:]]
        self._corrected = torch.tensor([tree for tree, depth in enumerate(depths) for _ in range(depth)])  # by plane
        self._corrections = torch.empty(0, dtype=torch.int64)

    def bits(self, count: int) -> Pair:
        """r_0 and r_1, planes int64 [count / 64, rounded up], whose bits beyond `count` mean nothing."""
        return self._run(count, 0)

    def numbers(self, count: int, width: int) -> Pair:
        """r_0 and r_1, int64 [count]: uniform integers of `width` bytes, 1 to 8, and their sign above."""
        return self._run(count, _checked(width))

    def _run(self, count: int, width: int) -> Pair:
        with self._using(count, width) as batches:
            first, second = _results(count, width), _results(count, width)
            for at, size in batches:
                offsets = torch.zeros_like(self._delta), self._delta
                position, planes, key = self._batch(size, width)
                outs = [_part(out, at, size, width) for out in (first, second)]
                self._hashed(planes, offsets, position, key, width, outs)
        return (first[:count], second[:count]) if width else (first, second)

    def _batch(self, size: int, width: int) -> tuple[int, Tensor, Tensor]:
        """The first row, W's planes, which have passed the check, and the key of row hashes."""
        words, others = _rows(size) // 64, len(self._leaves) - 1
        first, planes, _ = self._fold(size)
        data = self._channel.recv(8 * others * words + _PROOF_BYTES)
        corrections = torch.frombuffer(data, dtype=torch.int64, count=others * words).view(others, words)
        skipped = BITS - len(self._corrected)  # of the first tree
        if self._corrections.numel() < len(self._corrected) * words:
            self._corrections = torch.empty(len(self._corrected) * words, dtype=torch.int64)
        added = self._corrections[: len(self._corrected) * words].view(-1, words)
        torch.index_select(corrections, 0, self._corrected, out=added)  # and no branch on Delta's bits
        planes[skipped:] ^= added.bitwise_and_(self._masks[skipped:])
        challenge = self._challenge(first, size, width, corrections)
        proof = data[-_PROOF_BYTES:]
        choices = torch.frombuffer(proof, dtype=torch.int64, count=2)
        sums = check_sums(planes, challenge.factors) ^ self._masks & choices
        if not hmac.compare_digest(_sums_hash(self._bound, sums), proof[_SUM_BYTES:]):
            raise PeerProtocolError(self._channel.peer, "its oblivious transfers fail the check", REMEDY)
        return first, planes, challenge.key


class TransferReceiver(_Transfers):
    """Who gets the result of its choice."""

    def bits(self, count: int) -> Pair:
        """c and r_c, planes int64 [count / 64, rounded up], whose bits beyond `count` mean nothing."""
        return self._run(count, 0)

    def numbers(self, count: int, width: int) -> Pair:
        """c, a plane int64 [count / 64, rounded up], and r_c, int64 [count]: uniform integers of `width` bytes, 1 to 8,
        and their sign above."""
        return self._run(count, _checked(width))

    def _run(self, count: int, width: int) -> Pair:
        with self._using(count, width) as batches:
            choices, results = _results(count, 0), _results(count, width)
            for at, size in batches:
                position, planes, totals = self._fold(size)
                key = self._send(position, size, width, planes, totals)
                chosen = _part(choices, at, size, 0)
                chosen.copy_(totals[0, : len(chosen)])
                offset = torch.zeros(2, dtype=torch.int64)
                self._hashed(planes, [offset], position, key, width, [_part(results, at, size, width)])
        return choices, results[:count] if width else results

    def _send(self, first: int, size: int, width: int, planes: Tensor, totals: Tensor) -> Tensor:
        """Send a batch's message; returns the key of row hashes."""
        corrections = totals[1:].bitwise_xor_(totals[0])
        challenge = self._challenge(first, size, width, corrections)
        message = bytearray(corrections.nbytes)
        memoryview(message)[:] = corrections.numpy().data.cast("B")
        message += check_sums(totals[:1], challenge.factors).numpy().tobytes()
        message += _sums_hash(self._bound, check_sums(planes, challenge.factors))
        self._channel.send(message)
        return challenge.key


def _checked(width: int) -> int:
    if not 1 <= width <= 8:
        raise CorrelationError(f"oblivious transfer: numbers of {width} bytes; choose 1 to 8")
    return width


def _results(count: int, width: int) -> Tensor:
    """Room for a whole number of words."""
    words = -(-count // 64)
    return torch.empty(64 * words if width else words, dtype=torch.int64)


def _part(out: Tensor, at: int, size: int, width: int) -> Tensor:
    """A batch's, of results."""
    each = 1 if width else 64
    return out[at // each : at // each + -(-size // 64) * (64 // each)]


def _sums_hash(bound: bytes, sums: Tensor) -> bytes:
    return hashlib.sha256(b"blindformer transfer sums" + bound + sums.numpy().tobytes()).digest()
