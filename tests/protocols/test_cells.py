"""The "or" of a row by random parities: what it never misses, and how often it misses the rest."""

import pytest
import torch
from blindformer.protocols.beaver.cells import PARITIES, parity_choices
from blindformer.protocols.beaver.gates import all_of
from blindformer.protocols.errors import CorrelationError


@pytest.mark.parametrize("count", [1, 2, PARITIES])
def test_in_a_short_row_each_value_is_a_parity_of_its_own(count):
    assert parity_choices(count).tolist() == [1 << place for place in range(count)]


@pytest.mark.parametrize("count", [PARITIES + 1, 128, 2048])
def test_one_value_or_two_or_the_first_ones_are_never_missed(count):
    choices = parity_choices(count).tolist()
    assert len(choices) == len(set(choices)) == count
    first_ones = 0
    for choice in choices:
        assert choice != 0
        first_ones ^= choice
        assert first_ones != 0


@pytest.mark.parametrize("size", [3, 20, 77])
def test_of_more_values_each_parity_misses_a_half(size):
    """Independently: so many parities of a row together miss 2^-so many of the cells."""
    generator, choices = torch.Generator().manual_seed(size), parity_choices(128)
    sets = torch.rand(50_000, 128, generator=generator).argsort(1)[:, :size]
    bits = choices[sets][..., None] >> torch.arange(PARITIES) & 1
    parities = bits.sum(1) & 1
    for together in (1, 4, 8):
        missed = float((parities[:, :together] == 0).all(1).double().mean())
        assert missed == pytest.approx(2.0**-together, rel=0.25)


def test_the_choices_of_a_longer_row_begin_with_those_of_a_shorter_one():
    assert torch.equal(parity_choices(256)[:128], parity_choices(128))


def test_a_row_that_has_no_choices_is_refused():
    with pytest.raises(CorrelationError, match="rows of 1,048,576 numbers"):
        parity_choices(1 << 20)


@pytest.mark.parametrize("count", range(1, 33))
def test_all_wires_come_to_one_in_as_many_levels_as_their_fan_in_asks_for(count):
    wires = (torch.arange(1 << 12) * 2654435761 >> torch.arange(count)[:, None] % 20 & 1).bool()
    expected = wires.all(0)
    levels = all_of(count)
    for level in levels:
        wires = torch.stack([wires[list(product)].all(0) for (product,) in level.outputs])
    assert torch.equal(wires[0], expected)
    assert len(levels) == (0 if count == 1 else 1 if count <= 5 else 2 if count <= 20 else 3)
