"""Polynomials modulo X^N + 1 and primes, as C computes them (kernels/polynomials.c), exactly: no secret is made here.

A polynomial is known by its values at N points, the roots of X^N + 1 modulo a prime, in SEAL's order (that of a
Cooley-Tukey transform): `group` points from a multiple of `group` on, a power of two, have one X^group. Backwards they
are the points' inverses. All roots come from values of X^1, X^2, X^4 to X^(N / 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.library import call
from .residues import Words

_BLOCK = 8  # groups that are computed at once
_LIMB = 28  # bits in half a word
_LEAST_BITS, _MOST_BITS, _MOST_LESS = 40, 56, 1 << 32


class Polynomials:
    """The tables of some primes. Errors: ValueError for primes that the kernels cannot reduce by.

    powers   values of X^(2^i), [primes, degree] each, for i from 0 on
    """

    def __init__(self, primes: Sequence[int], powers: Sequence[Words]) -> None:
        self.primes, self.degree = tuple(primes), 1 << len(powers)
        for prime in primes:
            bits = prime.bit_length()
            if not _LEAST_BITS <= bits <= _MOST_BITS or (1 << bits) - prime > _MOST_LESS:
                raise ValueError(f"prime {prime}: must be just below a power of two from 2^40 to 2^56")
        self._inverses = [values[:, ::-1] for values in powers]
        self._constants = np.stack([_constants(prime) for prime in primes])
        self._roots: dict[int, Words] = {}

    def packed(self, pairs: Sequence[Words], group: int) -> Words:
        """Pairs of polynomials, values [2, primes, degree] each, for row_products by as many coefficients."""
        blocks = self.degree // group // _BLOCK
        out = np.empty((len(self.primes), blocks, len(pairs), 2, group, _BLOCK), dtype=np.uint64)
        for number, pair in enumerate(pairs):
            limbs = (pair & np.uint64((1 << _LIMB) - 1)) | (pair >> np.uint64(_LIMB) << np.uint64(32))
            out[:, :, number] = limbs.reshape(2, -1, blocks, _BLOCK, group).transpose(1, 2, 0, 4, 3)
        return out

    def row_products(self, weights: Words, first: int, rows: Words) -> Words:
        """Sums over terms of pairs of polynomials, from number `first` of `packed` on, times
        sum_r rows[prime, row, term, r] X^-r: values [rows, 2, primes, degree]. rows: below their primes."""
        primes, count, terms, group = rows.shape
        shape = (len(self.primes), self.degree // group // _BLOCK, weights.shape[2], 2, group, _BLOCK)
        if primes != len(self.primes) or weights.shape != shape or not 0 <= first <= weights.shape[2] - terms:
            raise ValueError(f"rows {rows.shape} do not fit weights {weights.shape}")
        rows, weights = np.ascontiguousarray(rows), np.ascontiguousarray(weights)
        out = np.empty((count, 2, primes, self.degree), dtype=np.uint64)
        scratch = np.empty(terms * group * _BLOCK, dtype=np.uint64)
        call(
            "row_products",
            weights[0, 0, first:].ctypes.data,
            weights.shape[2],
            rows.ctypes.data,
            count,
            terms,
            group,
            self._inverse_roots(group).ctypes.data,
            self._constants.ctypes.data,
            primes,
            self.degree,
            scratch.ctypes.data,
            out.ctypes.data,
        )
        return out

    def _inverse_roots(self, group: int) -> Words:
        """Of the last steps of a transform at the points' inverses, [primes, blocks, group - 1, 2, _BLOCK]."""
        if group not in self._roots:
            self._roots[group] = self._in_blocks(self._inverses, group)
        return self._roots[group]

    def _in_blocks(self, powers: Sequence[Words], group: int) -> Words:
        """A step from groups of n points to halves of them multiplies by the value of X^(n / 2) at the first one."""
        blocks = self.degree // group // _BLOCK
        steps = [np.empty((len(self.primes), blocks * _BLOCK, 0), dtype=np.uint64)]
        for step in range(group.bit_length() - 2, -1, -1):
            steps.append(powers[step][:, :: 2 << step].reshape(len(self.primes), -1, group >> step + 1))
        factors = np.concatenate(steps, axis=2)
        both = np.stack([factors, _quotients(factors, self.primes)], axis=3)
        return np.ascontiguousarray(both.reshape(len(both), blocks, _BLOCK, group - 1, 2).transpose(0, 1, 3, 4, 2))


def _quotients(factors: Words, primes: Sequence[int]) -> Words:
    """floor(2^64 w / prime) of factors [primes, ...]."""
    rows = [[(w << 64) // prime for w in row.reshape(-1).tolist()] for row, prime in zip(factors, primes, strict=True)]
    return np.array(rows, dtype=np.uint64).reshape(factors.shape)


def _constants(prime: int) -> Words:
    factors = [(1 << _LIMB) % prime, (1 << 2 * _LIMB) % prime]
    return np.array([prime, *(x for w in factors for x in (w, (w << 64) // prime))], dtype=np.uint64)
