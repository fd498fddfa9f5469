"""Rescale and comparison over the whole range they promise, on as many random values as would show a rare failure."""

import pytest
import torch
from blindformer.protocols.ring import sign_extend
from blindformer.tests.protocols.harness import run_primitive

CHUNK = 1 << 20


def magnitudes(count: int, top: int, seed: int) -> torch.Tensor:
    """Integers with |z| < 2^top: a half uniform, a half uniform in the logarithm of their size."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(1 - (1 << top), 1 << top, (count,), generator=generator)
    lower = torch.randint(0, top, (count // 2,), generator=generator)
    whole[: count // 2] >>= lower
    return whole


def wrong_of(z: torch.Tensor, result: torch.Tensor, bits: int) -> torch.Tensor:
    """Where the result is neither the floor nor the ceiling of z / 2^bits."""
    floor = z >> bits
    above = result - floor
    return (above != 0) & ((above != 1) | (floor << bits == z))


def rescaled(chunks: int, top: int, ring: int) -> tuple[int, float]:
    """(wrong elements, sum of errors in units over the square root of the count) of random rescales."""
    wrong, total, count = 0, 0.0, 0
    for number in range(chunks):
        z = magnitudes(CHUNK, top, number)
        bits = 1 + number % (ring - 9)
        result = run_primitive("rescale", z, 64, bits=bits, ring=ring)
        wrong += int(wrong_of(z, result, bits).sum())
        floor = z >> bits
        total += float((result - floor).double().sum() - (z - (floor << bits)).double().sum() * 2.0**-bits)
        count += CHUNK
    return wrong, total / count**0.5


@pytest.mark.parametrize(("ring", "chunks"), [(64, 30), (48, 12), (32, 12), (24, 12)])
def test_rescale_is_never_off_by_more_than_one_unit_and_not_biased(ring, chunks):
    """Of up to thirty million elements none. The mean error has standard deviation below 0.5 / sqrt(n)."""
    wrong, drift = rescaled(chunks, ring - 2, ring)
    assert wrong == 0
    assert abs(drift) < 5 * 0.5


def test_rescale_to_fewer_bits_keeps_those():
    z = magnitudes(CHUNK, 46, 0)
    result = run_primitive("rescale", z, 24, bits=16, ring=48)
    assert not bool(wrong_of(z, (z >> 16) + sign_extend(result - (z >> 16), 24), 16).any())


def test_a_rescale_by_local_truncation_would_be_caught():
    """The check has teeth: dividing each share locally fails now and then by an error of 2^(64 - bits)."""
    z = magnitudes(CHUNK, 62, 1)
    share = torch.randint(-(1 << 63), (1 << 63) - 1, z.shape, generator=torch.Generator().manual_seed(2))
    result = (share >> 16) + ((z - share) >> 16)
    assert int(wrong_of(z, result, 16).sum()) > 1000


def edges(threshold: int, bits: int) -> torch.Tensor:
    """Everything near the threshold, near both ends of the allowed range, and near powers of two."""
    reach = (1 << (bits - 1)) - 1
    near = set(range(-8, 9)) | {reach - i for i in range(8)} | {i - reach for i in range(8)}
    near |= {sign * ((1 << k) + j) for k in range(bits - 1) for j in (-1, 0, 1) for sign in (1, -1)}
    return threshold + torch.tensor(sorted(d for d in near if abs(d) <= reach))


@pytest.mark.parametrize("bits", range(5, 50))
def test_comparison_is_exact_at_the_edges(bits):
    for threshold in (0, 1, -1, 12345, -(1 << 40), (1 << 44) + 1):
        x = edges(threshold, bits).repeat(8)
        result = run_primitive("less", x, threshold=threshold, bits=bits)
        assert torch.equal(result, (x < threshold).long())


def compared(count: int, each: int) -> int:
    """Wrong answers among `count` random comparisons, chunks of `each`, bits from 5 to 49."""
    wrong = 0
    for number in range(count // each):
        bits = 5 + number % 45
        threshold = int(magnitudes(2, 45, 1000 + number)[0])
        x = threshold + magnitudes(each, bits - 1, number)
        result = run_primitive("less", x, threshold=threshold, bits=bits)
        wrong += int((result != (x < threshold)).sum())
    return wrong


def test_comparison_of_ten_million_values():
    assert compared(10_080_000, 112_000) == 0
