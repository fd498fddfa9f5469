"""Products of matrices: at every level of processors, and by limbs, the integers of Python, which never wrap."""

import pytest
import torch
from blindformer.protocols.matmul import byte_columns, linear, matmul, matmul_bytes, matmul_limbs
from blindformer.protocols.ring import Ring
from blindformer.tests import levels
from blindformer.tests.gpu import GPU, Gpu
from hypothesis import given
from hypothesis import strategies as st

RINGS = [Ring(64), Ring(32)]
WIDTHS = (torch.int8, torch.int16, torch.int32, torch.int64)


def by_bytes(x, y, bits=64):
    """On a pretended GPU: processors without VNNI have no exact product of bytes."""
    with Gpu():
        return matmul_bytes(x.to(GPU), y.to(GPU), bits).cpu()


def wrapped(number: int, bits: int) -> int:
    return (number + (1 << (bits - 1))) % (1 << bits) - (1 << (bits - 1))


def uniform(*shape, dtype=torch.int64, seed=0):
    """The whole range, its edges among it."""
    info, generator = torch.iinfo(dtype), torch.Generator().manual_seed(seed)
    drawn = torch.randint(info.min, info.max, shape, dtype=dtype, generator=generator)
    drawn.view(-1)[0], drawn.view(-1)[-1] = info.min, info.max
    return drawn


@st.composite
def matrices(draw, bits: int, bits_of_y: int):
    m, k, n = (draw(st.integers(1, 5)) for _ in range(3))

    def make(rows: int, columns: int, bits: int) -> list[list[int]]:
        half = 1 << (bits - 1)
        words = st.integers(-half, half - 1) | st.sampled_from([-half, half - 1, -1, 0, 1])
        row = st.lists(words, min_size=columns, max_size=columns)
        return draw(st.lists(row, min_size=rows, max_size=rows))

    return make(m, k, bits), make(k, n, bits_of_y)


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("ring", RINGS, ids=str)
@given(data=st.data())
def test_products_are_those_of_python(level, ring, data):
    dtype = data.draw(st.sampled_from(WIDTHS[: 4 if ring.bits == 64 else 3]))
    x, y = data.draw(matrices(ring.bits, 8 * dtype.itemsize))
    columns = list(zip(*y, strict=True))
    expected = [
        [wrapped(sum(a * b for a, b in zip(row, column, strict=True)), ring.bits) for column in columns] for row in x
    ]
    left, right = torch.tensor(x, dtype=ring.dtype), torch.tensor(y, dtype=dtype)
    with levels.at(level):
        assert ring.matmul(left, right).tolist() == expected
    for by_parts in (matmul_limbs, by_bytes):
        assert by_parts(left, right, ring.bits).tolist() == expected


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_products_of_every_size_of_a_tile(level, dtype):
    """Around the rows, terms and columns at which kernels go on to the next tile, panel or block."""
    rows, inner, columns = (1, 2, 3, 7, 8, 9, 129), (1, 2, 31, 33, 256, 257, 513), (1, 7, 8, 15, 17, 32, 33, 65)
    for number, (m, k) in enumerate((m, k) for m in rows for k in inner):
        n = columns[number % len(columns)]
        x, y = uniform(m, k, seed=number), uniform(k, n, dtype=dtype, seed=number)
        expected = torch.matmul(x, y.long())
        with levels.at(level):
            assert torch.equal(matmul(x, y), expected), (m, k, n)
            for bits in (48, 40, 8):
                assert torch.equal(matmul(x, y, bits) << 64 - bits, expected << 64 - bits), (m, k, n, bits)
            assert torch.equal(matmul(x.t().contiguous().t(), y.t().contiguous().t()), expected), (m, k, n)


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("dtype", WIDTHS, ids=str)
def test_the_longest_sums_of_the_largest_numbers(level, dtype):
    """Where a sum of partial products would leave 32 or 53 bits first. Digits of 16 bits are all as large as can be at
    -2^63 - 2^47 - 2^31 - 2^15."""
    info, inner = torch.iinfo(dtype), 5000
    for word in (-1 << 63, (1 << 63) - 1, -1, wrapped(-(1 << 63) - (1 << 47) - (1 << 31) - (1 << 15), 64)):
        for factor in (info.min, info.max):
            x, y = torch.full((9, inner), word), torch.full((inner, 33), factor, dtype=dtype)
            expected = wrapped(word * factor * inner, 64)
            with levels.at(level):
                assert matmul(x, y).unique().tolist() == [expected]
            for by_parts in (matmul_limbs, by_bytes):
                assert by_parts(x, y).unique().tolist() == [expected]


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 70, 5), (2, 3, 5, 4)),
        ((70, 300), (300, 80)),
        ((2, 1, 4, 6), (3, 6, 2)),
        ((3, 2, 2, 4, 6), (3, 1, 2, 6, 2)),
    ],
)
def test_products_of_batches_and_layouts(level, ring, left, right):
    x, y = uniform(*left).to(ring.dtype), uniform(*right, seed=1).to(ring.dtype)
    expected = torch.matmul(x, y)
    with levels.at(level):
        assert torch.equal(ring.matmul(x, y), expected)
        assert torch.equal(ring.matmul(y.mT, x.mT), expected.mT)
        assert torch.equal(ring.matmul(x[..., 1:, :], y[..., 1:]), expected[..., 1:, 1:])
        assert ring.matmul(x, y).dtype == ring.dtype
    assert torch.equal(matmul_limbs(x, y, ring.bits), expected)


# Bytes.


def quantised(rows, columns, shifts):
    """Signed bytes times a power of two by column, the extreme ones among them."""
    weight = torch.randint(-128, 128, (rows, columns), generator=torch.Generator().manual_seed(rows))
    weight[0], weight[-1] = -128, 127
    return weight << torch.tensor([shifts[i % len(shifts)] for i in range(columns)])


@pytest.mark.parametrize("level", levels.EVERY)
@pytest.mark.parametrize("ring", RINGS, ids=str)
@pytest.mark.parametrize("shifts", [[0], [0, 3, 0, 9]], ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 40), (17, 1), (1, 1, 3000)], ids=str)
def test_a_weight_of_bytes_gives_what_it_gives_as_a_matrix(level, ring, shifts, shape):
    x, weight = uniform(*shape).to(ring.dtype), quantised(shape[-1], 7, shifts).to(ring.dtype)
    columns = byte_columns(weight)
    assert columns is not None
    assert (columns.shifts is None) == (shifts == [0])
    expected = torch.matmul(x, weight)
    for bits in (64, 48, 33, 8):
        cut = max(0, ring.bits - bits)
        with levels.at(level):
            assert torch.equal(ring.linear(x, weight, bits) << cut, expected << cut)


def test_each_slice_by_its_own_matrix_of_bytes():
    """A batch of matrices is multiplied whole, whatever each holds."""
    x = uniform(2, 1, 5, 6)
    weight = torch.randint(-128, 128, (3, 6, 70), generator=torch.Generator().manual_seed(3))
    assert byte_columns(weight) is None
    assert torch.equal(linear(x, weight), torch.matmul(x, weight))


def test_only_bytes_times_powers_of_two_are_multiplied_as_bytes():
    """A weight is examined once; one entry of nine bits, or a column of odd larger numbers, and it is none of them."""
    weight = torch.tensor([[127, 4 * 101], [-128, 4 * -3]])
    columns = byte_columns(weight)
    assert columns is not None
    assert byte_columns(weight) is columns
    assert torch.equal(columns.integers.long() << columns.shifts, weight)
    for bad in (128, 4 * 101 + 1, 1 << 40 | 1):
        assert byte_columns(torch.tensor([[127, bad], [-128, 3]])) is None
    wide, x = uniform(4, 4), torch.arange(8).view(2, 4)
    assert torch.equal(linear(x, wide), x @ wide)
