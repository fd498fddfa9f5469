"""Numbers of more than 64 bits in numpy: residues modulo primes of at most 56 bits, and fractions of a modulus."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..channel import Buffer
from ..streams import Stream

Words = NDArray[np.uint64]

_DIGIT, _DIGITS = 14, 6  # a fraction's digits in bits: a residue of 50 bits and a digit fit a word
FRACTION_BITS = _DIGIT * _DIGITS
LEAST_BYTES = 3  # of a fraction that is cut
_LOW_HALF = np.uint64(0xFFFFFFFF)
_LOW_BYTES = 6


def multiplied(x: Words, factor: int, prime: int) -> Words:
    """x times a constant modulo a prime below 2^57; x below 2^57. The quotient of doubles is off by less than 2^6, so
    the remainder is right in 64 signed bits before it is reduced."""
    factor %= prime
    quotient = (x.astype(np.float64) * (factor / prime)).astype(np.uint64)
    remainder = x * np.uint64(factor) - quotient * np.uint64(prime)
    return np.mod(remainder.view(np.int64), np.int64(prime)).view(np.uint64)


def reduced(x: Words, primes: Sequence[int], above: Words | None = None, less: int = 0) -> Words:
    """Words [...] plus 2^64 times words below 2^56, less a constant, modulo each prime -> [primes, ...]."""
    rows = []
    for prime in primes:
        row = x % np.uint64(prime)
        if above is not None:
            row = row + multiplied(above, 1 << 64, prime)
        rows.append((row + np.uint64(-less % prime)) % np.uint64(prime))
    return np.stack(rows)


def reduced_signed(x: NDArray[np.int64], primes: Sequence[int]) -> Words:
    """Signed integers [...] modulo each prime -> [primes, ...]."""
    return np.stack([np.mod(x, np.int64(prime)).view(np.uint64) for prime in primes])


def scaled(message: Words, modulus: int, primes: Sequence[int]) -> Words:
    """floor(Q m / t) modulo each prime of Q, for messages m below t = `modulus`: a power of two up to 2^64, or a prime
    below 2^57. Q m less its remainder modulo t is a multiple of t, so it is -(Q m mod t) / t modulo a prime of Q."""
    product = 1
    for prime in primes:
        product *= prime
    if modulus & (modulus - 1):
        remainder = multiplied(message, product, modulus)
    else:
        remainder = message * np.uint64(product % (1 << 64)) & np.uint64(modulus - 1)
    return np.stack([multiplied(remainder % np.uint64(prime), -pow(modulus, -1, prime), prime) for prime in primes])


def fractions(residues: Words, primes: Sequence[int], size: int) -> bytes:
    """Numbers by their residues [2, n] -> the first 8 `size` bits of each as a fraction of the primes' product, cut."""
    digits = [np.zeros(residues.shape[1], dtype=np.uint64) for _ in range(_DIGITS)]
    for row, prime, other in zip(residues, primes, primes[::-1], strict=True):
        rest = multiplied(row, pow(other, -1, prime), prime)
        for digit in digits:
            rest = rest << np.uint64(_DIGIT)
            quotient = rest // np.uint64(prime)
            rest -= quotient * np.uint64(prime)
            digit += quotient
    half = _DIGITS // 2
    high, low = (sum_digits(part) for part in (digits[:half], digits[half:]))
    bits = np.uint64(_DIGIT * half)
    high = (high + (low >> bits)) & ((np.uint64(1) << bits) - np.uint64(1))
    low &= (np.uint64(1) << bits) - np.uint64(1)
    words, top = (high << bits) | low, high >> (np.uint64(64) - bits)  # 64 bits, and the 20 above them
    drop = FRACTION_BITS - 8 * size
    words = (words >> np.uint64(drop)) | (top << np.uint64(64 - drop))
    pair = np.stack([words, top >> np.uint64(drop) if drop < 64 else 0 * top], axis=-1)
    return np.ascontiguousarray(pair).view(np.uint8)[:, :size].tobytes()


def sum_digits(digits: Sequence[Words]) -> Words:
    total = np.zeros_like(digits[0])
    for digit in digits:
        total = (total << np.uint64(_DIGIT)) + digit
    return total


def integers(data: Buffer, size: int, primes: Sequence[int], zeros: int = 0) -> Words:
    """Integers of `size` bytes each, above `zeros` bytes (at most 15 together), modulo each prime -> [primes, n]."""
    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    pair = np.zeros((len(rows), 16), dtype=np.uint8)
    pair[:, zeros : zeros + size] = rows
    words = pair.view(np.uint64)
    return reduced(words[:, 0].copy(), primes, words[:, 1].copy() if zeros + size > 8 else None)


def as_fraction(residues: Words, primes: Sequence[int], size: int) -> Words:
    """Integers by their residues [2, n], each at most a quarter of the product away from 0 -> these modulo
    2^(8 size), as fractions of 2^(8 size) in 64 bits, rounded; 8 size is at most 80."""
    first, second = primes
    x = residues[0].view(np.int64)
    step = (residues[1] + np.uint64(second) - residues[0] % np.uint64(second)) % np.uint64(second)
    y = multiplied(step, pow(first, -1, second), second).view(np.int64)
    y = np.where(y > second // 2, y - second, y)
    drop = 8 * size - 64
    if drop <= 0:
        return ((x + first * y).view(np.uint64)) << np.uint64(-drop)
    mask = (1 << drop) - 1
    carried = (x + (first & mask) * (y & mask) + (1 << (drop - 1))) >> drop
    return (first * (y >> drop) + (first >> drop) * (y & mask) + carried).view(np.uint64)


def of_fraction(fraction: Words, modulus: int) -> Words:
    """round(t f) modulo t, for fractions f of 2^64: what `scaled` was made of."""
    if modulus == 1 << 64:
        return fraction
    if modulus & (modulus - 1) == 0:
        bits = modulus.bit_length() - 1
        return (fraction + np.uint64(1 << (63 - bits))) >> np.uint64(64 - bits)
    low, high = fraction & _LOW_HALF, fraction >> np.uint64(32)
    t_low, t_high = np.uint64(modulus & 0xFFFFFFFF), np.uint64(modulus >> 32)
    middle = ((low * t_low) >> np.uint64(32)) + (high * t_low & _LOW_HALF) + low * t_high  # below 2^58
    middle += np.uint64(1 << 31)
    return (high * t_high + (high * t_low >> np.uint64(32)) + (middle >> np.uint64(32))) % np.uint64(modulus)


def uniform(seed: bytes, label: str, primes: Sequence[int], count: int) -> Words:
    """Numbers uniform modulo each prime -> [primes, count]: AES-128 in counter mode under a key of the seed and label,
    words that are too large being drawn anew. Of a public seed they are public, as FrodoKEM's matrix is
    (https://frodokem.org)."""
    stream, out = Stream(seed, label).reader("residues"), np.empty((len(primes), count), dtype=np.uint64)
    for row, prime in zip(out, primes, strict=True):
        mask = np.uint64((1 << prime.bit_length()) - 1)
        row[:] = stream.int32(2 * count).numpy().view(np.uint64) & mask
        while len(large := np.flatnonzero(row >= np.uint64(prime))):
            row[large] = stream.int32(2 * len(large)).numpy().view(np.uint64) & mask
    return out


def residue_bytes(count: int, bits: Sequence[int]) -> int:
    return sum(count * size // 8 for size in bits)


def packed_residues(residues: Words, bits: Sequence[int]) -> bytes:
    """Residues [primes, n] below 2^bits, of 50 or 56 bits: the low 4 bytes of all, the 2 above, then the bits above by
    prime."""
    low, middle = residues.astype(np.uint32), (residues >> np.uint64(32)).astype(np.uint16)
    high = [
        (row.reshape(-1, len(steps)) >> np.uint64(8 * _LOW_BYTES) << steps).sum(1).astype(np.uint8)
        for row, steps in zip(residues, map(_steps_above, bits), strict=True)
    ]
    return b"".join(part.tobytes() for part in (low, middle, *high))


def unpacked_residues(data: Buffer, bits: Sequence[int], out: Words) -> None:
    """Of `residue_bytes`: [primes, n]."""
    count = out.shape[1]
    out[:] = np.frombuffer(data, np.uint32, out.size).reshape(out.shape)
    out |= np.frombuffer(data, np.uint16, out.size, 4 * out.size).reshape(out.shape).astype(np.uint64) << np.uint64(32)
    at = _LOW_BYTES * out.size
    for row, steps in zip(out, map(_steps_above, bits), strict=True):
        size = count // len(steps)
        above = np.frombuffer(data, np.uint8, size, at)[:, None] >> steps.astype(np.uint8)
        above &= np.uint8((1 << 8 // len(steps)) - 1)
        row |= above.reshape(-1).astype(np.uint64) << np.uint64(8 * _LOW_BYTES)
        at += size


def _steps_above(size: int) -> Words:
    """Where in a byte the bits above the low bytes of some numbers stand."""
    above = size - 8 * _LOW_BYTES
    return np.arange(0, 8, above, dtype=np.uint64)
