"""The fit itself: against closed forms, and by the alternation that characterises the best polynomial."""

import numpy as np
import pytest
from blindformer.approximations.minimax import minimax
from hypothesis import given, settings
from hypothesis import strategies as st


def test_best_line_of_the_square_root():
    """On [1/4, 1] the best line is 17/48 + 2/3 x, off by 1/48."""
    coefficients, error = minimax(np.sqrt, 1, 0.25, 1.0)
    assert coefficients == pytest.approx([17 / 48, 2 / 3], abs=1e-4)
    assert error == pytest.approx(1 / 48, rel=1e-3)


@settings(max_examples=30, deadline=None)
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
