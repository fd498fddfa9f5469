"""Products of polynomials in C are those of integers, at every level and at the edges of words."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from blindformer.protocols.homomorphic.polynomials import Polynomials
from blindformer.protocols.homomorphic.residues import Words
from blindformer.tests import levels

# Of SEAL, and a small one: 1 modulo 2^14, so they have roots for degrees up to 8192.
PRIMES = ((1 << 50) - 0x33FFF, (1 << 56) - 0x87FFF, (1 << 48) - 0x3FFF)
KINDS = ("random", "largest", "edges")


def points(prime: int, degree: int) -> list[int]:
    """The roots of X^degree + 1, in the order of a Cooley-Tukey transform."""
    base = next(x for x in range(2, 99) if pow(x, (prime - 1) // 2, prime) == prime - 1)
    root, bits = pow(base, (prime - 1) // (2 * degree), prime), degree.bit_length() - 1
    return [pow(root, 2 * int(f"{j:0{bits}b}"[::-1], 2) + 1, prime) for j in range(degree)]


@cache
def polynomials(degree: int) -> tuple[Polynomials, list[list[int]]]:
    roots = [points(prime, degree) for prime in PRIMES]
    steps = range(degree.bit_length() - 1)
    powers = [
        np.array([[pow(x, 1 << step, q) for x in row] for row, q in zip(roots, PRIMES, strict=True)], dtype=np.uint64)
        for step in steps
    ]
    return Polynomials(PRIMES, powers), roots


def value_at(x: int, coefficients: list[int], prime: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def residues(kind: str, *shape: int) -> Words:
    """Numbers [..., primes, last] below each prime."""
    *front, last = shape
    generator, rows = np.random.default_rng(7), []
    for prime in PRIMES:
        row = generator.integers(0, prime, (*front, last), dtype=np.uint64)
        if kind == "largest":
            row[:] = prime - 1
        if kind == "edges":
            row = generator.choice(np.array([0, 1, (1 << 28) - 1, 1 << 28, prime - 1], dtype=np.uint64), row.shape)
        rows.append(row)
    return np.stack(rows, axis=-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("group", "terms"), [(1, 1), (1, 200), (2, 64), (4, 3), (16, 65), (128, 2)])
@pytest.mark.parametrize("level", levels.KERNELS)
def test_rows_times_weights(level, group, terms, kind):
    degree = 8 * group if group > 4 else 64
    ring, roots = polynomials(degree)
    weights = residues(kind, terms + 1, 2, degree)  # [terms, 2, primes, degree]
    rows = residues(kind, terms, 2, group).transpose(2, 1, 0, 3)  # [primes, rows, terms, group]
    with levels.at(level):
        products = ring.row_products(weights, 1, rows)
    assert products.shape == (2, 2, len(PRIMES), degree)
    for number, prime in enumerate(PRIMES):
        factors = [pow(x, -1, prime) for x in roots[number]]
        for row in range(2):
            values = [[value_at(x, term, prime) for x in factors] for term in rows[number, row].tolist()]
            for part in range(2):
                lines = zip(*weights[1:, part, number].tolist(), strict=True)
                columns = zip(*values, strict=True)
                sums = [sum(map(int.__mul__, v, w)) % prime for v, w in zip(columns, lines, strict=True)]
                assert sums == products[row, part, number].tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("degree", [64, 128])
@pytest.mark.parametrize("level", levels.KERNELS)
def test_values_and_back(level, degree, kind):
    ring, roots = polynomials(degree)
    x = residues(kind, 2, degree)
    with levels.at(level):
        values = ring.values(x)
        assert np.array_equal(ring.coefficients(values), x)
        multiples = x + np.array(PRIMES, dtype=np.uint64)[:, None] * np.uint64(3)  # also below 4 primes
        assert np.array_equal(ring.values(multiples), values)
        assert np.array_equal(ring.coefficients(ring.values(x) + multiples - x), x)
    for number, prime in enumerate(PRIMES):
        for polynomial, line in zip(x[:, number].tolist(), values[:, number].tolist(), strict=True):
            assert line == [value_at(root, polynomial, prime) for root in roots[number]]


@pytest.mark.parametrize("level", levels.KERNELS)
def test_division_by_the_last_prime_rounds(level):
    ring, last = polynomials(64)[0], PRIMES[-1]
    product = PRIMES[0] * PRIMES[1] * last
    numbers = [0, 1, last // 2, last // 2 + 1, last, product // 2, product - last // 2 - 1, product - 1]
    numbers += [int(x) ** 3 % product for x in np.random.default_rng(3).integers(0, 1 << 62, 64 - len(numbers))]
    x = np.array([[[number % prime for number in numbers] for prime in PRIMES]], dtype=np.uint64)
    with levels.at(level):
        divided = ring.first(2).coefficients(ring.divided(ring.values(x)))
    expected = [[(number + last // 2) // last % prime for number in numbers] for prime in PRIMES[:2]]
    assert divided.tolist() == [expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", levels.KERNELS)
def test_sums_of_products(level, kind):
    ring, _ = polynomials(64)
    x, factors = residues(kind, 3, 2, 64), residues(kind, 3, 64)[:, :, ::-1]
    with levels.at(level):
        sums = ring.sum_products(x, factors)
    for number, prime in enumerate(PRIMES):
        exact = (x[:, :, number].astype(object) * factors[:, None, number].astype(object)).sum(axis=0) % prime
        assert sums[:, number].tolist() == exact.tolist()


def at_power(coefficients: Words, element: int, power: int = 0) -> Words:
    """X^power f(X^element), of f [..., primes, 64] modulo the first primes."""
    out = np.zeros_like(coefficients)
    for number, prime in enumerate(PRIMES[: coefficients.shape[-2]]):
        for place in range(64):
            to, row = element * place + power, coefficients[..., number, place]
            out[..., number, to % 64] = (prime - row) % prime if to // 64 % 2 else row
    return out


@pytest.mark.parametrize("element", [1, 3, 17, 65, 127])
def test_values_of_a_polynomial_at_a_power_are_its_values_elsewhere(element):
    ring, _ = polynomials(64)
    x = residues("random", 64)
    assert np.array_equal(ring.values(x)[:, ring.turn(element)], ring.values(at_power(x, element)))


@pytest.mark.parametrize("half", [1, 2, 16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", levels.KERNELS)
def test_two_ciphertexts_are_merged_by_a_key(level, kind, half):
    ring, _ = polynomials(64)
    data, primes = ring.first(2), np.array(PRIMES[:2], dtype=np.uint64)[:, None]
    x, y = residues(kind, 2, 64)[:, :2], residues("random", 2, 64)[:, :2]
    keys = residues("random", 2, 2, 64)
    moved = at_power(y, 1, half)
    turned = at_power((x + primes - moved) % primes, 1 + 64 // half)
    sums = np.zeros((2, len(PRIMES), 64), dtype=np.uint64)
    for number, prime in enumerate(PRIMES):
        for part in range(2):
            lifted = [ring.values(np.stack([row % np.uint64(q) for q in PRIMES]))[number] for row in turned[1]]
            factors = keys[:, part, number].astype(object)
            sums[part, number] = sum(lifted[digit].astype(object) * factors[digit] for digit in range(2)) % prime
    expected = data.values((x + moved) % primes) + ring.divided(sums)
    expected[0] += data.values(turned[0])
    with levels.at(level):
        merged = ring.merged(data.values(x), data.values(y), ring.merge_step(half, keys))
    assert np.array_equal(merged, expected % primes)


def test_what_the_kernels_cannot_compute_is_refused():
    ring, _ = polynomials(64)
    weights = residues("random", 2, 2, 64)
    rows = residues("random", 1, 1, 4).transpose(2, 1, 0, 3)
    with pytest.raises(ValueError, match="do not fit"):
        ring.row_products(weights, 2, rows)
    with pytest.raises(ValueError, match="do not fit"):
        ring.row_products(weights, 0, rows[:2])
    with pytest.raises(ValueError, match="do not fit"):
        ring.sum_products(residues("random", 3, 2, 64), residues("random", 2, 64))
    with pytest.raises(ValueError, match="for each prime but the last"):
        ring.merge_step(2, residues("random", 1, 2, 64))
    with pytest.raises(ValueError, match="two pairs"):
        ring.merged(
            residues("random", 2, 64), residues("random", 2, 64), ring.merge_step(2, residues("random", 2, 2, 64))
        )
    for wrong in (residues("random", 2, 32), residues("random", 2, 64)[:, :2]):
        with pytest.raises(ValueError, match="not polynomials"):
            ring.values(wrong)
    for prime in ((1 << 57) - 1, (1 << 47) - 1, (1 << 50) + 1):
        with pytest.raises(ValueError, match="just below"):
            Polynomials([prime], [])
