"""Shares of sums of products, elementwise, of one party's integers by the other's.

    Alice -> Bob    her numbers x and y, encrypted under her key
    Bob -> Alice    x x' + y y' + 2^(bits - 1) - u, encrypted, flooded (replies.py); with more numbers of his, more sums
    shares          Alice: v, what she decrypts      Bob: u, uniform modulo T

One term, or two: both cross terms of a product of shared numbers.

Values are slots of polynomials modulo primes (SEAL's BatchEncoder), of which T is the product. Both know `bits`, from 2
to 128, such that a sum z is at most 2^(bits - 1) either way: what their numbers may be, not what they are. T is above
2^(bits + 1), so u + v wraps exactly unless both are below T / 2, as z + 2^(bits - 1) is:

    z = u + v - 2^(bits - 1) - T + T [u < T / 2] [v < T / 2]

The last is a product of a bit of Alice's by a number of Bob's, which they share otherwise: by a transfer.

Who learns what. *Bob* sees ciphertexts: nothing, if ring-LWE is hard. *Alice* sees v, uniform because u is, and noise
that she could have drawn herself. Neither checks that the other computes what it should (semi-honest).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache
from math import prod
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
    SEED_BYTES,
    HomomorphicError,
    LatticeKey,
    LatticePublic,
    lattice,
    unsealed,
)
from .replies import ROUNDING, flood_bits, opened, reply, reply_bytes
from .residues import Words, multiplied, reduced_signed, scaled, uniform

_LEAST_PRIME_BITS, _MOST_PRIME_BITS = 30, 57


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
    """The primes whose product is T."""
    count = -(-(bits + 2) // _MOST_PRIME_BITS)
    out = _slots(count, max(-(-(bits + 2) // count), _LEAST_PRIME_BITS))
    if prod(one.prime for one in out) <= 2 << bits:
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


def product_cost(count: int, terms: int = 2, bits: int = 128, outputs: int = 1) -> tuple[int, int]:
    """Bytes of a request and of a reply for so many sums of one or two terms, `outputs` of each of Alice's numbers."""
    full = -(-count // DEGREE)
    return (
        full * len(slots(bits)) * terms * CIPHERTEXT_BYTES,
        full * outputs * sum(reply_bytes(one.prime, DEGREE) for one in slots(bits)),
    )


class ProductAlice:
    """The party with the key. One request serves any number of replies."""

    def __init__(self, key: LatticeKey, bits: int = 128) -> None:
        self.key, self.bits, self.slots = key, bits, slots(bits)

    def request(self, numbers: Tensor) -> bytes:
        """Her numbers, int64 [terms, count], encrypted: the first number of product_cost."""
        terms, ring, parts = _terms(numbers), lattice(), []
        for block in zip(*terms, strict=True):
            for one in self.slots:
                for values in block:
                    message = one.encode(reduced_signed(values, [one.prime])[0])
                    parts.append(self.key.encrypted(scaled(message, one.prime, ring.primes)))
        return b"".join(parts)

    def share(self, data: Buffer, count: int, outputs: int = 1) -> Tensor:
        """v - 2^(bits - 1) - T of so many sums, and whether v is below half of T: int64 [2, outputs, count]. Errors:
        HomomorphicError."""
        primes, full, view, at = [one.prime for one in self.slots], -(-count // DEGREE), memoryview(data), 0
        expected = product_cost(count, 1, self.bits, outputs)[1]
        if len(data) != expected:
            raise HomomorphicError(f"reply: {len(data)} bytes instead of {expected}; both need one program")
        residues = np.empty((len(primes), outputs, full, DEGREE), dtype=np.uint64)
        for block in range(full):
            for number, one in enumerate(self.slots):
                size = reply_bytes(one.prime, DEGREE)
                for output in range(outputs):
                    residues[number, output, block] = one.decode(opened(self.key, view[at : at + size], one.prime))
                    at += size
        values, below = _joined(residues, primes)
        values -= np.uint64((prod(primes) + (1 << self.bits - 1)) % (1 << 64))
        return _rows(values, below, count)


class ProductBob:
    """The party that replies, with the other's public key."""

    def __init__(self, public: LatticePublic, bits: int = 128) -> None:
        self.public, self.bits = public, bits

    def reply(self, request: Buffer, numbers: Tensor) -> tuple[bytes, Tensor]:
        """The second number of product_cost, for his numbers [outputs, terms, count]; and u of the sums, and T where u
        is below half of it: int64 [2, outputs, count]. Errors: HomomorphicError."""
        factors = [_terms(of) for of in numbers]
        (outputs, terms, count), primes = numbers.shape, [one.prime for one in slots(self.bits)]
        expected = product_cost(count, terms, self.bits)[0]
        if len(request) != expected:
            raise HomomorphicError(f"request: {len(request)} bytes instead of {expected}; both need one program")
        blocks, parts, at = len(factors[0][0]), [], 0
        drawn = uniform(secrets.token_bytes(SEED_BYTES), "u", primes, outputs * blocks * DEGREE)
        residues = drawn.reshape(len(primes), outputs, blocks, DEGREE)
        for block in range(blocks):
            for one, masks in zip(slots(self.bits), residues[:, :, block], strict=True):
                sealed = unsealed(request, at, terms, "request")
                at += terms
                added = ((1 << self.bits - 1) % one.prime + one.prime - masks) % np.uint64(one.prime)
                for of, mask in zip(factors, added, strict=True):
                    parts.append(self._reply(one, sealed, [term[block] for term in of], mask))
        values, below = _joined(residues, primes)
        return b"".join(parts), _rows(values, below * np.uint64(prod(primes) % (1 << 64)), count)

    def _reply(self, one: Slots, sealed: Words, factors: list[NDArray[np.int64]], mask: Words) -> bytes:
        """Ciphertexts times a factor each, and the mask's slots."""
        ring, prime = lattice(), one.prime
        coefficients = np.stack([one.encode(reduced_signed(x, [prime])[0]) for x in factors]).view(np.int64)
        centred = np.where(coefficients > prime // 2, coefficients - prime, coefficients)
        residues = ring.all.values(reduced_signed(centred, ring.primes).transpose(1, 0, 2))
        total = ring.all.divided(ring.all.sum_products(sealed, residues))
        return reply(self.public, total, one.encode(mask), prime, _noise(prime))


def _noise(prime: int) -> int:
    """Two products of an error below 22 and DEGREE coefficients of at most half a prime, divided by the last one."""
    noise = DEGREE * prime * (LARGEST_ERROR + 1) // lattice().primes[-1] + 1 + ROUNDING
    flood_bits(prime, noise)
    return noise


def _joined(residues: Words, primes: list[int]) -> tuple[Words, Words]:
    """Numbers below the product of the primes, by their residues [primes, ...]: modulo 2^64, and whether they are below
    half of it (Garner's algorithm)."""
    digits: list[Words] = []
    total, below, half = (
        np.zeros(residues.shape[1:], dtype=np.uint64),
        np.zeros(residues.shape[1:], dtype=bool),
        prod(primes) // 2 + 1,
    )
    for number, (residue, prime) in enumerate(zip(residues, primes, strict=True)):
        rest, step = residue, 1
        for digit, earlier in zip(digits, primes[:number], strict=True):
            rest = (rest + np.uint64(prime) - multiplied(digit % np.uint64(prime), step, prime)) % np.uint64(prime)
            step = step * earlier % prime
        digits.append(multiplied(rest, pow(step, -1, prime), prime))
        total = total + digits[-1] * np.uint64(prod(primes[:number]) % (1 << 64))
        half, place = divmod(half, prime)
        below = (digits[-1] < place) | (digits[-1] == place) & below
    return total, below.astype(np.uint64)


def _rows(values: Words, bits: Words, count: int) -> Tensor:
    """Of two arrays [outputs, blocks, degree]: [2, outputs, count]."""
    return torch.from_numpy(np.stack([values, bits]).view(np.int64)).flatten(2)[..., :count]


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
