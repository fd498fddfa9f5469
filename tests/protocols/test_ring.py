"""The ring: torch's integers against Python's, which never wrap."""

import pytest
import torch
from blindformer.protocols.ring import RangeError, Ring, logical_shift, sign_extend, top_bit
from hypothesis import given
from hypothesis import strategies as st

RINGS = [Ring(64), Ring(32)]
rings = st.sampled_from(RINGS)


def wrapped(number: int, bits: int) -> int:
    return (number + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


@given(rings, st.floats(-1e6, 1e6), st.integers(0, 9))
def test_encoding_rounds_to_the_nearest_and_decoding_inverts_it(ring, value, scale):
    encoded = ring.encode(torch.tensor([value], dtype=torch.float64), scale)
    assert encoded.dtype == ring.dtype
    assert encoded.item() == round(value * 2**scale)
    assert abs(ring.decode(encoded, scale).item() - value) <= 2.0 ** -(scale + 1)


@pytest.mark.parametrize("ring", RINGS, ids=str)
def test_what_does_not_fit_is_refused(ring):
    limit = 2.0 ** (ring.bits - 2)
    assert ring.encode(torch.tensor([limit / 2], dtype=torch.float64), 0).item() == limit / 2
    for value in (limit, -limit, limit * 2.0**40):
        with pytest.raises(RangeError, match="too large for the fixed point"):
            ring.encode(torch.tensor([value], dtype=torch.float64), 0)
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(RangeError, match=r"^weight 3: holds entries that are NaN or infinite.*check where"):
            ring.encode(torch.tensor([0.0, value]), 8, "weight 3")


def test_there_are_rings_of_32_and_64_bits():
    with pytest.raises(RangeError, match="32 and 64"):
        Ring(16)
    assert [ring.dtype for ring in RINGS] == [torch.int64, torch.int32]


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(1, 64), st.data())
def test_shifts_and_bits_of_a_word(word, width, data):
    x = torch.tensor([word])
    bits = data.draw(st.integers(0, width - 1))
    assert logical_shift(x, bits, width).item() == wrapped((word % (1 << width)) >> bits, 64)
    assert top_bit(x, width).item() == (word >> (width - 1)) & 1
    assert sign_extend(x, width).item() == wrapped(word, width)
