"""Keys of tables: both parties' numbers add up to the dealer's; each alone, and what is passed on, says nothing of the
secret cell; and they are used where they are shorter."""

import math
from itertools import product

import pytest
import torch
from blindformer.models.program.correlations import _count
from blindformer.models.program.pricing import _price, price, price_among
from blindformer.protocols.beaver.point_function import (
    BLOCK,
    KEYS,
    POINTS_PER_KEYSET,
    PointGroup,
    PointKeys,
    PointLayout,
    deal_points,
    sets_of,
)
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Data, Draft, hidden
from blindformer.tests.uniformity import log_p_values
from hypothesis import given
from hypothesis import strategies as st


def keys(layout: PointLayout, cell: torch.Tensor, numbers: torch.Tensor, runs: int = 1) -> tuple[PointKeys, PointKeys]:
    """The server's and the client's."""
    stream = Stream(new_seed(), "points")
    roots, aes = (
        [stream.integers(party, (len(cell), 2)) for party in ("server", "client")],
        stream.integers("keys", (runs * sets_of(len(cell) // runs), KEYS, 2)),
    )
    words = deal_points(layout, (roots[0], roots[1]), aes, (cell, numbers), runs)
    assert words.shape == (len(cell), layout.words)
    server, client = (PointKeys(layout, root, party, words, aes, runs) for party, root in enumerate(roots))
    return server, client


@given(
    st.builds(PointLayout, st.sampled_from([16, 64, 128, 1024]), st.integers(1, 8), st.integers(1, 8)),
    st.sampled_from([1, 65, POINTS_PER_KEYSET, POINTS_PER_KEYSET + 1]),
    st.sampled_from([1, 3]),
    st.integers(0, 2**32),
)
def test_numbers_stand_in_the_secret_cell_alone(layout, each, runs, seed):
    """Also of several runs, which are dealt at once and may be read one by one."""
    torch.manual_seed(seed)
    count = runs * each
    cell, numbers = torch.randint(layout.cells, (count,)), torch.randint(-(2**63), 2**63 - 1, (count, layout.columns))
    wanted = torch.zeros(count, layout.cells, layout.columns, dtype=layout.dtype)
    wanted[torch.arange(count), cell] = numbers.to(layout.dtype)
    server, client = keys(layout, cell, numbers, runs)
    assert torch.equal(server.numbers() + client.numbers(), wanted)
    alone = [torch.cat([one.of_run(run, runs).numbers() for run in range(runs)]) for one in (server, client)]
    assert torch.equal(sum(alone), wanted)


@pytest.mark.parametrize("columns", [1, 4])
def test_what_one_party_has_is_uniform_wherever_the_cell_is(columns):
    layout, count = PointLayout(64, columns, 8), 3000
    for cell, number in product((0, 63), (0, 1)):
        cells = torch.full((count,), cell)
        server, client = keys(layout, cells, torch.full((count, columns), number))
        parts = [
            part for one in (server, client) for part in (*one.words.unbind(1), *one.numbers().flatten(1).unbind(1))
        ]
        samples = [[part.contiguous().view(torch.uint8).flatten()] for part in parts]
        assert min(log_p_values(samples)) > math.log(1e-10)


def test_bits_of_words_are_as_often_set_as_not_wherever_the_cell_is():
    """They say which nodes are corrected: a level's word holds one for each side."""
    layout, count = PointLayout(64, 2, 8), 4000
    for cell in (0, 5, 63):
        words = keys(layout, torch.full((count,), cell), torch.ones(count, 2))[0].words
        for level, bit in product(range(layout.levels), (0, 1)):
            assert abs((words[:, 2 * level] >> bit & 1).double().mean() - 0.5) < 6 * 0.5 / math.sqrt(count)


def test_another_tables_key_gives_other_numbers():
    layout, cell = PointLayout(64, 4, 8), torch.tensor([3])
    server, _ = keys(layout, cell, torch.ones(1, 4))
    other = PointKeys(layout, server.roots, 0, server.words, server.keys + 1)
    assert (server.numbers() != other.numbers()).all()


@pytest.mark.parametrize("enough", [1, 300, 4096])
def test_points_are_dealt_when_there_are_enough(enough, monkeypatch):
    """Of three tables, two of which are alike: in one group, or in one each, with AES's keys of its own."""
    monkeypatch.setattr("blindformer.protocols.beaver.context.MAX_BATCH_POINTS", enough)
    for counted in (_count, _price):  # by program alone
        counted.cache_clear()
    d, data, results = Draft(), Data(3), []
    for cells, count in ((64, 200), (64, 600), (128, 9)):
        bits = 4 + cells.bit_length() - 1
        rows = torch.tensor([[7, 0, 0, 0]]).repeat(cells, 1)  # alike: where a carry is missed, the next one is read
        table, x = d.constant(rows), hidden(d, data, count, bits=bits - 1)
        results.append(d("lookup", x, table, start=0, bits=bits, low=4, drop=0, width=32))
    case = d.case(*results)
    ran = run_beaver(case)  # which holds it against its price
    for number in results:
        assert torch.equal(ran.outputs[str(number)], d.values[number])
    words = 8 * (800 * PointLayout(64, 4, 4).words + 9 * PointLayout(128, 4, 4).words)
    sets = {1: 1 + 2 + 1, 300: 2 + 1, 4096: 2 + 1}[enough]
    assert price(case.program).passed_on_bytes == words + KEYS * BLOCK * sets
    for counted in (_count, _price):
        counted.cache_clear()


@pytest.mark.parametrize(("cells", "columns", "keyed"), [(64, 4, True), (128, 1, True), (64, 1, False), (16, 4, False)])
def test_two_parties_use_them_where_they_are_shorter_and_n_parties_never(cells, columns, keyed):
    d, data, count, bits = Draft(), Data(2), 200, 4 + cells.bit_length() - 1
    table = d.constant(data.ints(cells, columns, bits=9))
    y = d("lookup", hidden(d, data, count, bits=bits - 1), table, start=0, bits=bits, low=4, drop=0, width=32)
    case, layout = d.case(y), PointLayout(cells, columns, 4)
    run_beaver(case)  # which holds it against its price
    of_two = next(row for row in price(case.program).operations if row.path == "lookup")
    words = 8 * count * layout.words
    assert of_two.offline_bytes == (2 * words + KEYS * BLOCK if keyed else 4 * count * cells * columns)
    rest = price(case.program).dealt_bytes - (words if keyed else of_two.offline_bytes)
    of_many = price_among(case.program, ["server", "client"], {}, 1).offline_bytes
    assert of_many - rest == 4 * count * cells * columns + 4 * count  # a zero, which goes with each result


@pytest.mark.parametrize("runs", [1, 3])
def test_points_of_several_tables_are_read_as_each_ones_own(runs):
    """Dealt at once and read by table, by part and by run; of more than are dealt at once, too."""
    layout, counts, stream = PointLayout(64, 2, 8), (1, 9, 4000, 4200), Stream(new_seed(), "points")
    groups = [PointGroup("0", layout, runs) for _ in ("server", "client")]
    tables = [[group.add(count) for count in counts] for group in groups]
    for number, count in enumerate(counts, 1):
        cell = torch.randint(layout.cells, (runs * count,))
        groups[0].cells.append((cell, torch.full((runs * count, 2), number)))
    roots = [stream.integers(party, (runs * sum(counts), 2)) for party in ("server", "client")]
    aes = stream.integers("keys", (runs * sets_of(sum(counts)), KEYS, 2))
    words = deal_points(layout, (roots[0], roots[1]), aes, groups[0].points(), runs)
    for party, group in enumerate(groups):
        group.keys = PointKeys(layout, roots[party], party, words, aes, runs)
    for run, (number, count) in product(range(runs), enumerate(counts)):
        numbers = torch.zeros(count, layout.cells, 2, dtype=torch.int64)
        for mine in tables:
            for part, share in (mine[number] if runs == 1 else mine[number].of_run(run)).parts():
                numbers[part] += share
        cell = groups[0].cells[number][0].view(runs, -1)[run]
        wanted = torch.zeros_like(numbers)
        wanted[torch.arange(count), cell] = number + 1
        assert torch.equal(numbers, wanted)
