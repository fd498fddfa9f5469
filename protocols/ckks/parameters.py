"""Which ring and which primes: from the levels that a program needs, at 128-bit security or not at all.

N is the degree, N / 2 the slots. The modulus is one prime for the last level (the scale, and room for the answer), a
prime of the scale's size for every level, and one for key switching. Its bits are bounded by N: the table of the
HomomorphicEncryption.org standard for a ternary secret and 128 bits, which SEAL checks again.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BlindformerError

MOST_BITS = {4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Bits of the whole modulus at 128-bit security, by N."""

LEAST_SCALE, MOST_SCALE = 30, 48
"""Bits of a scale. A rescale leaves an error of about N / 4 units, so 30 bits keep 16 fractional ones at N = 32768.
The more there are, the better does a reply's own noise drown that of the computation (computing.py). With `ROOM`, 48
make 60, SEAL's most of a prime."""

ROOM = 12
"""Bits of the last prime beyond the scale: an answer may be up to 2^11."""

DEVIATION = 2.0**-13
"""Of the noise in a reply's slots, absolute, which hides weights (computing.py): an answer keeps 12 fractional bits."""


class CkksError(BlindformerError):
    """A program, a key or a ciphertext that this protocol cannot use."""


class TooDeep(CkksError):
    """A program with more levels than the largest ring holds at 128 bits."""


@dataclass(frozen=True)
class Parameters:
    """A ring degree, the bits of a scale, and how many levels there are. `secure`: held to the 128-bit table."""

    degree: int
    scale_bits: int
    levels: int
    secure: bool = True

    def __post_init__(self) -> None:
        if self.degree & (self.degree - 1) or self.degree < 1024:
            raise CkksError(f"ring degree {self.degree}: give a power of two, 4096 to 32768")
        if not 20 <= self.scale_bits <= 48 or self.levels < 1:
            raise CkksError(f"a scale of {self.scale_bits} bits and {self.levels} levels: give 20 to 48, and 1 or more")
        most = MOST_BITS.get(self.degree, 0)
        if self.secure and sum(self.prime_bits) > most:
            raise CkksError(
                f"N = {self.degree}, {sum(self.prime_bits)} bits: below 128-bit security, which allows {most}; "
                "use a larger ring or fewer levels"
            )

    @property
    def slots(self) -> int:
        return self.degree // 2

    @property
    def prime_bits(self) -> list[int]:
        """Bits of the primes: the last level's, one for each level, the one for key switching."""
        return [self.scale_bits + ROOM, *[self.scale_bits] * self.levels, self.scale_bits + ROOM]

    @property
    def scale(self) -> float:
        return 2.0**self.scale_bits

    def element(self, steps: int) -> int:
        """The Galois element of a rotation to the left."""
        return pow(3, steps % self.slots, 2 * self.degree)


def most_levels(degree: int) -> int:
    """The levels that a ring of this degree holds at 128 bits, at the least scale."""
    return max(0, (MOST_BITS[degree] - 2 * (LEAST_SCALE + ROOM)) // LEAST_SCALE)


def parameters_for(degree: int, levels: int) -> Parameters | None:
    """The parameters with the largest scale for so many levels in this ring; None if they do not fit at 128 bits."""
    scale = min(MOST_SCALE, (MOST_BITS[degree] - 2 * ROOM) // (levels + 2))
    return Parameters(degree, scale, levels) if scale >= LEAST_SCALE else None


def insecure_parameters(degree: int, levels: int, scale_bits: int = 40) -> Parameters:
    """FOR TESTS ALONE: a small ring, in which ciphertexts protect nothing."""
    return Parameters(degree, scale_bits, levels, secure=False)
