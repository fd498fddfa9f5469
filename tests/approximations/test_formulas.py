"""Every approximation against float64 truth, over the domain it states."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blindformer.approximations import (
    CalibrationError,
    Plan,
    PlanError,
    choices,
    fake_quantise,
    find,
    find_kind,
    polynomial,
    quantise,
)
from blindformer.approximations.fourier import fit_series
from blindformer.approximations.minimax import minimax
from blindformer.approximations.overrides import Overrides
from hypothesis import given
from hypothesis import strategies as st

named = "{0.kind}-{0.name}".format
STATED = [a for a in choices() if a.error is not None and find_kind(a.kind).exact]
MIRRORED = [a for a in STATED if a.name == "polynomial" and a.domain[0] == -a.domain[1]]  # even or odd, but for a line

DIVISIONS = [a for a in choices() if a.fit and find_kind(a.kind).is_division]


def error(choice, low, high, dtype=torch.float64, **options):
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)
    result = choice.function(x.to(dtype), **choice.constants(None, options))
    return (result.double() - find_kind(choice.kind).exact(x)).abs().max().item()


def exp_error(name, low, **options):
    """The largest error of softmax's numerators, whose sum is the denominator."""
    choice, x = find("softmax", name), torch.linspace(low, 0, 100_001, dtype=torch.float64)
    numerators, denominators, *_ = choice.function(x, None, **choice.constants(None, options))
    assert denominators.item() == pytest.approx(numerators.sum().item())
    return (numerators - x.exp()).abs().max().item()


@pytest.mark.parametrize("missed", [0, 1])
@pytest.mark.parametrize(("low", "high"), [(-30.0, 30.0), (-120.0, 120.0), (0.0, 0.0)])
@pytest.mark.parametrize("keys", [1, 21, 128])
def test_numerators_and_their_sum_have_room_for_a_missed_cell(monkeypatch, missed, low, high, keys):
    """Whichever way the largest score is rounded to a cell, and where a cell of each row is missed."""
    choice, generator = find("softmax", "table"), torch.Generator().manual_seed(keys)
    x = torch.rand(400, keys, generator=generator, dtype=torch.float64) * (high - low) + low
    x[:100] = x[:100, :1]  # all alike

    def off(x, keep, start, width, cells):
        places = (x - start) / width
        cell = places.floor() + (torch.rand(x.shape, generator=generator) < 0.5)
        reached = (cell.unsqueeze(-1) >= torch.arange(1, cells)).any(-2).to(x.dtype)
        return reached * (torch.arange(1, cells) > missed)

    monkeypatch.setattr("blindformer.approximations.softmax_table.reached", off)
    numerators, denominators, (least, most) = choice.function(x, None, **choice.constants((low, high), {}))
    assert (denominators >= least).all()
    assert (denominators <= most).all()
    assert (numerators / denominators - x.softmax(-1)).abs().max() < 2e-5


def relative(choice, log_low, width, spaced, **options):
    """The largest relative error of a division or root on a range, fitted to it."""
    low, high = 2.0**log_low, 2.0 ** (log_low + width)
    x = spaced(low, high).clamp(low, high)
    power = 1.0 if choice.kind == "reciprocal" else 0.5
    return (choice.function(x, **choice.constants((low, high), options)) * x**power - 1).abs().max().item()


@pytest.mark.parametrize("choice", STATED, ids=named)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stated_error_holds_and_is_tight(choice, dtype):
    measured = error(choice, *choice.domain, dtype)
    assert 0.75 * choice.error < measured <= choice.error


@pytest.mark.parametrize("choice", [a for a in STATED if a.fit], ids=named)
def test_a_fit_within_an_approximated_model_is_the_fit_outside(choice):
    outside = choice.constants(None, {})
    fit_series.cache_clear()
    with Overrides(Plan.preset("faithful")).inside("layer"):
        within = choice.constants(None, {})
    fit_series.cache_clear()
    assert within == outside


@pytest.mark.parametrize(
    ("name", "published"), [("puma", 0.02), ("bolt", 0.0094), ("bumblebee", 0.0052), ("nexus", 0.0008)]
)
def test_published_gelu_constants_give_their_published_error(name, published):
    assert error(find("gelu", name), -10, 10) == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize(
    ("kind", "options", "bound"),
    [
        ("gelu", {"terms": 4}, 0.0021),
        ("gelu", {"terms": 8}, 1.5e-5),
        ("silu", {"terms": 9}, 9e-4),
        ("silu", {"terms": 13}, 1.4e-4),
        ("tanh", {"terms": 5}, 0.0041),
        ("exp", {"degree": 3, "squarings": 2}, 1.2e-3),
        ("exp", {"degree": 3, "squarings": 3}, 5.2e-5),
        ("exp", {"degree": 4, "squarings": 2}, 1.1e-4),
        ("exp", {"degree": 4, "squarings": 3}, 6.5e-6),
    ],
)
def test_options_buy_accuracy(kind, options, bound):
    choice = exp_error("exp", -12, **options) if kind == "exp" else error(find(kind, "fourier"), -40, 40, **options)
    assert choice < bound


@pytest.mark.parametrize("choice", [a for a in STATED if a.comparisons], ids=named)
def test_garbage_outside_the_cut_is_multiplied_by_an_exact_zero(choice):
    x = torch.tensor([-3e30, -1e9, 1e9, 3e30], requires_grad=True)
    result = choice.function(x, **choice.constants(None, {}))
    assert torch.equal(result, find_kind(choice.kind).exact(x))


@pytest.mark.parametrize("name", ["exp", "exp-limit"])
def test_the_stated_error_of_exp_holds_beyond_its_cut(name):
    assert exp_error(name, -40) < find("softmax", name).error


@pytest.mark.parametrize("name", ["exp", "exp-limit", "table", "2quad", "2relu"])
def test_masked_scores_count_for_nothing(name):
    choice = find("softmax", name)
    scores = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)) * 4
    keep = (torch.arange(8) < 6).float()
    constants = choice.constants((scores.min().item(), scores.max().item()), {})
    numerators, denominators, within = choice.function(scores, keep, **constants)
    assert (numerators[..., 6:] == 0).all()
    assert torch.equal(denominators, numerators.sum(-1, keepdim=True))
    if within is not None:
        assert within[0] < denominators.min() <= denominators.max() < within[1]
    if find("softmax", name).error is not None:
        ratio = numerators / denominators
        assert (ratio[..., :6] - scores[..., :6].softmax(-1)).abs().max() < 5 * choice.error


@given(st.floats(-12, 12), st.floats(0, 9), st.sampled_from(["reciprocal", "rsqrt"]))
def test_goldschmidt_meets_its_tolerance_on_any_range(log_low, width, kind):
    def spaced(low, high):
        return torch.logspace(log_low, log_low + width, 2001, base=2.0, dtype=torch.float64)

    assert relative(find(kind, "goldschmidt"), log_low, width, spaced) < 2.0**-14 * 1.01


@given(st.floats(-12, 12), st.floats(0, 12), st.sampled_from(["reciprocal", "rsqrt"]), st.sampled_from([8, 12, 14]))
def test_tables_meet_their_tolerance_on_any_range(log_low, width, kind, bits):
    def spaced(low, high):
        return torch.logspace(log_low, log_low + width, 2001, base=2.0, dtype=torch.float64)

    assert relative(find(kind, "table"), log_low, width, spaced, tolerance=2.0**-bits) < 2.0**-bits * 1.01


@given(st.floats(0.1, 60), st.integers(1, 90), st.integers(0, 2**32))
def test_a_table_finds_any_rows_softmax(spread, keys, seed):
    """A row that keeps no key is 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * (2 * torch.rand(4, keys, generator=generator, dtype=torch.float64) - 1)
    keep = (torch.rand(4, keys, generator=generator) < 0.7).double()
    choice = find("softmax", "table")
    constants = choice.constants((-spread, spread), {})
    numerators, denominators, within = choice.function(scores, keep, **constants)
    assert within[0] <= denominators.min() <= denominators.max() <= within[1]
    want = scores.masked_fill(keep == 0, -1e9).softmax(-1) * keep
    assert (numerators / denominators - want).abs().max() < choice.error


@pytest.mark.parametrize(
    ("kind", "low", "high", "options", "openings"),
    [
        ("reciprocal", 1, 8, {}, 3),
        ("reciprocal", 1, 128, {}, 5),
        ("rsqrt", 0.1, 1.2, {}, 4),
        ("rsqrt", 0.27, 193, {}, 6),
        ("rsqrt", 0.27, 193, {"tolerance": 2.0**-6}, 5),
    ],
)
def test_goldschmidt_openings_in_a_row(kind, low, high, options, openings):
    """Goldschmidt's own coefficients need 4, 8, 5 and 9 from the same starts. A looser tolerance needs fewer."""
    assert 1 + len(find(kind, "goldschmidt").constants((low, high), options)["slopes"]) == openings


def test_goldschmidt_in_fixed_point():
    """With every value rounded to 20 fractional bits, a range of 1 : 1300 keeps a relative error near 2^-10."""
    constants = find("rsqrt", "goldschmidt").constants((0.2, 260.0), {})

    def fixed(v):
        return torch.round(v * 2.0**20) / 2.0**20

    x = fixed(torch.logspace(-2.3, 8.02, 5001, base=2.0, dtype=torch.float64).clamp(0.2, 260.0))
    y = fixed(x * 2.0 ** -constants["exponent"])
    a, b = constants["start"]
    gain = 1.0
    for slope in constants["slopes"]:
        gain *= -slope
    p, q = fixed(gain * (a + b * y)), fixed(y * (a + b * y) ** 2)
    for a, b in zip(constants["offsets"], constants["slopes"], strict=True):
        p, q = fixed(-a / b * p - p * q), fixed(q * (a + b * q) ** 2)
    relative = p * 2.0 ** (-constants["exponent"] / 2) * x.sqrt() - 1
    assert relative.abs().max() < 2e-3
    assert relative.square().mean().sqrt() < 4e-4


@given(st.floats(-6, 4), st.sampled_from(MIRRORED))
def test_low_degrees_are_best_on_the_range_they_are_fitted_to(log_top, choice):
    """The error equioscillates: at half the range it is smaller than what any fit for the whole leaves there."""
    top = 2.0**log_top
    x = torch.linspace(-top, top, 2001, dtype=torch.float64)
    whole, half = (choice.constants((-t, t / 2), {}) for t in (top, top / 2))
    exact = find_kind(choice.kind).exact(x)
    wide, narrow = ((choice.function(x, **c) - exact).abs() for c in (whole, half))
    assert narrow[x.abs() <= top / 2].max() <= wide[x.abs() <= top / 2].max() + 1e-9
    assert wide.max() <= choice.error if top <= 8 else wide.max() < top


@given(st.floats(-8, 8), st.floats(0.1, 3), st.sampled_from(["reciprocal", "rsqrt"]))
def test_a_division_by_a_polynomial_errs_by_the_ratio_of_its_range(log_low, width, kind):
    """Relative errors follow from high / low alone; for 1/x they are 1 / T_(d+1)((b + a) / (b - a)), in closed form."""
    ratio = 2.0**width
    chebyshev = 1 / math.cosh(4 * math.acosh((ratio + 1) / (ratio - 1)))

    def spaced(low, high):
        return torch.linspace(low, high, 2001, dtype=torch.float64)

    assert relative(find(kind, "polynomial"), log_low, width, spaced) <= chebyshev * 1.01 + 1e-6


@pytest.mark.parametrize("choice", DIVISIONS, ids=named)
@pytest.mark.parametrize("range_", [(-1.0, 1.0), (0.0, 1.0), (2.0, 1.0)])
def test_a_division_wants_positive_numbers(choice, range_):
    with pytest.raises(CalibrationError, match="positive numbers"):
        choice.constants(range_, {})


def test_the_affine_norm_is_linear_and_right_at_the_middle_of_its_range():
    choice = find("layer_norm", "affine")
    constants = choice.constants((0.25, 9.0), {})
    assert constants["inverse_deviation"] == pytest.approx(1.5**-0.5)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def norm(v):
        return choice.function(v, (8,), None, None, 1e-5, **constants)

    assert torch.allclose(norm(2 * x - y), 2 * norm(x) - norm(y))
    unit = F.layer_norm(x, (8,)) * 1.5**0.5
    assert torch.allclose(norm(unit), F.layer_norm(unit, (8,)), atol=1e-4)


def test_squares_over_the_number_of_keys_add_up_to_one_on_average():
    """Scores spread evenly over half of the range (the margin widens it by 2), any number of keys kept."""
    choice = find("softmax", "square")
    constants = choice.constants((-8.0, 12.0), {})
    scores = torch.linspace(-3, 7, 4096, dtype=torch.float64).repeat(2, 1)
    keep = torch.stack([torch.ones(4096), torch.arange(4096) % 4 == 0]).double()
    weights, denominators, *_ = choice.function(scores * 4, keep, 0.25, **constants)
    assert denominators is None
    assert torch.allclose(weights.sum(-1), torch.ones(2).double(), atol=2e-3)
    assert (weights[1][keep[1] == 0] == 0).all()
    assert torch.allclose(choice.function(scores[:1], None, **constants)[0], weights[:1])


def test_polynomial_is_differentiable_and_matches_powers():
    coefficients = [0.5, -1.0, 0.25, 0.125]
    x = torch.randn(7, dtype=torch.float64, requires_grad=True)
    expected = sum(c * x**k for k, c in enumerate(coefficients))
    assert torch.allclose(polynomial(x, coefficients), expected)
    assert torch.autograd.gradcheck(lambda v: polynomial(v, coefficients), (x,))
    assert torch.autograd.gradgradcheck(lambda v: polynomial(v, coefficients), (x,))
    torch.library.opcheck(torch.ops.blindformer.polynomial, (x, coefficients))


def test_polynomial_in_half_precision():
    x = torch.tensor([-300.0, 0.5, 300.0], dtype=torch.float16)
    result = polynomial(x, [1.0, 0.0, 0.0, 1.0])
    assert result.dtype == torch.float16
    assert result.isfinite().all()
    assert result[1].item() == pytest.approx(1.125)


# The fit itself: against closed forms, and by the alternation that characterises the best polynomial.


def test_best_line_of_the_square_root():
    """On [1/4, 1] the best line is 17/48 + 2/3 x, off by 1/48."""
    coefficients, error = minimax(np.sqrt, 1, 0.25, 1.0)
    assert coefficients == pytest.approx([17 / 48, 2 / 3], abs=1e-4)
    assert error == pytest.approx(1 / 48, rel=1e-3)


@given(st.floats(-4, 4), st.floats(0.1, 6), st.integers(0, 6))
def test_no_other_polynomial_does_much_better(low, width, degree):
    """By de la Vallee Poussin: errors of alternating sign at degree + 2 points bound the best error from below."""
    x = np.linspace(low, low + width, 20_001)
    coefficients, error = minimax(np.exp, degree, low, low + width)
    difference = np.exp(x) - np.polynomial.polynomial.polyval(x, coefficients)
    if error < 1e-5:
        return  # below the rounding of the coefficients
    sign = np.sign(difference)
    runs = np.split(difference, np.flatnonzero(np.diff(sign)) + 1)
    peaks = sorted((np.abs(r).max() for r in runs), reverse=True)
    assert len(peaks) >= degree + 2
    assert peaks[degree + 1] > 0.97 * np.abs(difference).max()


def test_a_polynomial_is_found_again():
    coefficients, error = minimax(lambda x: 1 + 2 * x - x**3, 3, -1.0, 2.0)
    assert coefficients == pytest.approx([1, 2, 0, -1], abs=1e-8)
    assert error < 1e-10


# Quantised weights: within half a unit, power-of-two scales, straight-through gradients.


@given(st.integers(2, 16), st.integers(0, 1), st.floats(-20, 20), st.integers(0, 10**6))
def test_error_is_within_half_a_unit(bits, axis, log_size, seed):
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)) * 2.0**log_size
    integers, exponents = quantise(weight, bits, axis)
    limit = 2 ** (bits - 1) - 1
    assert integers.abs().max() <= limit
    assert exponents.shape == ((5, 1) if axis == 0 else (1, 7))
    unit = torch.exp2(exponents.double())
    assert ((integers * unit - weight).abs() <= unit * 0.5 * (1 + 1e-6)).all()
    largest = weight.abs().amax(1 - axis, keepdim=True)
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
