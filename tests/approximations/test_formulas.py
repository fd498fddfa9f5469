"""Every approximation against float64 truth, over the domain it states."""

import pytest
import torch
import torch.nn.functional as F
from blindformer.approximations import choices, find, polynomial
from hypothesis import given, settings
from hypothesis import strategies as st

EXACT = {"gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
STATED = [a for a in choices() if a.kind in EXACT and a.function is not None]


def error(found, low, high, dtype=torch.float64, **options):
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)
    result = found.function(x.to(dtype), **found.constants(None, options))
    return (result.double() - EXACT[found.kind](x)).abs().max().item()


@pytest.mark.parametrize("found", STATED, ids=lambda a: f"{a.kind}-{a.name}")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_stated_error_holds_and_is_tight(found, dtype):
    measured = error(found, *found.domain, dtype)
    assert 0.75 * found.error < measured <= found.error


@pytest.mark.parametrize(
    ("name", "published"),
    [("puma", 0.02), ("bolt", 0.0094), ("bumblebee", 0.0052), ("nexus", 0.0008)],
)
def test_published_gelu_constants_give_their_published_error(name, published):
    assert error(find("gelu", name), -10, 10) == pytest.approx(published, rel=0.05)


def test_quad_gelu_is_off_by_one_and_a_half():
    assert error(find("gelu", "quad"), -4, 4) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "options", "bound"),
    [
        ("gelu", {"degree": 4, "pieces": 2}, 2.6e-4),
        ("gelu", {"degree": 4, "pieces": 1}, 0.003),
        ("gelu", {"pieces": 1}, 0.008),
        ("silu", {"pieces": 1}, 0.015),
        ("tanh", {"pieces": 1}, 0.0055),
    ],
)
def test_more_pieces_or_fewer_degrees(kind, options, bound):
    assert error(find(kind, "piecewise"), -40, 40, **options) < bound


@pytest.mark.parametrize("found", [a for a in STATED if a.name != "quad"], ids=lambda a: f"{a.kind}-{a.name}")
def test_garbage_outside_the_cut_is_multiplied_by_an_exact_zero(found):
    x = torch.tensor([-3e30, -1e9, 1e9, 3e30], requires_grad=True)
    result = found.function(x, **found.constants(None, {}))
    expected = {"gelu": x.clamp_min(0), "silu": x.clamp_min(0), "tanh": x.sign(), "sigmoid": (x > 0).float()}
    assert torch.equal(result, expected[found.kind])


@pytest.mark.parametrize(("name", "options"), [("exp", {}), ("exp-limit", {})])
def test_exp_numerators(name, options):
    found = find("softmax", name)
    x = torch.linspace(-40, 0, 100_001, dtype=torch.float64)
    numerators, denominators = found.function(x, None, **found.constants(None, options))
    assert (numerators - x.exp()).abs().max() < found.error
    assert denominators.item() == pytest.approx(numerators.sum().item())


@pytest.mark.parametrize(
    ("degree", "squarings", "bound"), [(3, 2, 1.2e-3), (3, 3, 5.2e-5), (4, 2, 1.1e-4), (4, 3, 6.5e-6)]
)
def test_exp_fit_by_degree_and_squarings(degree, squarings, bound):
    found = find("softmax", "exp")
    x = torch.linspace(-12, 0, 100_001, dtype=torch.float64)
    numerators, _ = found.function(x, None, **found.constants(None, {"degree": degree, "squarings": squarings}))
    assert (numerators - x.exp()).abs().max() < bound


@pytest.mark.parametrize("name", ["exp", "exp-limit", "2quad", "2relu"])
def test_masked_scores_count_for_nothing(name):
    found = find("softmax", name)
    scores = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)) * 4
    keep = (torch.arange(8) < 6).float()
    constants = found.constants((scores.min().item(), scores.max().item()), {})
    numerators, denominators = found.function(scores, keep, **constants)
    assert (numerators[..., 6:] == 0).all()
    assert torch.equal(denominators, numerators.sum(-1, keepdim=True))
    if name.startswith("exp"):
        ratio = numerators / denominators
        assert (ratio[..., :6] - scores[..., :6].softmax(-1)).abs().max() < 5 * found.error


@settings(max_examples=40, deadline=None)
@given(st.floats(-12, 12), st.floats(0, 9), st.sampled_from(["reciprocal", "rsqrt"]))
def test_goldschmidt_meets_its_tolerance_on_any_range(log_low, width, kind):
    found = find(kind, "goldschmidt")
    low, high = 2.0**log_low, 2.0 ** (log_low + width)
    x = torch.logspace(log_low, log_low + width, 2001, base=2.0, dtype=torch.float64).clamp(low, high)
    relative = found.function(x, **found.constants((low, high), {})) * x ** (1.0 if kind == "reciprocal" else 0.5) - 1
    assert relative.abs().max() < 2.0**-14 * 1.01


@pytest.mark.parametrize(
    ("kind", "low", "high", "openings"),
    [("reciprocal", 1, 8, 3), ("reciprocal", 1, 128, 5), ("rsqrt", 0.1, 1.2, 4), ("rsqrt", 0.27, 193, 6)],
)
def test_goldschmidt_openings_in_a_row(kind, low, high, openings):
    """Goldschmidt's own coefficients need 4, 8, 5 and 9 from the same starts."""
    constants = find(kind, "goldschmidt").constants((low, high), {})
    assert 1 + len(constants["slopes"]) == openings


def test_a_looser_tolerance_costs_fewer_steps():
    found = find("rsqrt", "goldschmidt")
    tight, loose = (found.constants((0.1, 100.0), {"tolerance": t}) for t in (2.0**-14, 2.0**-6))
    assert len(loose["slopes"]) < len(tight["slopes"])


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
