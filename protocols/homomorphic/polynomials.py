"""Polynomials modulo X^N + 1 and primes, as C computes them (kernels/polynomials.c), exactly: no secret is made here.

A polynomial is known by its values at N points, the roots of X^N + 1 modulo a prime, in SEAL's order (that of a
Cooley-Tukey transform): `group` points from a multiple of `group` on, a power of two, have one X^group. Backwards they
are the points' inverses. All roots come from values of X^1, X^2, X^4 to X^(N / 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..kernels.library import call
from .residues import Words

_BLOCK = 8  # groups that are computed at once
_LIMB = 28  # bits in half a word
_LEAST_BITS, _MOST_BITS, _MOST_LESS = 48, 56, 1 << 24


@dataclass(frozen=True)
class MergeStep:
    """Tables of a merge (merging.py): X^h, s's places and its key, packed."""

    shift: Words
    turn: Words
    keys: Words


class Polynomials:
    """The tables of some primes. Errors: ValueError for primes that the kernels cannot reduce by.

    powers   values of X^(2^i), [primes, degree] each, for i from 0 on
    """

    def __init__(self, primes: Sequence[int], powers: Sequence[Words]) -> None:
        self.primes, self.degree = tuple(primes), 1 << len(powers)
        for prime in primes:
            bits = prime.bit_length()
            if not _LEAST_BITS <= bits <= _MOST_BITS or (1 << bits) - prime > _MOST_LESS:
                raise ValueError(f"prime {prime}: must be just below a power of two from 2^48 to 2^56")
        self._powers = list(powers)
        self._inverses = [values[:, ::-1] for values in powers]
        self._constants = np.stack([_constants(prime, self.degree) for prime in primes])
        self._steps = [(self._outer(values), self._inner(values, _BLOCK)) for values in (self._powers, self._inverses)]
        *last, divisor = primes
        inverses = np.array([pow(divisor, -1, prime) for prime in last], dtype=np.uint64)[:, None]
        self._by = np.stack([inverses, _quotients(inverses, last)], axis=-1)
        self._roots: dict[int, Words] = {}

    def first(self, count: int) -> Polynomials:
        """The same of the first primes."""
        return Polynomials(self.primes[:count], [values[:count] for values in self._powers])

    def values(self, coefficients: Words) -> Words:
        """Of polynomials [..., primes, degree], numbers below 4 primes; the same holds below."""
        return self._transform(coefficients, back=False)

    def coefficients(self, values: Words) -> Words:
        return self._transform(values, back=True)

    def _transform(self, x: Words, back: bool) -> Words:
        self._check(x)
        out, (outer, inner) = np.array(x, order="C"), self._steps[back]
        count, size = out.size // (len(self.primes) * self.degree), (len(self.primes), self.degree)
        call("transform", _at(out), count, *size, _at(outer), _at(inner), _at(self._constants), back)
        return out

    def divided(self, x: Words) -> Words:
        """Values [..., primes, degree], divided by the last prime and rounded: [..., primes - 1, degree]."""
        self._check(x)
        x, last = np.ascontiguousarray(x), len(self.primes) - 1
        out, scratch = (
            np.empty((*x.shape[:-2], last, self.degree), dtype=np.uint64),
            np.empty((2, self.degree), dtype=np.uint64),
        )
        count, size = out.size // (last * self.degree), (len(self.primes), self.degree)
        roots = [_at(part) for steps in self._steps for part in steps]
        call(
            "divide_by_last", _at(x), count, *size, *roots, _at(self._constants), _at(self._by), _at(scratch), _at(out)
        )
        return out

    def sum_products(self, x: Words, factors: Words) -> Words:
        """The sum over terms of polynomials [terms, parts, primes, degree] times factors [terms, primes, degree], all
        values."""
        self._check(x, factors)
        if x.ndim != 4 or factors.shape != (len(x), *x.shape[2:]):
            raise ValueError(f"factors {factors.shape} do not fit {x.shape}")
        x, factors = np.ascontiguousarray(x), np.ascontiguousarray(factors)
        out = np.empty(x.shape[1:], dtype=np.uint64)
        call("sum_pairs", _at(x), _at(factors), *x.shape, _at(self._constants), _at(out))
        return out

    def monomial(self, power: int) -> Words:
        """Values of X^power [primes, degree]; power below twice the degree, X^degree being -1."""
        coefficients = np.zeros((len(self.primes), self.degree), dtype=np.uint64)
        negative = np.array(self.primes, dtype=np.uint64) - np.uint64(1)
        coefficients[:, power % self.degree] = 1 if power < self.degree else negative
        return self.values(coefficients)

    def turn(self, element: int) -> NDArray[np.intp]:
        """Places of values: those of f(X^element) are f's at these, whatever the prime; element odd."""
        points, targets = self._powers[0][0], self.monomial(element)[0]
        order = np.argsort(points)
        return order[np.searchsorted(points[order], targets)]

    def merged(self, x: Words, y: Words, step: MergeStep) -> Words:
        """x + X^h y + s(x - X^h y) of pairs of polynomials modulo all primes but the last, values [2, primes - 1,
        degree], s's second part being replaced by what `step` has as its key."""
        primes, degree = len(self.primes), self.degree
        if x.shape != y.shape or x.shape != (2, primes - 1, degree):
            raise ValueError(f"{x.shape} and {y.shape}: not two pairs of {primes - 1} primes")
        x, y, out = np.ascontiguousarray(x), np.ascontiguousarray(y), np.empty_like(x, order="C")
        scratch = np.empty((5 * primes, degree), dtype=np.uint64)
        numbers = [_at(part) for part in (x, y, step.shift, step.turn, step.keys)]
        tables = [_at(part) for steps in self._steps for part in steps] + [_at(self._constants), _at(self._by)]
        call("merge_pair", *numbers, primes, degree, *tables, _at(scratch), _at(out))
        return out

    def merge_step(self, half: int, keys: Words) -> MergeStep:
        """h = `half`, s: X -> X^(1 + degree / h). keys: values [primes - 1, 2, primes, degree]."""
        if keys.shape != (len(self.primes) - 1, 2, len(self.primes), self.degree):
            raise ValueError(f"keys {keys.shape}: not a pair for each prime but the last")
        turn = self.turn(1 + self.degree // half).astype(np.uint64)
        return MergeStep(_limbs(self.monomial(half)[:-1]), turn, np.ascontiguousarray(_limbs(keys)))

    def _check(self, *arrays: Words) -> None:
        for x in arrays:
            if x.dtype != np.uint64 or x.shape[-2:] != (len(self.primes), self.degree):
                raise ValueError(f"{x.dtype} {x.shape}: not polynomials of {len(self.primes)} primes")

    def row_products(self, weights: Words, first: int, rows: Words) -> Words:
        """Sums over terms of pairs of polynomials, values [terms, 2, primes, degree] from number `first` on, times
        sum_r rows[prime, row, term, r] X^-r: values [rows, 2, primes, degree]. rows: below their primes."""
        self._check(weights)
        primes, count, terms, group = rows.shape
        if primes != len(self.primes) or weights.shape[1:-2] != (2,) or not 0 <= first <= len(weights) - terms:
            raise ValueError(f"rows {rows.shape} do not fit weights {weights.shape}")
        rows, weights = np.ascontiguousarray(rows), np.ascontiguousarray(weights)
        out = np.empty((count, 2, primes, self.degree), dtype=np.uint64)
        scratch = np.empty(3 * terms * group * _BLOCK, dtype=np.uint64)
        call(
            "row_products",
            _at(weights[first:]),
            _at(rows),
            *(count, terms, group),
            _at(self._inverse_roots(group)),
            _at(self._constants),
            *(primes, self.degree),
            _at(scratch),
            _at(out),
        )
        return out

    def _inverse_roots(self, group: int) -> Words:
        if group not in self._roots:
            self._roots[group] = self._inner(self._inverses, group)
        return self._roots[group]

    def _factors(self, powers: Sequence[Words], step: int) -> Words:
        """[primes, groups]. A step from groups of 2^(step + 1) points to halves of them multiplies by the value of
        X^(2^step) at the first one."""
        return powers[step][:, :: 2 << step]

    def _outer(self, powers: Sequence[Words]) -> Words:
        """Of a transform's first steps, down to groups of _BLOCK points: [primes, degree / _BLOCK - 1, 2]."""
        steps = range(len(powers) - 1, _BLOCK.bit_length() - 2, -1)
        factors = np.concatenate([self._factors(powers, step) for step in steps], axis=1)
        return np.stack([factors, _quotients(factors, self.primes)], axis=-1)

    def _inner(self, powers: Sequence[Words], group: int) -> Words:
        """Of the steps below groups of some points: [primes, blocks, group - 1, 2, _BLOCK]."""
        primes, blocks = len(self.primes), self.degree // group // _BLOCK
        factors = np.empty((primes, blocks * _BLOCK, group - 1), dtype=np.uint64)
        for step in range(group.bit_length() - 1):
            halves = group >> step + 1
            factors[:, :, halves - 1 : 2 * halves - 1] = self._factors(powers, step).reshape(primes, -1, halves)
        both = np.stack([factors, _quotients(factors, self.primes)], axis=3)
        return np.ascontiguousarray(both.reshape(primes, blocks, _BLOCK, group - 1, 2).transpose(0, 1, 3, 4, 2))


def _limbs(x: Words) -> Words:
    """Packed: of each half of a number a half of a word."""
    return (x & np.uint64((1 << _LIMB) - 1)) | (x >> np.uint64(_LIMB) << np.uint64(32))


def _at(x: Words) -> int:
    return x.ctypes.data


def _quotients(factors: Words, primes: Sequence[int]) -> Words:
    """floor(2^64 w / prime) of factors [primes, ...]."""
    rows = [[(w << 64) // prime for w in row.reshape(-1).tolist()] for row, prime in zip(factors, primes, strict=True)]
    return np.array(rows, dtype=np.uint64).reshape(factors.shape)


def _constants(prime: int, degree: int) -> Words:
    factors = [(1 << _LIMB) % prime, (1 << 2 * _LIMB) % prime, pow(degree, -1, prime)]
    return np.array([prime, *(x for w in factors for x in (w, (w << 64) // prime))], dtype=np.uint64)
