"""Ciphertexts whose results are far apart become one: PackLWEs (Chen, Dai, Kim and Song, ACNS 2021).

Of 2^k ciphertexts, each with results at multiples of 2^k and numbers that belong to nobody beside them, number j's
results go to j beside those multiples, doubled k times. Two become one for h = 2^(k - 1), 2^(k - 2) to 1 by

    (x + X^h y) + s(x - X^h y)        s: X -> X^(1 + N / h), N the degree

s keeps X^j for multiples j of 2 h and negates it for other multiples of h: so it doubles the results and cancels what
stood at odd multiples of h. s(c) is under the key s(secret), of which the key's holder publishes an encryption (a key
of lattice.py's `public`), by which the one who merges switches back. Where there is no y, x is doubled alone: what
stays at odd multiples of h is nobody's result.

Who learns what: nothing. All is computed on ciphertexts, with public keys. Noise: a key switch each, doubled later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .polynomials import Polynomials, limbs
from .residues import Words


class Merging:
    """Keys and tables. `ring`: of all primes; `data`: of all but the last, which the ciphertexts have.

    keys   from h = 1 on, doubling: values [data primes, 2, primes, degree]
    """

    def __init__(self, ring: Polynomials, data: Polynomials, keys: Sequence[Words]) -> None:
        self._ring, self._data = ring, data
        self._keys = [limbs(key) for key in keys]
        self._moduli = np.array(self._data.primes, dtype=np.uint64)[:, None]

    def merged(self, parts: Sequence[Words]) -> Words:
        """One ciphertext, values [2, data primes, degree], of some: the results of number j at j, times the least power
        of two that is not below their count."""
        level = (len(parts) - 1).bit_length() - 1
        if level < 0:
            return parts[0]
        half = 1 << level
        left, right = parts[:half], parts[half:]
        pairs = [self._pair(x, y, level) for x, y in zip(left, right, strict=False)]
        return self.merged([*pairs, *(self._reduced(x + x) for x in left[len(right) :])])

    def _pair(self, x: Words, y: Words, level: int) -> Words:
        moved = self._data.sum_products(y[None], self._data.monomial(1 << level)[None])
        turned = self._reduced(x + self._moduli - moved)[:, :, self._data.turn(1 + (self._data.degree >> level))]
        total = x + moved + self._ring.divided(self._ring.digit_products(turned[1], self._keys[level]))
        total[0] += turned[0]
        return total % self._moduli

    def _reduced(self, x: Words) -> Words:
        """Of numbers below two primes: a number that is below one becomes a large word."""
        return np.minimum(x, x - self._moduli)
