"""Correlated rows out of 128 base transfers: SoftSpokenOT (Roy, CRYPTO 2022, https://eprint.iacr.org/2022/192), with
its check against a malicious receiver. The rows start what makes transfers by the million (silent.py).

The sender has Delta, 128 bits of which the lowest is 1, and rows w. The receiver has rows v = w + u Delta, with random
bits u. All lowest bits of w are 0, so u is the lowest of v.

Set-up. The sender cuts Delta into its 16 bytes Delta_i. Tree i has 2^8 leaves. The receiver has all leaves, the sender
all but leaf Delta_i (base_transfer.py, trees.py).

Extension. Leaf y of tree i gives a stream of n bits. The receiver's u_i is the sum (exclusive or) of a tree's streams,
and v_ij is the sum of those with bit j of y set. The sender computes w_ij = v_ij + Delta_ij u_i: it indexes leaves by y
xor Delta_i, so the leaf that it misses counts zero times (section 3.1, figure 7). The choices are u = u_0. For every
other tree the receiver sends u_i + u, and the sender adds Delta_ij (u_i + u) to w_ij (section 3.2, with a repetition
code).

Privacy. Each u_i holds the stream of a leaf that the sender misses, so all that the sender receives is pseudo-random,
whatever the choices. AES in counter mode differs from random streams with probability 2^-98, for 2^12 keys.

A malicious receiver may send something else than u_i + u, and learn bits of Delta from what the sender then does. So
both parties add up blocks of 128 rows, times random factors in GF(2^128). The receiver sends the sum of u, and a hash
of the sums of all v_ij, which the sender computes from its w. Another 128 rows, of factor one, mask these sums and are
dropped. That is the check of section 4, with the universal hash that Keller, Orsini and Scholl took for it
(https://eprint.iacr.org/2015/546, figure 10 of its corrected version). Errors of two trees that differ have equal sums
with probability 2^-128. If they do not, a message passes for one value of the pieces of Delta that it touches, and
otherwise ends the session: n bits are guessed with probability 2^-n, and all others stay secret.

The factors come from a hash of all that was sent (Fiat and Shamir), as in Doerner and others
(https://eprint.iacr.org/2023/765, section 5.1), which saves two messages; in the paper the sender draws them. So a
receiver may try messages: after 2^t hashes it has cheated with probability 2^(t - 121) at most, by one of 120 pairs of
trees. A check of 40 bits, enough for factors of the sender, would not do here.

A malicious sender sends nothing after the set-up, and learns nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import NamedTuple

import torch
from torch import Tensor

from ..channel import Channel
from ..errors import PeerProtocolError
from .base_transfer import POINT_BYTES, REMEDY, receive_keys, send_keys
from .folding import BITS, WORDS, check_sums, fold, key_stream, transpose_planes
from .trees import grow, message_bytes, plant

_DEPTH = 8  # of trees: the fewest bytes; 4 takes twice the bytes and half the time
_DEPTHS = [_DEPTH] * (BITS // _DEPTH)
_SUM_BYTES, _HASH_BYTES = 16, 32
_PROOF_BYTES = _SUM_BYTES + _HASH_BYTES


class Correlated(NamedTuple):
    """What a party has: a hash of all that was sent, and rows int64 [n, 2]. `delta`: [2], at the sender."""

    bound: bytes
    rows: Tensor
    delta: Tensor


class TransferCost(NamedTuple):
    """Payload in bytes, and messages in sequence."""

    from_receiver: int
    from_sender: int
    rounds: int


def rows_cost(count: int) -> TransferCost:
    """Of `count` rows, with their set-up."""
    points = BITS * POINT_BYTES
    corrections = 8 * _words(count) * (len(_DEPTHS) - 1)
    return TransferCost(points + message_bytes(_DEPTHS) + corrections + _PROOF_BYTES, 2 * points, 2)


def send_rows(channel: Channel, session: bytes, direction: str, count: int) -> Correlated:
    """The sender's. The receiver calls `receive_rows` at the same time.

    session    bytes that both parties agree on, and use once
    direction  who sends to whom, as "server to client": two set-ups of a session differ in it
    Errors: those of the channel, PeerProtocolError.
    """
    name, words = _name(session, direction, count), _words(count)
    delta = bytearray(secrets.token_bytes(BITS // 8))
    delta[0] |= 1
    bits = torch.tensor([delta[bit // 8] >> bit % 8 & 1 for bit in range(BITS)])
    keys = receive_keys(channel, name, (1 - bits).tolist())
    message = bytes(channel.recv(message_bytes(_DEPTHS)))
    leaves = grow(name, _DEPTHS, delta, keys, message, channel.peer)
    moved = [tree[torch.arange(len(tree)) ^ place].contiguous() for tree, place in zip(leaves, delta, strict=True)]
    planes, _ = _folded(moved, False, words)

    others = len(_DEPTHS) - 1
    data = channel.recv(8 * others * words + _PROOF_BYTES)
    corrections = torch.frombuffer(data, dtype=torch.int64, count=others * words).view(others, 1, words)
    masks = -bits.view(-1, _DEPTH, 1)
    planes[_DEPTH:].view(others, _DEPTH, words).bitwise_xor_(corrections & masks[1:])  # and no branch on Delta's bits
    bound, factors = _challenge(name, message, corrections)
    proof = data[-_PROOF_BYTES:]
    choices = torch.frombuffer(proof, dtype=torch.int64, count=2)
    sums = check_sums(planes, factors) ^ masks.view(-1, 1) & choices
    if not hmac.compare_digest(_sums_hash(bound, sums), proof[_SUM_BYTES:]):
        raise PeerProtocolError(channel.peer, "its oblivious transfers fail the check", REMEDY)
    return Correlated(bound, _rows(planes, count), torch.frombuffer(delta, dtype=torch.int64))


def receive_rows(channel: Channel, session: bytes, direction: str, count: int) -> Correlated:
    """The receiver's; see `send_rows`."""
    name = _name(session, direction, count)
    leaves, message = plant(name, _DEPTHS, send_keys(channel, name, BITS))
    channel.send(message)
    planes, totals = _folded(leaves, True, _words(count))
    choices, corrections = totals[0], totals[1:] ^ totals[0]
    bound, factors = _challenge(name, message, corrections)
    proof = check_sums(choices[None], factors).numpy().tobytes() + _sums_hash(bound, check_sums(planes, factors))
    channel.send(corrections.numpy().tobytes() + proof)
    rows = _rows(planes, count)
    rows[:, 0] |= (choices[:, None] >> torch.arange(64) & 1).view(-1)[:count]
    return Correlated(bound, rows, torch.zeros(2, dtype=torch.int64))


def _words(count: int) -> int:
    """Of planes: rows, those that mask the sums, and those that fill vectors up."""
    return -(-(count + BITS) // (64 * WORDS)) * WORDS


def _name(session: bytes, direction: str, count: int) -> bytes:
    parts = (b"blindformer oblivious transfer", session, direction.encode(), count.to_bytes(8))
    return hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()


def _folded(leaves: list[Tensor], known: bool, words: int) -> tuple[Tensor, Tensor]:
    """Planes [128, words], and sums of trees [trees, words]. `known`: the first leaf of each tree."""
    planes = torch.empty(BITS, words, dtype=torch.int64)
    totals = torch.empty(len(leaves), words, dtype=torch.int64)
    for tree, some, total in zip(leaves, planes.view(-1, _DEPTH, words), totals, strict=True):
        fold(tree, known, 0, some, total)
    return planes, totals


def _rows(planes: Tensor, count: int) -> Tensor:
    """With lowest bits 0."""
    rows = transpose_planes(planes, torch.empty(64 * planes.shape[1], 2, dtype=torch.int64))[:count]
    rows[:, 0] &= -2
    return rows


def _challenge(name: bytes, message: bytes, corrections: Tensor) -> tuple[bytes, Tensor]:
    """A hash of all that was sent, and the factors that follow from it."""
    transcript = hashlib.sha256(name + message)
    transcript.update(corrections.numpy().tobytes())
    drawn = hashlib.sha512(b"blindformer transfer challenge" + transcript.digest()).digest()
    factors = key_stream(drawn[:16], drawn[16:32], 0, corrections.shape[-1])
    factors[-2:] = torch.tensor([1, 0])  # of the rows that mask
    return transcript.digest(), factors


def _sums_hash(bound: bytes, sums: Tensor) -> bytes:
    return hashlib.sha256(b"blindformer transfer sums" + bound + sums.numpy().tobytes()).digest()
