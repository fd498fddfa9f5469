"""Random oblivious transfers by the million: correlated rows of a silent generator, hashed.

In each transfer the sender gets r_0 and r_1, and the receiver gets a random choice c and r_c. A caller that needs
chosen choices or messages corrects these, by one bit or number a transfer.

The generator is Ferret (Yang, Weng, Lan, Zhang, Wang, CCS 2020, https://eprint.iacr.org/2020/924). The sender has Delta
and rows v, the receiver rows w = v + c Delta, with c in the lowest bit (softspoken.py makes the first ones). A batch
takes SEED_ROWS of these and makes ROWS new ones: the next batch's seeds, and transfers. Their hashes, of v and v +
Delta at the sender and of w at the receiver, are the results (folding.py).

Noise. Each of TREES trees has 2^DEPTH leaves v_i at the sender. The receiver has all but one, at a place that DEPTH
seeds' choices name, and v_i + Delta for that one. For each level the sender sends the sum of its left nodes plus a seed
row. With the half-tree of Guo and others (https://eprint.iacr.org/2022/1431, figure 3) that is all: the sum of a whole
level is Delta, so the receiver can take the seed off the sum of left nodes or of right ones, as its choice is, and
sum up what it knows for the last leaf.

Code. To each leaf both parties add ten of 2^16 seed rows, whose places a public key gives. So choices are A s + e, with
secret seeds' choices s and a noise e that has a one for each tree: pseudo-random by learning parity with (regular)
noise, n = 870,400 samples, k = 2^16, t = 850. These are the parameters "b10" of emp-ot
(https://github.com/emp-toolkit/emp-ot, tuning.h, July 2026), which states 128 bits against all attacks of its
estimator: Gauss, information sets, statistical decoding, and, on regular noise, hybrid ones and those of Briaud and
Oygarden (https://eprint.iacr.org/2023/176) and of https://eprint.iacr.org/2025/1476. Costs are estimated as Liu, Wang,
Yang and Yu do (https://eprint.iacr.org/2022/712). A code of ten terms counts as random, as in Ferret.
Each batch is such an instance. One small set serves all demands: larger ones take fewer bytes (0.03 a transfer), but
a base that leaves a processor's cache, and a session with few transfers would pay for millions.

Who learns what. The receiver sends nothing but a masked sum for the check, so the sender learns nothing of choices. The
receiver learns nothing of v_i + (1 - e_i) Delta: it lacks Delta.

A malicious sender may send sums of no tree, which shows where the noise is by what then fails. So both parties add up
all leaves, times random factors in GF(2^128), as in Ferret's check. Each tree's leaf i has factor a_tree b_i, from a
hash of all that was sent: errors add up to zero with probability 2^-127, so 2^t hashes cheat with 2^(t - 127). The
receiver's sum has the factors phi of its places more, times Delta. It sends phi, masked by choices of 128 seeds, and
the sender a hash of its sum with these seeds. What passes is true for all places that pass: a sender that guesses m
bits of places is caught with probability 1 - 2^-m, and Ferret's assumption allows for what it learns. Nothing of a
call is given before the check.

A malicious receiver can only send another masked sum. It gets a hash of the sender's sum plus a multiple of Delta,
which tells nothing unless it guesses Delta's 127 bits.

Both parties ask for the same numbers in the same order. All calls, with count and width, are in the next batch's
challenge, so parties that disagree fail then; after any failure nothing more is given. A set-up ends after 2^32 rows.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..channel import Channel
from ..errors import CorrelationError, PeerProtocolError
from .base_transfer import REMEDY
from .folding import BITS, add_code, check_sums, grow_nodes, hash_rows, key_stream
from .softspoken import Correlated, TransferCost, receive_rows, rows_cost, send_rows

TREES, DEPTH, SECRET_ROWS = 850, 10, 1 << 16
ROWS = TREES << DEPTH
SEED_ROWS = BITS + SECRET_ROWS + TREES * DEPTH
WORD = 64
BATCH_WORDS = (ROWS - SEED_ROWS) // WORD  # of transfers
MESSAGE_BYTES = 16 * TREES * DEPTH
SUM_BYTES, HASH_BYTES = 16, 32
_KEY_WORDS = (1 << 16) // WORD  # that one key hashes
_LIFETIME_WORDS = (1 << 32) // WORD
_TREE_FACTORS = -(-TREES // 4) * 4  # whole vectors
_ALL = torch.arange(TREES)
_POWERS = torch.zeros(BITS, 2, dtype=torch.int64)  # of x
_POWERS[torch.arange(BITS), torch.arange(BITS) // WORD] = torch.ones(1, dtype=torch.int64) << torch.arange(BITS) % WORD
Pair = tuple[Tensor, Tensor]


def setup_cost() -> TransferCost:
    """Of one direction, once."""
    return rows_cost(SEED_ROWS)


def cost(count: int, used: int = 0) -> TransferCost:
    """Of `count` transfers that are asked for together, bits or numbers of any width, after `used` words of others."""
    batches = -(-(used + words_of(count)) // BATCH_WORDS) - -(-used // BATCH_WORDS)
    if not batches:
        return TransferCost(0, 0, 0)
    return TransferCost(SUM_BYTES, MESSAGE_BYTES * batches + HASH_BYTES, 3)


def words_of(count: int) -> int:
    """What a call takes: transfers are used by the word."""
    return -(-count // WORD)


class RandomTransfers:
    """How the parties of one direction set up; arguments: `send_rows`.

    Both parties ask at the same time, and for one direction after the other. Errors of all methods: those of the
    channel, PeerProtocolError of a peer that deviates, CorrelationError.
    """

    @staticmethod
    def sender(channel: Channel, session: bytes, direction: str) -> TransferSender:
        return TransferSender(channel, send_rows(channel, session, direction, SEED_ROWS))

    @staticmethod
    def receiver(channel: Channel, session: bytes, direction: str) -> TransferReceiver:
        return TransferReceiver(channel, receive_rows(channel, session, direction, SEED_ROWS))


class _Part(NamedTuple):
    """Rows of a call that one key hashes, and where in its results, in words."""

    at: int
    rows: Tensor
    first: int
    key: Tensor

    def hashed(self, offset: Tensor, width: int, out: Tensor) -> None:
        each = WORD if width else 1
        place = self.at * each
        words = len(self.rows) // WORD
        hash_rows(self.rows, offset, self.first, self.key, width, out[place : place + words * each])


class _Transfers(ABC):
    """What both parties hold: seeds, rows of a batch, and how many words of all batches were used."""

    def __init__(self, channel: Channel, correlated: Correlated) -> None:
        self._channel, self._delta = channel, correlated.delta
        self._bound, self._seeds = correlated.bound, correlated.rows
        self._code, self._batch = correlated.bound, b""
        self._rows, self._room = (torch.empty(n, 2, dtype=torch.int64) for n in (ROWS, ROWS // 2))
        self._used, self._open = 0, True
        self._sum = torch.zeros(2, dtype=torch.int64)

    def _parts(self, count: int, width: int) -> Iterator[_Part]:
        """The rows of a call, after which this is open again only if nothing failed."""
        if not self._open:
            raise CorrelationError("oblivious transfer: failed before; start a new session")
        if count < 0:
            raise CorrelationError(f"oblivious transfer: {count} transfers; ask for 0 or more")
        if self._used + words_of(count) > _LIFETIME_WORDS:
            raise CorrelationError("oblivious transfer: this session's are used up; start a new session")
        self._open = False
        self._bound = _hash(b"call", self._bound, count.to_bytes(8) + bytes([width]))
        at, masks = 0, None
        while (left := words_of(count) - at) > 0:
            place = self._used % BATCH_WORDS
            if place == 0:
                masks = self._seeds[:BITS] if masks is None else masks  # which no unchecked batch has made
                self._extend()
            size = min(left, BATCH_WORDS - place, _KEY_WORDS - place % _KEY_WORDS)
            rows = self._rows[SEED_ROWS + WORD * place :][: WORD * size]
            yield _Part(at, rows, WORD * place, _key(b"rows", self._batch, place // _KEY_WORDS))
            at, self._used = at + size, self._used + size
        if masks is not None:
            self._check(masks)
            self._sum = torch.zeros(2, dtype=torch.int64)
        self._open = True

    def _extend(self) -> None:
        """A batch, which is not checked yet."""
        seeds = self._seeds[BITS + SECRET_ROWS :].view(TREES, DEPTH, 2)
        self._grow(seeds, _key(b"trees", self._bound))
        secret, code = self._seeds[BITS:][:SECRET_ROWS], _key(b"code", self._code, self._used)
        add_code(self._rows, secret, code)
        self._seeds, self._batch = self._rows[:SEED_ROWS].clone(), self._bound

    @abstractmethod
    def _grow(self, seeds: Tensor, key: Tensor) -> None:
        """Make `_rows` leaves, out of seeds [trees, levels, 2], and add their sum up for the check."""

    @abstractmethod
    def _check(self, masks: Tensor) -> None:
        """All batches since the last one, under masks [128, 2]."""

    def _level(self, level: int) -> Tensor:
        """Room for a level's nodes [trees, nodes, 2]: by turns, so that the last one's are `_rows`."""
        room = self._room if (DEPTH - level) % 2 else self._rows
        return room[: TREES << level].view(TREES, -1, 2)

    def _sent(self, message: Tensor) -> tuple[Tensor, Tensor]:
        """What a batch's message challenges: factors of leaves [leaves, 2] and of trees [trees, 2]."""
        self._bound = _hash(b"batch", self._bound, message.numpy().tobytes())
        drawn = hashlib.sha256(b"blindformer transfer challenge" + self._bound).digest()
        factors = key_stream(drawn[:16], drawn[16:], 0, 2 * ((1 << DEPTH) + _TREE_FACTORS)).view(-1, 2)
        return factors[: 1 << DEPTH], factors[1 << DEPTH :]

    def _proof(self, masks: Tensor) -> bytes:
        total = self._sum ^ check_sums(masks.view(1, -1), _POWERS.view(-1))[0]
        return _hash(b"sum", self._bound, total.numpy().tobytes())


class TransferSender(_Transfers):
    """Who gets both results."""

    def bits(self, count: int) -> Pair:
        """r_0 and r_1, planes int64 [count / 64, rounded up], whose bits beyond `count` mean nothing."""
        return self._run(count, 0)

    def numbers(self, count: int, width: int) -> Pair:
        """r_0 and r_1, int64 [count]: uniform integers of `width` bytes, 1 to 8, and their sign above."""
        first, second = self._run(count, _checked(width))
        return first[:count], second[:count]

    def _run(self, count: int, width: int) -> Pair:
        first, second = _results(count, width), _results(count, width)
        for part in self._parts(count, width):
            part.hashed(torch.zeros_like(self._delta), width, first)
            part.hashed(self._delta, width, second)
        return first, second

    def _grow(self, seeds: Tensor, key: Tensor) -> None:
        nodes = torch.frombuffer(bytearray(secrets.token_bytes(16 * TREES)), dtype=torch.int64).view(TREES, 1, 2)
        nodes, message = torch.cat([nodes, nodes ^ self._delta], 1), seeds.clone()
        message[:, 0] ^= nodes[:, 0]
        for level in range(1, DEPTH):
            children = self._level(level + 1)
            message[:, level] ^= grow_nodes(nodes, key, children)[:, 0]
            nodes = children
        nodes[..., 0] &= -2
        self._channel.send(message.numpy().tobytes())
        self._sum ^= _leaves_sum(nodes, *self._sent(message))

    def _check(self, masks: Tensor) -> None:
        differs = torch.frombuffer(self._channel.recv(SUM_BYTES), dtype=torch.int64)
        self._channel.send(self._proof(masks ^ -_bits(differs)[:, None] & self._delta))


class TransferReceiver(_Transfers):
    """Who gets the result of its choice."""

    def __init__(self, channel: Channel, correlated: Correlated) -> None:
        super().__init__(channel, correlated)
        self._places_sum = torch.zeros(2, dtype=torch.int64)

    def bits(self, count: int) -> Pair:
        """c and r_c, planes int64 [count / 64, rounded up], whose bits beyond `count` mean nothing."""
        return self._run(count, 0)

    def numbers(self, count: int, width: int) -> Pair:
        """c, a plane int64 [count / 64, rounded up], and r_c, int64 [count]: uniform integers of `width` bytes, 1 to 8,
        and their sign above."""
        choices, results = self._run(count, _checked(width))
        return choices, results[:count]

    def _run(self, count: int, width: int) -> Pair:
        choices, results = _results(count, 0), _results(count, width)
        for part in self._parts(count, width):
            part.hashed(self._delta, width, results)
            choices[part.at :][: len(part.rows) // WORD] = _plane(part.rows)
        return choices, results

    def _grow(self, seeds: Tensor, key: Tensor) -> None:
        data = self._channel.recv(MESSAGE_BYTES)
        message = torch.frombuffer(data, dtype=torch.int64).view(TREES, DEPTH, 2)
        sides, given = seeds[..., 0] & 1, message ^ seeds
        nodes = torch.zeros(TREES, 2, 2, dtype=torch.int64)
        nodes[_ALL, sides[:, 0]] = total = given[:, 0]
        places = 1 - sides[:, 0]  # of the unknown node, which is zero
        for level in range(1, DEPTH):
            width, side = 1 << level, sides[:, level]
            children = self._level(level + 1)
            sums = grow_nodes(nodes, key, children)
            of_zero = children[_ALL, places]  # the same of both children
            known = given[:, level] ^ sums[_ALL, side] ^ of_zero
            children[_ALL, places] = children[_ALL, places + width] = torch.zeros(2, dtype=torch.int64)
            children[_ALL, places + width * side] = known
            nodes, places, total = children, places + width * (1 - side), sums[:, 0] ^ sums[:, 1] ^ known
        nodes[_ALL, places] = total  # of the level, less Delta
        nodes[..., 0] &= -2
        nodes[_ALL, places, 0] |= 1
        of_leaves, of_trees = self._sent(message)
        self._sum ^= _leaves_sum(nodes, of_leaves, of_trees)
        self._places_sum ^= _trees_sum(of_leaves[places], of_trees)

    def _check(self, masks: Tensor) -> None:
        self._channel.send((_plane(masks) ^ self._places_sum).numpy().tobytes())
        self._places_sum = torch.zeros(2, dtype=torch.int64)
        if not hmac.compare_digest(self._proof(masks), bytes(self._channel.recv(HASH_BYTES))):
            raise PeerProtocolError(self._channel.peer, "its oblivious transfers fail the check", REMEDY)


def _leaves_sum(leaves: Tensor, of_leaves: Tensor, of_trees: Tensor) -> Tensor:
    return _trees_sum(check_sums(leaves.view(TREES, -1), of_leaves.reshape(-1)), of_trees)


def _trees_sum(blocks: Tensor, of_trees: Tensor) -> Tensor:
    """Of blocks [trees, 2] times their factors: [2]."""
    padded = torch.zeros_like(of_trees)
    padded[:TREES] = blocks
    return check_sums(padded.view(1, -1), of_trees.reshape(-1))[0]


def _plane(rows: Tensor) -> Tensor:
    """The lowest bits of rows."""
    packed = np.packbits((rows[:, 0] & 1).to(torch.uint8).numpy(), bitorder="little")
    return torch.from_numpy(packed.view(np.int64))


def _bits(plane: Tensor) -> Tensor:
    return (plane[:, None] >> torch.arange(WORD) & 1).view(-1)


def _checked(width: int) -> int:
    if not 1 <= width <= 8:
        raise CorrelationError(f"oblivious transfer: numbers of {width} bytes; choose 1 to 8")
    return width


def _results(count: int, width: int) -> Tensor:
    """Room for a whole number of words."""
    words = words_of(max(count, 0))
    return torch.empty(WORD * words if width else words, dtype=torch.int64)


def _key(use: bytes, bound: bytes, number: int = 0) -> Tensor:
    return torch.frombuffer(bytearray(_hash(use, bound, number.to_bytes(8))[:16]), dtype=torch.int64)


def _hash(use: bytes, bound: bytes, data: bytes) -> bytes:
    return hashlib.sha256(b"blindformer silent transfer: " + use + b" " + bound + data).digest()
