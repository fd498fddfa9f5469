"""Delegated layers: exact products at every level, bounds of rounding, and lies that the check finds."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.delegated.arithmetic import (
    _quantised,
    check_vectors,
    holds,
    linear32,
    open_rows,
    pack_ring,
    quantise_rows,
    unpack_ring,
)
from blindformer.tests import levels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

ROWS = (1, 2, 3, 7, 8, 31, 128)
NARROW = (torch.int8, torch.int16)
EDGES = [0.0, -0.0, 1e-45, -1e-38, 1.0, 3e19, -3e38, 3.4028234663852886e38, math.inf, math.nan]


def uniform(*shape: int, dtype: torch.dtype) -> Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, shape, dtype=dtype)


def lowest(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.iinfo(dtype).min, dtype=dtype)


def highest(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.iinfo(dtype).max, dtype=dtype)


def product(x: Tensor, weight: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy().astype(np.int64) @ weight.numpy().astype(np.int64).T).to(torch.int32)


@pytest.mark.parametrize("level", levels.EVERY)
@given(data=st.data())
@settings(max_examples=60)
def test_a_product_is_exact_modulo_2_to_the_32(level: str, data: st.DataObject) -> None:
    rows, dtype = data.draw(st.sampled_from(ROWS)), data.draw(st.sampled_from(NARROW))
    inner = data.draw(st.one_of(st.integers(1, 140), st.sampled_from([1535, 1536, 1537, 3105, 5000])))
    outputs = data.draw(st.integers(1, 40))
    values = data.draw(st.tuples(*[st.sampled_from([uniform, lowest, highest])] * 2))
    x, weight = values[0](rows, inner, dtype=torch.int32), values[1](outputs, inner, dtype=dtype)
    with levels.at(level):
        assert torch.equal(linear32(x, weight), product(x, weight))


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("dtype", NARROW)
def test_weights_of_several_blocks(level: str, dtype: torch.dtype) -> None:
    x, weight = uniform(5, 1600, dtype=torch.int32), uniform(403, 1600, dtype=dtype)
    with levels.at(level):
        assert torch.equal(linear32(x, weight), product(x, weight))


NUMBERS = st.one_of(st.sampled_from(EDGES), st.floats(width=32), st.floats(-1, 1, width=32))


@pytest.mark.parametrize("level", levels.EVERY)
@given(
    rows=st.integers(1, 20).flatmap(
        lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    square=st.one_of(st.integers(0, 9), st.integers(0, 1 << 46)),
    bits=st.sampled_from([24, 32]),
)
@settings(max_examples=150)
def test_no_product_with_rounded_rows_can_wrap(level: str, rows: list[list[float]], square: int, bits: int) -> None:
    x, norm = torch.tensor(rows, dtype=torch.float32), math.sqrt(square)
    if not holds(norm, x.shape[1], bits):
        with pytest.raises(AssertionError):
            quantise_rows(x, norm, bits)
        return
    with levels.at(level):
        q, step = quantise_rows(x, norm, bits)
    assert (q.dtype, step.dtype) == (torch.int32, torch.float64)
    for numbers, integers, one in zip(x.tolist(), q.tolist(), step.tolist(), strict=True):
        assert sum(n * n for n in integers) * max(square, 1) < 1 << 2 * bits - 2
        if not all(map(math.isfinite, numbers)):
            assert math.isnan(one)
            assert not any(integers)
        elif not any(numbers):
            assert one == 1.0
            assert not any(integers)
        else:
            for number, integer in zip(numbers, integers, strict=True):
                assert abs(Fraction(number) / Fraction(one) - integer) <= Fraction(1, 2) + Fraction(1, 1 << 20)


@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1.0, 1e30, 3e37])
def test_rounding_uses_nearly_the_whole_range(level: str, scale: float) -> None:
    x = torch.randn(9, 700).clamp(-9, 9) * scale
    with levels.at(level):
        for norm, bits in ((8191 * 27.0, 32), (1.0, 32), (127 * 27.0, 24)):
            q, _ = quantise_rows(x, norm, bits)
            used = q.double().norm(dim=-1) * norm / 2 ** (bits - 1)
            assert used.min() > 0.93
            assert used.max() < 1


@pytest.mark.parametrize("level", levels.EVERY)
def test_coarse_integers_grow_their_step_until_they_hold(level: str) -> None:
    """Numbers that all round up: the first step gives squares that are too many."""
    x = torch.full((3, 10000), 1.0)
    x[1], x[2, 0] = 0.7, 1.8
    with levels.at(level):
        q, step = _quantised(x, 10000 - 1, 0.98 * math.sqrt(10000 - 1))
    assert (q.square().sum(-1) < 10000).all()
    assert (step > 1).any()


def rows_that_hold(y: Tensor, rho: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """By row, of products without the dealer's s."""
    step, scale = torch.ones(len(y), dtype=torch.float64), torch.ones(y.shape[1])
    return open_rows(y, torch.zeros_like(y), q, rho, u, step, scale, 32, torch.empty(y.shape))


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("dtype", NARROW)
def test_true_rows_hold_and_a_lie_in_one_element_is_found(level: str, dtype: torch.dtype) -> None:
    weight, q = uniform(50, 70, dtype=dtype), torch.randint(-300, 300, (4, 70), dtype=torch.int32)
    edges = torch.tensor([1, -1, -(1 << 31), 1 << 30], dtype=torch.int32)  # -2^31 is 2^31, too
    with levels.at(level):
        y = linear32(q, weight)
        for _ in range(300):
            rho = uniform(2, 50, dtype=torch.int64)
            u = check_vectors(weight, rho)
            assert rows_that_hold(y, rho, q, u).all()
            lie, (row, other), place = y.clone(), torch.randperm(4)[:2].tolist(), int(torch.randint(50, ()))
            lie[row, place] += edges[torch.randint(4, ())]
            wrong = {row}
            if torch.rand(()) < 0.5:  # what cancels in a sum of rows
                lie[other] -= lie[row] - y[row]
                wrong.add(other)
            assert rows_that_hold(lie, rho, q, u).tolist() == [n not in wrong for n in range(4)]


def test_the_check_is_of_signed_numbers_modulo_2_to_the_64() -> None:
    weight, rho = uniform(9, 7, dtype=torch.int16), uniform(2, 9, dtype=torch.int64)
    u = check_vectors(weight, rho)
    want = rho.numpy().astype(object) @ weight.numpy().astype(object)
    assert [[int(n) % 2**64 for n in row] for row in want] == [[n % 2**64 for n in row] for row in u.tolist()]


@pytest.mark.parametrize("ring", RINGS.values())
@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
def test_an_answer_is_the_layers(level: str, ring: int) -> None:
    linear = torch.nn.Linear(96, 40, bias=False).requires_grad_(False)
    scale = linear.weight.abs().amax(1) / (8191 >> (32 - ring) // 2)
    weight, x = (linear.weight / scale[:, None]).round().to(torch.int16), torch.randn(5, 96)
    x[3, 2], x[4], s, rho = math.nan, 0, uniform(5, 40, dtype=torch.int32), uniform(2, 40, dtype=torch.int64)
    with levels.at(level):
        q, step = quantise_rows(x, float(weight.double().norm(dim=1).max()), ring)
        sent = unpack_ring(bytearray(pack_ring(linear32(q, weight) - s, ring)), (5, 40), ring)
        answer = torch.empty(5, 40)
        assert open_rows(sent, s, q, rho, check_vectors(weight, rho), step, scale, ring, answer).all()
    torch.testing.assert_close(answer[:3], linear(x[:3]), rtol=1e-3, atol={32: 1e-3, 24: 1e-2}[ring])
    assert answer[3].isnan().all()
    assert not answer[4].any()
