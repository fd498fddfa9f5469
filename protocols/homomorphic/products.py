"""Shares of sums of products, elementwise modulo 2^64, of one party's integers by the other's.

    Alice -> Bob    her numbers x and y, encrypted under her key
    Bob -> Alice    x x' + y y' + mask, encrypted, flooded (replies.py)
    shares          Alice: what she decrypts      Bob: r, which he chose

One term, or two: both cross terms of a product of shared numbers.

Values are slots of polynomials modulo primes t (SEAL's BatchEncoder), so sums z are exact integers by their residues,
not modulo 2^64: the mask must hide them as integers. Both know `bits`, from 2 to 128, such that z is at most 2^(bits -
1) either way: what their numbers may be, not what they are. The mask is uniform over 2^(bits + 63) numbers but for its
low 64 bits, which r fixes and which are uniform if r is. The sum z + mask stays below the product of the primes, and
its statistical distance from one that does not depend on z is 2^-64 a number at most: |z| of 2^(bits + 63). The flood
of all its residues (replies.py) adds little to that.

Who learns what. *Bob* sees ciphertexts: nothing, if ring-LWE is hard. *Alice* sees a uniform share, and noise and high
bits that she could have drawn herself. Neither checks that the other computes what it should (semi-honest).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..channel import Buffer
from . import lattice as lattices
from .lattice import (
    CIPHERTEXT_BYTES,
    DEGREE,
    LARGEST_ERROR,
    HomomorphicError,
    LatticeKey,
    LatticePublic,
    lattice,
    random_words,
    unsealed,
)
from .replies import FLOOD_BITS, ROUNDING, flood_bits, opened, reply, reply_bytes
from .residues import Words, multiplied, reduced_signed, scaled

_MOST_PRIME_BITS = 57


@dataclass(frozen=True)
class Slots:
    """SEAL's encoder of a polynomial's slots modulo a prime."""

    prime: int
    encoder: Any
    context: Any

    def encode(self, values: Words) -> Words:
        """Slots [degree] -> coefficients [degree]."""
        plain = self.encoder.encode(values)
        form = plain.to_bytes(lattices.seal.compr_mode_type.none)
        coefficients = np.zeros(DEGREE, dtype=np.uint64)
        count = plain.coeff_count()
        coefficients[:count] = np.frombuffer(form[-8 * count :], dtype=np.uint64)
        return coefficients

    def decode(self, coefficients: Words) -> Words:
        return self.encoder.decode_uint64(lattice().polynomial(coefficients, self.context))


def slots(bits: int) -> tuple[Slots, ...]:
    """The primes whose product holds sums of so many bits and their mask."""
    masked = bits + FLOOD_BITS
    count = -(-masked // _MOST_PRIME_BITS)
    out = _slots(count, -(-masked // count))
    total = 1
    for one in out:
        total *= one.prime
    if total < (2 << bits - 1) + (1 << bits + FLOOD_BITS - 1):
        raise HomomorphicError(f"products of {bits} bits: SEAL's primes are too small; install seal-python 4.4")
    return out


@cache
def _slots(count: int, size: int) -> tuple[Slots, ...]:
    """The largest primes of `size` bits; some of SEAL's may be the ciphertexts' own."""
    seal, out = lattices.seal, []
    primes = seal.PlainModulus.Batching(DEGREE, [size] * (count + len(lattice().primes)))
    for prime in [prime for prime in primes if prime.value() not in lattice().primes][:count]:
        chosen = seal.EncryptionParameters(seal.scheme_type.bfv)
        chosen.set_poly_modulus_degree(DEGREE)
        chosen.set_coeff_modulus(seal.CoeffModulus.BFVDefault(DEGREE))
        chosen.set_plain_modulus(prime)
        context = seal.SEALContext(chosen, True, seal.sec_level_type.tc128)
        out.append(Slots(prime.value(), seal.BatchEncoder(context), context))
    return tuple(out)


def product_cost(count: int, terms: int = 2, bits: int = 128) -> tuple[int, int]:
    """Bytes of a request and of a reply for so many sums of one or two terms."""
    full = -(-count // DEGREE)
    return (
        full * len(slots(bits)) * terms * CIPHERTEXT_BYTES,
        full * sum(reply_bytes(one.prime, DEGREE) for one in slots(bits)),
    )


class ProductAlice:
    """The party with the key. One request serves any number of replies."""

    def __init__(self, key: LatticeKey, bits: int = 128) -> None:
        self.key, self.slots = key, slots(bits)

    def request(self, numbers: Tensor) -> bytes:
        """Her numbers, int64 [terms, count], encrypted: the first number of product_cost."""
        terms, ring, parts = _terms(numbers), lattice(), []
        for block in zip(*terms, strict=True):
            for one in self.slots:
                for values in block:
                    message = one.encode(reduced_signed(values, [one.prime])[0])
                    parts.append(self.key.encrypted(scaled(message, one.prime, ring.primes)))
        return b"".join(parts)

    def share(self, data: Buffer, count: int) -> Tensor:
        """Her share of so many sums, int64. Errors: HomomorphicError."""
        sizes = [reply_bytes(one.prime, DEGREE) for one in self.slots]
        expected = -(-count // DEGREE) * sum(sizes)
        if len(data) != expected:
            raise HomomorphicError(f"reply: {len(data)} bytes instead of {expected}; both need one program")
        view, at, rows = memoryview(data), 0, []
        for _ in range(-(-count // DEGREE)):
            residues = []
            for one, size in zip(self.slots, sizes, strict=True):
                residues.append(one.decode(opened(self.key, view[at : at + size], one.prime)))
                at += size
            rows.append(_joined(residues, [one.prime for one in self.slots]))
        sums = np.concatenate(rows)[:count] if rows else np.zeros(0, dtype=np.uint64)
        return torch.from_numpy(sums.view(np.int64))


class ProductBob:
    """The party that replies, with the other's public key."""

    def __init__(self, public: LatticePublic, bits: int = 128) -> None:
        self.public, self.bits = public, bits

    def reply(self, request: Buffer, numbers: Tensor, r: Tensor) -> bytes:
        """The second number of product_cost. His numbers [terms, count], and his share r [count] of the sums, uniform
        and used once; int64. Errors: HomomorphicError."""
        terms = _terms(numbers)
        expected = product_cost(numbers.shape[1], len(terms), self.bits)[0]
        if r.shape != numbers.shape[1:]:
            raise HomomorphicError(f"numbers {list(numbers.shape)}, shares {list(r.shape)}: give a share for each sum")
        if len(request) != expected:
            raise HomomorphicError(f"request: {len(request)} bytes instead of {expected}; both need one program")
        parts, at, view = [], 0, memoryview(request)
        for *block, fixed in zip(*terms, _blocks(-r), strict=True):
            low = fixed.view(np.uint64) - np.uint64((1 << self.bits - 1) % (1 << 64))  # less _mask_slots' shift
            mask = low, *_high_words(self.bits - 1)
            for one in slots(self.bits):
                sealed = [unsealed(view, at + i, "request") for i in range(len(block))]
                at += len(block)
                parts.append(self._reply(one, sealed, block, _mask_slots(one.prime, mask, self.bits)))
        return b"".join(parts)

    def _reply(self, one: Slots, sealed: list[Words], factors: list[NDArray[np.int64]], mask: Words) -> bytes:
        """Ciphertexts times a factor each, and the mask's slots."""
        ring, prime = lattice(), one.prime
        coefficients = np.stack([one.encode(reduced_signed(x, [prime])[0]) for x in factors]).view(np.int64)
        centred = np.where(coefficients > prime // 2, coefficients - prime, coefficients)
        residues = ring.all.values(reduced_signed(centred, ring.primes).transpose(1, 0, 2))
        total = ring.all.divided(ring.all.sum_products(np.stack(sealed), residues))
        return reply(self.public, total, one.encode(mask), prime, _noise(prime))


def _noise(prime: int) -> int:
    """Two products of an error below 22 and DEGREE coefficients of at most half a prime, divided by the last one."""
    noise = DEGREE * prime * (LARGEST_ERROR + 1) // lattice().primes[-1] + 1 + ROUNDING
    flood_bits(prime, noise)
    return noise


def _high_words(bits: int) -> tuple[Words, Words]:
    """Uniform numbers below 2^bits, at most 2^127."""
    low, high = random_words(DEGREE), random_words(DEGREE)
    if bits <= 64:
        return low >> np.uint64(64 - bits), 0 * high
    return low, high >> np.uint64(128 - bits)


def _mask_slots(prime: int, words: tuple[Words, ...], bits: int) -> Words:
    """Words of 64 bits from the lowest, and what makes all sums positive, modulo a prime."""
    total = np.full(DEGREE, (1 << bits - 1) % prime, dtype=np.uint64)
    for number, word in enumerate(words):
        total += multiplied(word % np.uint64(prime), 1 << 64 * number, prime)
    return total % np.uint64(prime)


def _joined(residues: list[Words], primes: list[int]) -> Words:
    """Numbers below the product of the primes, by their residues, modulo 2^64 (Garner's algorithm)."""
    digits: list[Words] = []
    total, weight = np.zeros(DEGREE, dtype=np.uint64), 1
    for number, (residue, prime) in enumerate(zip(residues, primes, strict=True)):
        rest, step = residue, 1
        for digit, earlier in zip(digits, primes[:number], strict=True):
            rest = (rest + np.uint64(prime) - multiplied(digit % np.uint64(prime), step, prime)) % np.uint64(prime)
            step = step * earlier % prime
        digits.append(multiplied(rest, pow(weight, -1, prime), prime))
        total = total + digits[-1] * np.uint64(weight % (1 << 64))
        weight *= prime
    return total


def _terms(numbers: Tensor) -> list[list[NDArray[np.int64]]]:
    """Of one or two terms, the blocks of each. Errors: HomomorphicError."""
    if numbers.dtype is not torch.int64 or numbers.dim() != 2 or len(numbers) not in (1, 2):
        raise HomomorphicError(f"numbers: {numbers.dtype} {list(numbers.shape)}; give int64 [1 or 2, count]")
    return [_blocks(term) for term in numbers]


def _blocks(x: Tensor) -> list[NDArray[np.int64]]:
    """DEGREE at a time, filled up with zeros."""
    flat = x.reshape(-1).numpy()
    padded = np.zeros(-(-len(flat) // DEGREE) * DEGREE, dtype=np.int64)
    padded[: len(flat)] = flat
    return list(padded.reshape(-1, DEGREE))
