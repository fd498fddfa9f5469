"""Blunders in what is opened are found, and there is no false alarm."""

import math

import pytest
import torch
from blindformer.tests.uniformity import ALARM, difference, log_p_values, sample

TESTS = 20_000  # of a demonstration: an alarm must be so much clearer
ROWS, COLUMNS = 32, 384


def uniform(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=generator)


@pytest.mark.parametrize("width", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("n", [1, 40, 1000])
def test_p_values_are_never_too_small(n, width):
    """Of uniform numbers, at most a part t has a p-value of t: 2,000 openings, to within five standard deviations."""
    generator = torch.Generator().manual_seed(n)
    logs = torch.tensor(log_p_values([sample(uniform(generator, n), width) for _ in range(2000)]))
    for t in (0.5, 0.1, 0.01):
        share = float((logs <= math.log(t)).double().mean())
        assert share <= t + 5 * (t / len(logs)) ** 0.5


LEAKS = {  # what becomes of a mask [32, 384], given that of the last query
    "8 rows unmasked": lambda mask, old, rows: mask * (rows >= 8),
    "1 row unmasked": lambda mask, old, rows: mask * (rows >= 1),
    "the last mask": lambda mask, old, rows: old,
    "1 row of the last mask": lambda mask, old, rows: torch.where(rows >= 1, mask, old),
    "32 bits of 64": lambda mask, old, rows: mask & 0xFFFFFFFF,
    "39 bits of 40": lambda mask, old, rows: mask & ((1 << 39) - 1),
    "16 masks for all": lambda mask, old, rows: mask[0, mask & 15],
}


def watched(leak, seed: int) -> float:
    """The least logarithm of a p-value where one opening of two queries, of values of 20 bits at 5 bytes, leaks."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randint(-(1 << 19), 1 << 19, (ROWS, COLUMNS), generator=generator) for _ in range(2))
    old, mask = uniform(generator, ROWS, COLUMNS), uniform(generator, ROWS, COLUMNS)
    rows = torch.randperm(ROWS, generator=generator)[:, None]
    before, after = sample(first + old, 5), sample(second + leak(mask, old, rows), 5)
    return min(log_p_values([after, difference(after, before)]))


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_in_one_opening_is_found(leak):
    assert all(watched(LEAKS[leak], seed) < math.log(ALARM / TESTS) for seed in range(10))


def test_an_honest_opening_is_no_alarm():
    assert all(watched(lambda mask, old, rows: mask, seed) > math.log(ALARM) for seed in range(10))
