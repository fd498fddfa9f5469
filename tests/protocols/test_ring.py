"""The ring: torch's integers against Python's, which never wrap."""

import pytest
import torch
from blindformer.protocols.ring import RangeError, Ring, byte_columns, logical_shift, sign_extend, top_bit
from hypothesis import given, settings
from hypothesis import strategies as st

RINGS = [Ring(64), Ring(32)]
rings = st.sampled_from(RINGS)


def wrapped(number: int, bits: int) -> int:
    return (number + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


@st.composite
def matrices(draw, ring: Ring):
    m, k, n = (draw(st.integers(1, 5)) for _ in range(3))
    half = 1 << (ring.bits - 1)
    words = st.integers(-half, half - 1) | st.sampled_from([-half, half - 1, -1, 0, 1])
    make = lambda a, b: draw(st.lists(st.lists(words, min_size=b, max_size=b), min_size=a, max_size=a))  # noqa: E731
    return make(m, k), make(k, n)


@pytest.mark.parametrize("ring", RINGS, ids=str)
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_both_matrix_products_are_python_s(ring, data):
    x, y = data.draw(matrices(ring))
    expected = [
        [wrapped(sum(a * b for a, b in zip(row, column, strict=True)), ring.bits) for column in zip(*y, strict=True)]
        for row in x
    ]
    left, right = torch.tensor(x, dtype=ring.dtype), torch.tensor(y, dtype=ring.dtype)
    assert ring.matmul(left, right).tolist() == expected
    assert ring.matmul_limbs(left, right).tolist() == expected


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize(
    ("left", "right"), [((2, 3, 70, 5), (2, 3, 5, 4)), ((70, 300), (300, 80)), ((2, 1, 4, 6), (3, 6, 2))]
)
def test_matrix_products_agree_on_batches_and_layouts(ring, left, right):
    generator = torch.Generator().manual_seed(0)
    half = 1 << (ring.bits - 1)
    x, y = (torch.randint(-half, half - 1, s, generator=generator).to(ring.dtype) for s in (left, right))
    expected = torch.matmul(x, y)
    assert torch.equal(ring.matmul(x, y), expected)
    assert torch.equal(ring.matmul_limbs(x, y), expected)
    assert torch.equal(ring.matmul(y.mT, x.mT), expected.mT)
    assert ring.matmul(x, y).dtype == ring.dtype


def test_limbs_stay_exact_on_the_longest_sums_of_the_largest_limbs():
    count = 1 << 20
    x = torch.full((1, count), -1)
    expected = wrapped(count * ((1 << 64) - 1) ** 2, 64)
    assert Ring().matmul_limbs(x, x.t()).item() == expected
    with pytest.raises(RangeError, match="exact up to"):
        Ring().matmul_limbs(torch.empty(1, (1 << 21) + 1, device="meta"), torch.empty((1 << 21) + 1, 1, device="meta"))


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


def quantised(rows, columns, shifts, generator):
    """Signed bytes times a power of two by column, the extreme ones among them."""
    weight = torch.randint(-128, 128, (rows, columns), generator=generator)
    weight[0], weight[-1] = -128, 127
    return weight << torch.tensor([shifts[i % len(shifts)] for i in range(columns)])


@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("shifts", [[0], [0, 3, 0, 9]], ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 40), (17, 1), (1, 1, 3000)], ids=str)
def test_products_of_bytes_are_exact_against_big_integers(ring, shifts, shape):
    generator = torch.Generator().manual_seed(len(shape))
    half = 1 << (ring.bits - 1)
    x = torch.randint(-half, half - 1, shape, generator=generator).to(ring.dtype)
    x.view(-1)[0], x.view(-1)[-1] = -half, half - 1
    weight = quantised(shape[-1], 7, shifts, generator).to(ring.dtype)
    columns = byte_columns(weight)
    assert columns is not None
    assert (columns.shifts is None) == (shifts == [0])
    rows, table = x.reshape(-1, shape[-1]).tolist(), weight.t().tolist()
    expected = [[sum(a * b for a, b in zip(row, column, strict=True)) for column in table] for row in rows]
    for bits in (64, 48, 33, 8):
        got = ring.matmul_bytes(x, columns, bits).reshape(-1, 7).tolist()
        used = min(bits, ring.bits)
        assert [[v % (1 << used) for v in row] for row in got] == [[v % (1 << used) for v in row] for row in expected]
    assert torch.equal(ring.linear(x, weight), ring.matmul(x, weight))


def test_each_slice_by_its_own_matrix_of_bytes():
    """A batch of matrices is multiplied whole, whatever each holds."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-1 << 62, 1 << 62, (2, 1, 5, 6), generator=generator)
    weight = torch.randint(-128, 128, (3, 6, 70), generator=generator)
    assert byte_columns(weight) is None
    expected = torch.stack([torch.stack([Ring().linear(part[0], matrix) for matrix in weight]) for part in x])
    assert torch.equal(Ring().linear(x, weight), expected)
    assert torch.equal(Ring().matmul_limbs(x, weight), expected)


def test_only_bytes_times_powers_of_two_are_multiplied_as_bytes():
    """A weight is examined once; one entry of nine bits, or a column of odd larger numbers, and it is none of them."""
    weight = torch.tensor([[127, 4 * 101], [-128, 4 * -3]])
    columns = byte_columns(weight)
    assert columns is not None
    assert byte_columns(weight) is columns
    assert torch.equal(columns.integers.long() << columns.shifts, weight)
    for bad in (128, 4 * 101 + 1, 1 << 40 | 1):
        assert byte_columns(torch.tensor([[127, bad], [-128, 3]])) is None
    wide = torch.randint(-1 << 62, 1 << 62, (4, 4), generator=torch.Generator().manual_seed(0))
    x = torch.arange(8).view(2, 4)
    assert torch.equal(Ring().linear(x, wide), x @ wide)
    with pytest.raises(RangeError, match="bytes are exact up to"):
        Ring().matmul_bytes(torch.empty(1, (1 << 16) + 1, dtype=torch.int64), columns)
