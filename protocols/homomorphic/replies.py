"""What goes back to the key's holder: a message less a mask, of whose noise nothing is left to see.

A ciphertext that was computed reveals its factors twice: by its second part, a public combination of seeds, and by its
noise, which the key's holder sees. So the one who replies adds
    an encryption of zero under the public key: the second part is then pseudo-random (ring-LWE, for the ternary secret
    and errors of this one encryption, which SEAL draws), and its own noise joins the rest;
    uniform noise of at least 64 bits more than any noise v can have: U and U + v have statistical distance |v| / 2^F,
    if U is uniform over 2^F numbers. F is as large as exactness leaves room for, at least FLOOD_BITS + bits of the
    bound, so the distance is at most 2^-64. The bound holds always, not on average.
A number of 8 bytes is near that limit; of narrower ones, and of products modulo a prime, the distance is 2^-72 at most.
That of a query is at most the sum over its results: 2^-40 for 2^24 numbers of 8 bytes, 2^-36 for 2^28. What follows is
a function of this ciphertext alone, and shows no more: the modulus becomes the first two primes', and of each
coefficient only the first bits are sent, as a fraction. Of the first part only coefficients with a result are sent.

*The key's holder* learns message less mask, which is uniform, and noise that it could have drawn itself, up to 2^-64 a
number. It is exact: noise, flood and what is cut off are together below half a step of the message (`flood_bits`).

Semi-honest only. A key's holder that encrypts something else may have more noise than the bound, or a public key under
which the second part is no ring-LWE sample, and then reads the other's factors. So one that may deviate must not hold
the key where the other's factor is private. One that replies otherwise than here shifts results by functions of the
key, and learns bits of it from what they do.
"""

from __future__ import annotations

import numpy as np

from ..channel import Buffer
from .lattice import (
    DATA_PRIMES,
    DEGREE,
    LARGEST_ERROR,
    HomomorphicError,
    LatticeKey,
    LatticePublic,
    lattice,
    random_below,
    values_of,
)
from .residues import LEAST_BYTES, Words, as_fraction, fractions, integers, of_fraction, scaled

FLOOD_BITS = 64
_MOST_FLOOD_BITS = 120  # that are drawn (random_below)
# Bits that are sent of a part's fractions beyond the message, of which what is cut is less than a unit: that of the
# second part counts for each of the secret's coefficients.
_SPARE_BITS = (6, 16)
ROUNDING = (DEGREE + 1) // 2 + 1
"""The most noise of a division of the modulus, for a ternary secret."""
FRESH = LARGEST_ERROR * (2 * DEGREE + 1) + ROUNDING
"""The most noise of an encryption under the public key."""
SWITCHING = DATA_PRIMES * DEGREE * LARGEST_ERROR + ROUNDING
"""The most noise of a key switch: digits are below the prime that they are divided by."""


def sent_bytes(modulus: int) -> tuple[int, int]:
    """Of a coefficient of each part, for messages modulo a power of 256, or a prime below 2^57."""
    bits = (modulus - 1).bit_length()
    first, second = (max((bits + spare + 7) // 8, LEAST_BYTES) for spare in _SPARE_BITS)
    return first, second


def reply_bytes(modulus: int, count: int) -> int:
    """A reply with `count` results of at most DEGREE."""
    first, second = sent_bytes(modulus)
    return DEGREE * second + count * first


def flood_bits(modulus: int, noise: int) -> int:
    """Bits of the uniform noise over a noise of at most `noise`, with the public key's: the most with which the result
    is exact. Errors: HomomorphicError where these are fewer than FLOOD_BITS above the noise."""
    bound, product = noise + FRESH, 1
    for prime in lattice().data.primes:
        product *= prime
    # What is cut off takes 9 of 32 of half a step, the second division and its rounding next to nothing.
    room = 7 * product // (10 * 2 * modulus) - bound
    bits = min(max(room, 0).bit_length(), _MOST_FLOOD_BITS)
    if bits < bound.bit_length() + FLOOD_BITS:
        raise HomomorphicError("this product has more terms than noise can hide exactly; split it along its sum")
    return bits


def reply(
    public: LatticePublic,
    computed: Words | None,
    masks: Words,
    modulus: int,
    noise: int,
    places: Words | slice = slice(None),
) -> bytes:
    """The bytes of a reply.

    computed  a ciphertext [2, data primes, degree], or None for one of zero
    masks     what is added, modulo `modulus`, [degree]
    noise     the most that `computed` has
    places    the coefficients that have results
    """
    ring, bits = lattice(), flood_bits(modulus, noise)
    added = scaled(masks, modulus, ring.data.primes) + random_below(bits, DEGREE, ring.data.primes)
    total = values_of(public.encryptor.encrypt_zero()).copy()
    total[0] += ring.data.values(added)
    if computed is not None:
        total += computed  # below three primes
    first, second = ring.sent.coefficients(ring.data.divided(total))
    sizes = sent_bytes(modulus)
    return fractions(second, ring.sent.primes, sizes[1]) + fractions(first[:, places], ring.sent.primes, sizes[0])


def opened(
    key: LatticeKey, data: Buffer, modulus: int, places: Words | slice = slice(None), count: int = DEGREE
) -> Words:
    """The `count` messages of a reply, modulo `modulus`. Any bytes of `reply_bytes` are some reply."""
    return of_fraction(fractions_of(key, data, modulus, places, count), modulus)


def fractions_of(
    key: LatticeKey, data: Buffer, modulus: int, places: Words | slice = slice(None), count: int = DEGREE
) -> Words:
    """The same with their noise, as fractions of 2^64: all that the key's holder can see."""
    ring, (first, size) = lattice(), sent_bytes(modulus)
    if len(data) != reply_bytes(modulus, count):
        raise HomomorphicError(
            f"reply: {len(data)} bytes instead of {reply_bytes(modulus, count)}; both need one version"
        )
    pair = np.zeros((2, 2, DEGREE), dtype=np.uint64)
    pair[1] = integers(data[: DEGREE * size], size, ring.sent.primes)
    pair[0][:, places] = integers(data[DEGREE * size :], first, ring.sent.primes, size - first)
    if not pair[1].any():
        raise HomomorphicError("reply: its second part is zero, which no encryption has")
    return as_fraction(key.phases(pair)[:, places], ring.sent.primes, size)
