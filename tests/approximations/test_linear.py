"""Quantised weights: within half a unit, power-of-two scales, straight-through gradients."""

import pytest
import torch
from blindformer.approximations import PlanError, fake_quantise, quantise
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 16), st.booleans(), st.integers(0, 1), st.floats(-20, 20), st.integers(0, 10**6))
def test_error_is_within_half_a_unit(bits, per_channel, axis, log_size, seed):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 2.0**log_size
    integers, exponents = quantise(weight, bits, per_channel, axis)
    limit = 2 ** (bits - 1) - 1
    assert integers.abs().max() <= limit
    assert exponents.shape == ((5, 1) if axis == 0 else (1, 7)) if per_channel else (1, 1)
    unit = torch.exp2(exponents.double())
    assert ((integers * unit - weight).abs() <= unit * 0.5 * (1 + 1e-6)).all()
    largest = weight.abs().amax(1 - axis, keepdim=True) if per_channel else weight.abs().max()
    assert (unit < 2.001 * largest.maximum(largest.median()) / limit).all()


def test_fake_quantise_is_exactly_the_integers_and_passes_gradients_through():
    weight = torch.nn.Parameter(torch.randn(4, 6))
    integers, exponents = quantise(weight, 8)
    result = fake_quantise(weight, 8)
    assert torch.equal(result, integers * torch.exp2(exponents.float()))
    (result * torch.arange(24.0).view(4, 6)).sum().backward()
    assert torch.equal(weight.grad, torch.arange(24.0).view(4, 6))


def test_powers_of_two_and_zero_channels():
    weight = torch.tensor([[0.0, 0.0], [127.0, -64.0], [0.5, 0.25]])
    integers, exponents = quantise(weight, 8)
    assert integers[0].tolist() == [0, 0]
    assert torch.equal(integers * torch.exp2(exponents.float()), weight)
    assert integers[1].tolist() == [127, -64]


def test_bits_out_of_reach():
    with pytest.raises(PlanError, match="2 to 24"):
        quantise(torch.ones(2, 2), 40)
