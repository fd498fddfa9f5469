"""Secure aggregation: the server adds up vectors of which it sees none. Keys, masks and shares; who does what is in
secure_client.py and secure_server.py.

K. Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017, figure 4, for
semi-honest parties. A vector travels under one mask for each pair of clients, which cancel in the sum, and under one of
the client's own, so that the late vector of a client that counted as dropped stays hidden. Shamir's shares at the
others bring back the masks of the pairs of who dropped, and the own masks of who did not; never both of one client.

Beyond that paper: a wrong share ruins no sum. Who deals shares tells the server a digest of each, and of its seed; so
the server takes right shares alone, and finds who gave the others, or dealt them (`Faults`).

Flower's SecAgg+ is bound to its old strategies, not to messages; and its masks come from numpy's Mersenne twister with
a seed of 32 bits. Here masks are AES-128-CTR streams modulo 2^64, each drawn once.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from torch import Tensor

from ..protocols.streams import Stream, derive
from .settings import FederateError

SCALE = 24
"""Fractional bits: half a unit of the last place, 2^-25, is what rounding may change in a client's vector."""
_MOST = 2.0**62
_PRIME = 2**521 - 1  # of the field of shares: a Mersenne prime above 256-bit keys
KEY_BYTES = 32
SHARE_BYTES = 66
NONCE_BYTES, TAG_BYTES = 12, 16
BOX_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES  # shares of both of a client's masks, sealed
DIGEST_BYTES = 32


def reach(clients: int) -> float:
    """The largest number of a client's vector: the sum over all clients cannot leave the ring."""
    return math.floor(_MOST / clients) / 2.0**SCALE


def encoded(vector: Tensor, clients: int) -> Tensor:
    """Fixed point, int64. Errors: FederateError for a number beyond `reach`, or none at all."""
    scaled = torch.round(vector.double() * 2.0**SCALE)
    if not bool(scaled.isfinite().all()) or float(vector.abs().max()) > reach(clients):
        raise FederateError("its update is not finite, or too large to add up; lower the rate")
    return scaled.long()


def decoded(total: Tensor) -> Tensor:
    return total.double() / 2.0**SCALE


def new_key() -> tuple[bytes, bytes]:
    """A private X25519 key and its public one, raw."""
    private = X25519PrivateKey.generate().private_bytes_raw()
    return private, public_of(private)


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def usable(public: bytes) -> bool:
    """Whether others can agree on a seed with the owner of this key."""
    try:
        agreed(new_key()[0], public, "")
    except FederateError:
        return False
    return True


def agreed(private: bytes, public: bytes, label: str) -> bytes:
    """The seed that the owners of two keys share, bound to `label`."""
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise FederateError("another client's key is not valid; leave that client out") from None
    return derive(secret, label)


# --- masks -----------------------------------------------------------------------------------------------------------


def mask(seed: bytes, session: str, size: int) -> Tensor:
    """Uniform int64 [size]. A seed is for one session (a run's round) alone."""
    return Stream(seed, f"secure aggregation {session}").integers("mask", (size,))


def pair_mask(private: bytes, public: bytes, session: str, size: int, mine: int, other: int) -> Tensor:
    """What client `mine` adds for the pair; `other` adds the negative."""
    pad = mask(agreed(private, public, f"pair {session}"), session, size)
    return pad if mine < other else -pad


# --- shares ----------------------------------------------------------------------------------------------------------


def share(secret: bytes, threshold: int, holders: Sequence[int]) -> dict[int, bytes]:
    """Shamir's shares by holder: any `threshold` of them give the secret, fewer say nothing of it. Holders' points are
    their places in the order of ids."""
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(_PRIME) for _ in range(threshold - 1))]
    dealt = {}
    for place, holder in enumerate(sorted(holders), start=1):
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * place + coefficient) % _PRIME
        dealt[holder] = value.to_bytes(SHARE_BYTES, "big")
    return dealt


def combine(shares: Mapping[int, bytes], threshold: int, holders: Sequence[int], size: int) -> bytes:
    """The secret of `size` bytes, from the first of the shares.

    Errors: FederateError with fewer than `threshold`, or if they give no such secret.
    """
    if len(shares) < threshold:
        raise FederateError(f"{len(shares)} shares of a key are left, {threshold} are needed: too many clients dropped")
    places = {holder: place for place, holder in enumerate(sorted(holders), start=1)}
    chosen = {places[holder]: int.from_bytes(shares[holder], "big") for holder in sorted(shares)[:threshold]}
    secret = 0
    for at, value in chosen.items():
        weight = 1
        for other in chosen:
            if other != at:
                weight = weight * other * pow(other - at, -1, _PRIME) % _PRIME
        secret = (secret + value * weight) % _PRIME
    if secret >= 256**size:
        raise FederateError("the shares of a key do not fit together: one of them is wrong")
    return secret.to_bytes(size, "big")


def digest(secret: bytes) -> bytes:
    """What binds its sender to a share or seed that it does not show yet. These have 128 bits of chance or more: nobody
    finds them from it."""
    return hashlib.sha256(secret).digest()


def sealed(key: bytes, text: bytes, about: str) -> bytes:
    """Encrypted and authenticated for one other client, through the server."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, text, about.encode())


def opened(key: bytes, box: bytes, about: str) -> bytes:
    """Errors: FederateError for a forged or misdelivered one."""
    try:
        return AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], about.encode())
    except (InvalidTag, ValueError):
        raise FederateError("a share does not come from the client it names") from None


@dataclass(frozen=True)
class SecureMember:
    """A client of one session, by its public keys: of masks, and of sealed shares."""

    mask: bytes
    seal: bytes


def threshold_of(clients: int) -> int:
    """More than half: two disjoint halves can never both answer."""
    return clients // 2 + 1
