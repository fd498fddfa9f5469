"""The "or" of a row by random parities: how often it misses a cell, and that it misses no two together."""

import pytest
import torch
from blindformer.protocols.beaver.cells import PAD, PARITIES, parity_choices
from blindformer.protocols.beaver.gates import all_of
from blindformer.protocols.operations import operations


def missed(sets, cells, together):
    """Of sets of a row's values [..., size], whether so many parities of each cell are all 0: [..., cells]."""
    choices, every = parity_choices(128, cells), torch.arange(cells)
    bits = choices[:, every // 64, :together] >> (every % 64)[:, None] & 1  # [128, cells, together]
    return (bits[sets].sum(-3) & 1 == 0).all(-1)


@pytest.mark.parametrize("count", [1, 2, PARITIES])
@pytest.mark.parametrize("cells", [4, 64, 128])
def test_in_a_short_row_each_value_is_a_parity_of_its_own(count, cells):
    choices = parity_choices(count, cells)
    assert choices.shape == (count, max(1, cells // 64), -(-count // PAD) * PAD)
    assert torch.equal(choices[:, 0, :count], -torch.eye(count, dtype=torch.int64))


@pytest.mark.parametrize("size", [1, 2, 3, 20, 77])
def test_each_parity_misses_half_of_the_cells(size):
    """Independently: so many parities of a cell together miss 2^-so many."""
    generator = torch.Generator().manual_seed(size)
    sets = torch.rand(4000, 128, generator=generator).argsort(1)[:, :size]
    for together in (1, 4, 7):
        rate = float(missed(sets, 64, together).double().mean())
        assert rate == pytest.approx(2.0**-together, rel=0.25)


def test_what_misses_a_cell_says_nothing_of_the_next():
    """The same values reach all cells below the least of them: of these one at a time is missed, not all together."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.rand(3000, 128, generator=generator).argsort(1)[:, :5]
    missing = missed(sets, 64, 3).double()
    following = float((missing[:, :-1] * missing[:, 1:]).mean())
    assert following == pytest.approx(2.0**-6, rel=0.25)


def test_no_cell_is_missed_where_whole_rows_or_their_first_ones_reach_it():
    """What attention without a mask, or a causal one, asks for in every row."""
    for count in (21, 64, 128, 512):
        choices = parity_choices(count, 128)
        first_ones = torch.zeros_like(choices[0])
        for choice in choices:
            first_ones = first_ones ^ choice
            reached = first_ones[:, 0].clone()
            for parity in range(1, PARITIES):
                reached |= first_ones[:, parity]
            assert (reached == -1).all()


@pytest.mark.parametrize("count", range(1, 33))
def test_all_wires_come_to_one_in_as_many_levels_as_their_fan_in_asks_for(count):
    wires = (torch.arange(1 << 12) * 2654435761 >> torch.arange(count)[:, None] % 20 & 1).bool()
    expected = wires.all(0)
    levels = all_of(count)
    for level in levels:
        wires = torch.stack([wires[list(product)].all(0) for (product,) in level.outputs])
    assert torch.equal(wires[0], expected)
    assert len(levels) == (0 if count == 1 else 1 if count <= 5 else 2 if count <= 20 else 3)


EXP = {"start": 0, "bits": 12, "low": 9, "drop": 0, "rate": 1.0, "fraction": 3}


@pytest.mark.parametrize("shape", [(), (3, 0), (0, 3), (2, 1 << 16)])
def test_rows_without_numbers_or_with_too_many_have_no_cells(shape):
    with pytest.raises(ValueError, match="no cells"):
        operations()["reached"].compute(torch.empty(shape, dtype=torch.int64, device="meta"), start=0, bits=9, low=0)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("less", {"threshold": 0.5, "bits": 9}),
        ("less", {"threshold": 1, "bits": 9, "drop": 8}),
        ("sides", {"low": 1, "high": 2.5, "bits": 9}),
        ("sides", {"low": 2, "high": 1, "bits": 9}),
        ("fourier", {"bits": 9, "fraction": 3, "slope": 63}),
        ("fourier", {"bits": 9, "fraction": 3, "periods": 512}),
    ],
)
def test_what_no_compiler_writes_is_a_problem(op, attributes):
    assert operations()[op].problem(attributes)
