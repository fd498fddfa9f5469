"""Shares of a * b, elementwise modulo 2^(8 width), of additively shared values: both cross terms in one exchange.

    Alice -> Bob    her shares a0, b0, encrypted under her key
    Bob -> Alice    a0 b1 + b0 a1 + mask, encrypted, flooded (replies.py)
    shares          Alice: a0 b0 + what she decrypts      Bob: r, which he chose

Values are slots of polynomials modulo primes t (SEAL's BatchEncoder), so numbers are exact integers by their residues,
not modulo 2^64: the mask must hide them as integers. Shares are taken as signed, so the cross terms z are at most
2^(16 width - 1); the mask is uniform over 2^(16 width + 63) numbers but for its low bits, which r and Bob's own product
fix and which are uniform if r is. The sum z + mask stays below the product of the primes, and its statistical
distance from one that does not depend on z is 2^-64 a number at most: |z| of 2^(16 width + 63). The flood of all its
residues (replies.py) adds little to that.

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
    values_of,
)
from .replies import FLOOD_BITS, ROUNDING, flood_bits, opened, reply, reply_bytes
from .residues import Words, multiplied, reduced_signed, scaled

_MOST_PRIME_BITS = 56


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


@cache
def slots(width: int) -> tuple[Slots, ...]:
    """The primes whose product holds a product's cross terms and their mask."""
    bits = 16 * width + FLOOD_BITS
    count = -(-bits // _MOST_PRIME_BITS)
    seal, out = lattices.seal, []
    # Some of SEAL's primes may be the ciphertexts' own.
    primes = seal.PlainModulus.Batching(DEGREE, [-(-bits // count)] * (count + len(lattice().primes)))
    for prime in [prime for prime in primes if prime.value() not in lattice().primes][:count]:
        chosen = seal.EncryptionParameters(seal.scheme_type.bfv)
        chosen.set_poly_modulus_degree(DEGREE)
        chosen.set_coeff_modulus(seal.CoeffModulus.BFVDefault(DEGREE))
        chosen.set_plain_modulus(prime)
        context = seal.SEALContext(chosen, True, seal.sec_level_type.tc128)
        out.append(Slots(prime.value(), seal.BatchEncoder(context), context))
    total = 1
    for one in out:
        total *= one.prime
    if total < _shifted(width) * 2 + (1 << (16 * width - 1 + FLOOD_BITS)):
        raise HomomorphicError(f"products of {width} bytes: SEAL's primes are too small; install seal-python 4.4")
    return tuple(out)


def product_cost(count: int, width: int = 8) -> tuple[int, int]:
    """Bytes of a request and of a reply for so many products."""
    full = -(-count // DEGREE)
    return (
        full * len(slots(width)) * 2 * CIPHERTEXT_BYTES,
        full * sum(reply_bytes(one.prime, DEGREE) for one in slots(width)),
    )


class ProductAlice:
    """The party with the key. One object for one exchange."""

    def __init__(self, key: LatticeKey, width: int = 8) -> None:
        self.key, self.width = key, width
        self._own: Tensor | None = None

    def request(self, a: Tensor, b: Tensor) -> bytes:
        """Her shares, int64 of one shape, encrypted: the first number of product_cost."""
        left, right = _blocks(a, self.width), _blocks(b, self.width)
        if a.shape != b.shape:
            raise HomomorphicError(f"shares of shapes {list(a.shape)} and {list(b.shape)}: give equal ones")
        self._own, parts, ring = a * b, [], lattice()
        for pair in zip(left, right, strict=True):
            for one in slots(self.width):
                for values in pair:
                    message = one.encode(reduced_signed(values, [one.prime])[0])
                    parts.append(self.key.encrypted(scaled(message, one.prime, ring.primes)))
        return b"".join(parts)

    def share(self, data: bytes) -> Tensor:
        """Her share of the products, int64; bits above `width` bytes are 0. Errors: HomomorphicError."""
        if self._own is None:
            raise HomomorphicError("a reply without a request, or a second one; make a request for each")
        own, self._own, width = self._own, None, self.width
        expected = product_cost(own.numel(), width)[1]
        if len(data) != expected:
            raise HomomorphicError(f"reply: {len(data)} bytes instead of {expected}; both need one program")
        view, at, rows = memoryview(data), 0, []
        for _ in range(-(-own.numel() // DEGREE)):
            residues = []
            for one in slots(width):
                size = reply_bytes(one.prime, DEGREE)
                residues.append(one.decode(opened(self.key, view[at : at + size], one.prime)))
                at += size
            rows.append(_joined(residues, [one.prime for one in slots(width)]))
        crossed = np.concatenate(rows)[: own.numel()] if rows else np.zeros(0, dtype=np.uint64)
        return (own + torch.from_numpy(crossed.view(np.int64)).view(own.shape)) & _low_bits(width)


class ProductBob:
    """The party that replies, with the other's public key."""

    def __init__(self, public: LatticePublic, width: int = 8) -> None:
        self.public, self.width = public, width

    def reply(self, request: bytes, a: Tensor, b: Tensor, r: Tensor) -> bytes:
        """The second number of product_cost. His shares a, b, and his share r of the products, uniform and used once;
        int64 of one shape. Errors: HomomorphicError."""
        width, expected = self.width, product_cost(a.numel(), self.width)[0]
        if not a.shape == b.shape == r.shape:
            raise HomomorphicError(f"shares {list(a.shape)}, {list(b.shape)}, {list(r.shape)}: give equal shapes")
        if len(request) != expected:
            raise HomomorphicError(f"request: {len(request)} bytes instead of {expected}; both need one program")
        low = _blocks(a * b - r, 8)  # of the mask; the shift is 0 modulo 2^(8 width)
        parts, number, view = [], 0, memoryview(request)
        for left, right, fixed in zip(_blocks(a, width), _blocks(b, width), low, strict=True):
            high = random_words(DEGREE), random_words(DEGREE) >> np.uint64(64 - (8 * width - 1))
            words = fixed.view(np.uint64) & np.uint64((1 << 8 * width) - 1), *high
            for one in slots(width):
                sealed = [unsealed(view, number + i, "request") for i in range(2)]
                number += 2
                parts.append(self._reply(one, sealed, (right, left), _mask_slots(one.prime, words, width)))
        return b"".join(parts)

    def _reply(self, one: Slots, sealed: list[Words], factors: tuple[NDArray[np.int64], ...], mask: Words) -> bytes:
        """Two ciphertexts times a factor each, and the mask's slots."""
        ring, prime = lattice(), one.prime
        coefficients = np.stack([one.encode(reduced_signed(x, [prime])[0]) for x in factors]).view(np.int64)
        centred = np.where(coefficients > prime // 2, coefficients - prime, coefficients)
        pair = ring.transformed(reduced_signed(centred, ring.primes).transpose(1, 0, 2), ring.first)
        total = None
        for values, factor in zip(sealed, pair, strict=True):
            if not factor.any():
                continue
            term = ring.wide_evaluator.multiply_plain(
                ring.ciphertext(values, ring.first), ring.plaintext(factor, ring.first)
            )
            total = term if total is None else ring.wide_evaluator.add(total, term)
        if total is not None:
            ring.wide_evaluator.rescale_to_next_inplace(total)
            total = ring.ciphertext(values_of(total), ring.data)
        return reply(self.public, total, one.encode(mask), prime, _noise(prime))


def _noise(prime: int) -> int:
    """Two products of an error below 22 and DEGREE coefficients of at most half a prime, divided by the last one."""
    noise = DEGREE * prime * (LARGEST_ERROR + 1) // lattice().primes[-1] + 1 + ROUNDING
    flood_bits(prime, noise)
    return noise


def _shifted(width: int) -> int:
    """What makes cross terms positive: the most of their size."""
    return 1 << (16 * width - 1)


def _mask_slots(prime: int, words: tuple[Words, ...], width: int) -> Words:
    """low + 2^(8 width) (high + 2^64 higher) + the shift, modulo a prime."""
    total = np.full(DEGREE, _shifted(width) % prime, dtype=np.uint64)
    for word, factor in zip(words, (1, 1 << 8 * width, 1 << (8 * width + 64)), strict=True):
        total += multiplied(word % np.uint64(prime), factor, prime)
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


def _low_bits(width: int) -> int:
    return -1 if width == 8 else (1 << 8 * width) - 1


def _blocks(x: Tensor, width: int) -> list[NDArray[np.int64]]:
    """The low bytes as signed numbers, DEGREE at a time, filled up with zeros. Errors: HomomorphicError."""
    if x.dtype is not torch.int64:
        raise HomomorphicError(f"shares of {x.dtype}: give int64")
    shift = 64 - 8 * width
    flat = (x << shift >> shift).reshape(-1).numpy()
    padded = np.zeros(-(-len(flat) // DEGREE) * DEGREE, dtype=np.int64)
    padded[: len(flat)] = flat
    return list(padded.reshape(-1, DEGREE))
