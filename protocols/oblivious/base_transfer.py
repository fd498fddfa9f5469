"""A few random oblivious transfers out of public-key work, from which all others are extended.

Masny and Rindal, "Endemic oblivious transfer" (CCS 2019, https://eprint.iacr.org/2019/706, figure 8, with
Diffie-Hellman as the key agreement), on the subgroup of prime order of libsodium's edwards25519. Of each transfer the
sender gets two keys, and the receiver the one of its choice.

The receiver draws a point r_(1-b) and a scalar t, and sends it with r_b = t G - H(r_(1-b)), in the order of the
choices. The sender sends s G. The keys are hashes of s (r_j + H(r_(1-j))). The receiver computes the one of its choice
as t (s G). Both messages cross: neither depends on the other.

The sender learns nothing of b: r_0 and r_1 are uniform and independent for either b, whatever the sender sends. The
receiver learns one key at most: the other is a Diffie-Hellman key of s G and of a point that H, a random oracle, has
randomised. Both hold against a malicious party under the computational Diffie-Hellman assumption, in the "endemic"
sense: a malicious party may choose the keys that it gets. These keys only mask seeds that the sender chooses in any
case (trees.py), so this gains nothing. The best attack on the curve takes about 2^126 operations: the level of 128
bits.

H maps two halves of SHA-512 to points and adds them, as hash_to_curve of RFC 9380, section 3, does. Session, transfer,
and both parties' points are in every hash. A point that is not a canonical one of the subgroup is refused.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from nacl import bindings as sodium
from nacl.exceptions import CryptoError

from ..channel import Channel
from ..errors import PeerProtocolError

KEY_BYTES = 32
POINT_BYTES = sodium.crypto_core_ed25519_BYTES
REMEDY = "end the session; its program is faulty, or it cheats"


def receive_keys(channel: Channel, session: bytes, choices: Sequence[int]) -> list[bytes]:
    """The key of each choice, 0 or 1. `session`: 32 bytes, the same at both parties, that no other set-up has. Errors:
    PeerProtocolError."""
    logarithms = [_scalar() for _ in choices]
    pairs: list[tuple[bytes, bytes]] = []
    for index, (choice, t) in enumerate(zip(choices, logarithms, strict=True)):
        other = _multiple_of_base(_scalar())
        mine = sodium.crypto_core_ed25519_sub(_multiple_of_base(t), _to_point(session, index, choice, other))
        pairs.append((other, mine) if choice else (mine, other))
    data = bytes(channel.exchange(b"".join(map(b"".join, pairs)), POINT_BYTES * len(pairs)))
    keys: list[bytes] = []
    for index, (choice, t, pair) in enumerate(zip(choices, logarithms, pairs, strict=True)):
        theirs = _point(data, index, channel.peer)
        keys.append(_key(session, index, choice, pair, theirs, _multiple(t, theirs, channel.peer)))
    return keys


def send_keys(channel: Channel, session: bytes, count: int) -> list[tuple[bytes, bytes]]:
    """Both keys of each transfer. Errors: PeerProtocolError."""
    scalars = [_scalar() for _ in range(count)]
    points = [_multiple_of_base(s) for s in scalars]
    data = bytes(channel.exchange(b"".join(points), 2 * POINT_BYTES * count))
    keys: list[tuple[bytes, bytes]] = []
    for index, (s, mine) in enumerate(zip(scalars, points, strict=True)):
        pair = _point(data, 2 * index, channel.peer), _point(data, 2 * index + 1, channel.peer)
        both: list[bytes] = []
        for choice in (0, 1):
            other = _to_point(session, index, choice, pair[1 - choice])
            shared = _multiple(s, sodium.crypto_core_ed25519_add(pair[choice], other), channel.peer)
            both.append(_key(session, index, choice, pair, mine, shared))
        keys.append((both[0], both[1]))
    return keys


def _scalar() -> bytes:
    drawn = secrets.token_bytes(sodium.crypto_core_ed25519_NONREDUCEDSCALARBYTES)
    return sodium.crypto_core_ed25519_scalar_reduce(drawn)


def _multiple_of_base(scalar: bytes) -> bytes:
    return sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)


def _multiple(scalar: bytes, point: bytes, peer: str) -> bytes:
    try:
        return sodium.crypto_scalarmult_ed25519_noclamp(scalar, point)
    except CryptoError:  # the neutral element: points that were chosen for it
        raise PeerProtocolError(peer, "sent points that add up to none", REMEDY) from None


def _point(data: bytes, number: int, peer: str) -> bytes:
    point = data[POINT_BYTES * number : POINT_BYTES * (number + 1)]
    if not sodium.crypto_core_ed25519_is_valid_point(point):
        raise PeerProtocolError(peer, "sent what is no point of the curve", REMEDY)
    return point


def _to_point(session: bytes, index: int, choice: int, point: bytes) -> bytes:
    """H of the other point, for the one of this choice."""
    label = b"blindformer base transfer: point" + session + index.to_bytes(4) + bytes([choice])
    drawn = hashlib.sha512(label + point).digest()
    halves = (sodium.crypto_core_ed25519_from_uniform(half) for half in (drawn[:POINT_BYTES], drawn[POINT_BYTES:]))
    return sodium.crypto_core_ed25519_add(*halves)


def _key(session: bytes, index: int, choice: int, pair: tuple[bytes, bytes], theirs: bytes, shared: bytes) -> bytes:
    """`theirs`: the sender's point; `shared`: Diffie-Hellman's."""
    label = b"blindformer base transfer: key" + session + index.to_bytes(4) + bytes([choice])
    return hashlib.sha256(label + b"".join(pair) + theirs + shared).digest()
