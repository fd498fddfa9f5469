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

from .polynomials import Polynomials
from .residues import Words


class Merging:
    """`ring`: of all primes, of which ciphertexts have all but the last.

    keys   from h = 1 on, doubling: values [primes - 1, 2, primes, degree]
    """

    def __init__(self, ring: Polynomials, keys: Sequence[Words]) -> None:
        self._ring = ring
        self._steps = [ring.merge_step(1 << level, key) for level, key in enumerate(keys)]
        self._moduli = np.array(ring.primes[:-1], dtype=np.uint64)[:, None]

    def merged(self, parts: Sequence[Words]) -> Words:
        """One ciphertext, values [2, primes - 1, degree], of some: the results of number j at j, times the least power
        of two that is not below their count."""
        level = (len(parts) - 1).bit_length() - 1
        if level < 0:
            return parts[0]
        left, right = parts[: 1 << level], parts[1 << level :]
        pairs = [self._ring.merged(x, y, self._steps[level]) for x, y in zip(left, right, strict=False)]
        return self.merged([*pairs, *(2 * x % self._moduli for x in left[len(right) :])])
