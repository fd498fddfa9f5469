"""Trees of seeds of which one party knows all leaves, and the other all but one.

A tree of depth d has 2^d leaves (Goldreich, Goldwasser, Micali). Its owner knows the root. The other party chooses a
leaf x, and learns all others: of each level it gets the sum, by exclusive or, of all nodes on the side that the way to
x does not take (a left or right child), by a base transfer. It knows all of these but the sibling of the way, so it
learns that one. That is the punctured PRF of SoftSpokenOT (Roy, CRYPTO 2022, https://eprint.iacr.org/2022/192, figure
13).

The owner learns nothing of x from this (base_transfer.py). The other party learns nothing of the leaf at x: on every
level, the node on the way is pseudo-random, and so is a sum that it is part of.

A malicious owner may send sums of no tree. So each leaf also gives 32 bytes for a check: the owner sends their sum for
each tree, by which the other party fills in the one at x, and the hash of all (figure 14). What passes is one set of
leaves for every x that passes, up to a collision of SHA-256. Whether the check passes may depend on x: such an owner
guesses bits of x, and is caught if it guesses wrong; n bits are guessed with probability 2^-n. The extension's proof
allows that (softspoken.py).

A node is 32 bytes, and its children are SHA-512 of it with session, tree, level and place, so guesses of a seed fit one
node alone. Leaves are seeds of key streams: AES's key, and a secret first counter (streams.py says why).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import PeerProtocolError
from .base_transfer import KEY_BYTES, REMEDY

NODE_BYTES = KEY_BYTES
_HASH_BYTES = 32
_Node = bytes | None  # None: unknown


def message_bytes(depths: Sequence[int]) -> int:
    """What the owner sends: two sums for each level, a sum for each tree, and a hash."""
    return 2 * NODE_BYTES * sum(depths) + NODE_BYTES * len(depths) + _HASH_BYTES


def plant(session: bytes, depths: Sequence[int], keys: Sequence[tuple[bytes, bytes]]) -> tuple[list[Tensor], bytes]:
    """At the owner, trees of these depths: their leaves, int64 [2^depth, 4] each, and the message for the other party.
    keys: a base transfer's for each level, the leaves' level first."""
    leaves: list[Tensor] = []
    sums, checks, hashed, at = b"", b"", hashlib.sha256(session), 0
    for tree, depth in enumerate(depths):
        nodes: list[_Node] = [secrets.token_bytes(NODE_BYTES)]
        for level in range(depth):
            nodes = _children(session, tree, level, nodes)
            pair = keys[at + depth - 1 - level]
            sums += b"".join(_sum([pair[side], *nodes[side::2]]) for side in (0, 1))
        seeds, tags = _leaves(session, tree, nodes)
        leaves.append(seeds)
        checks += _sum(tags)
        hashed.update(b"".join(tag for tag in tags if tag))
        at += depth
    return leaves, sums + checks + hashed.digest()


def grow(
    session: bytes, depths: Sequence[int], missing: Sequence[int], keys: Sequence[bytes], message: bytes, peer: str
) -> list[Tensor]:
    """At the other party: the leaves, int64 [2^depth, 4] each, with zeros at the missing ones.

    keys: for each level, the leaves' level first, of the side that is not on the way to the missing leaf. Errors:
    PeerProtocolError."""
    leaves: list[Tensor] = []
    level_sums = iter(message[i : i + NODE_BYTES] for i in range(0, len(message), NODE_BYTES))
    checks = message[2 * NODE_BYTES * sum(depths) :]
    hashed, at = hashlib.sha256(session), 0
    for tree, (depth, place) in enumerate(zip(depths, missing, strict=True)):
        nodes: list[_Node] = [None]
        for level in range(depth):
            bit = depth - 1 - level
            pair, way = (next(level_sums), next(level_sums)), place >> bit
            side = 1 - way % 2
            nodes = _children(session, tree, level, nodes)
            nodes[way ^ 1] = _sum([pair[side], keys[at + bit], *nodes[side::2]])
        seeds, tags = _leaves(session, tree, nodes)
        leaves.append(seeds)
        tags[place] = _sum([checks[NODE_BYTES * tree : NODE_BYTES * (tree + 1)], *tags])
        hashed.update(b"".join(tag for tag in tags if tag))
        at += depth
    if not hmac.compare_digest(hashed.digest(), checks[-_HASH_BYTES:]):
        raise PeerProtocolError(peer, "its seeds of oblivious transfers fail the check", REMEDY)
    return leaves


def _children(session: bytes, tree: int, level: int, nodes: Sequence[_Node]) -> list[_Node]:
    label = b"blindformer tree" + session + bytes([tree, level])
    after: list[_Node] = []
    for place, node in enumerate(nodes):
        drawn = None if node is None else hashlib.sha512(label + place.to_bytes(2) + node).digest()
        after += [None, None] if drawn is None else [drawn[:NODE_BYTES], drawn[NODE_BYTES:]]
    return after


def _leaves(session: bytes, tree: int, nodes: Sequence[_Node]) -> tuple[Tensor, list[_Node]]:
    """Seeds of streams, int64 [n, 4], and what is checked of each leaf."""
    drawn = _children(session, tree, 255, nodes)
    seeds = b"".join(seed or bytes(NODE_BYTES) for seed in drawn[::2])
    return torch.frombuffer(bytearray(seeds), dtype=torch.int64).view(-1, 4), drawn[1::2]


def _sum(nodes: Sequence[_Node]) -> bytes:
    """By exclusive or, of those that are known."""
    known = np.frombuffer(b"".join(node for node in nodes if node), dtype=np.uint64).reshape(-1, NODE_BYTES // 8)
    return np.bitwise_xor.reduce(known, axis=0).tobytes()
