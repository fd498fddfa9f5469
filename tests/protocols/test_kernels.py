"""Each kernel of C gives the bits that its torch function gives, for every size, width and alignment."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from blindformer.levels import LevelError
from blindformer.protocols.beaver.compare import tree
from blindformer.protocols.beaver.gates import all_of, expansion
from blindformer.protocols.beaver.primitive import primitives
from blindformer.protocols.delegated import arithmetic
from blindformer.protocols.devices import CPU
from blindformer.protocols.kernels import bindings, library
from blindformer.protocols.kernels.library import kernels
from blindformer.protocols.oblivious import folding
from blindformer.protocols.operations.fourier import POINTS, WAVE
from blindformer.protocols.wire import held_in
from blindformer.tests import levels
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

primitives(), arithmetic, folding  # with them come their kernels
Draw = Callable[[st.SearchStrategy[int]], int]
COUNTS = st.sampled_from([1, 2, 63, 64, 65, 257, 700])


def uniform(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    info = torch.iinfo(dtype)
    drawn = torch.randint(info.min, info.max, shape, dtype=dtype)
    for place in range(min(3, drawn.numel())):  # the edges, too
        drawn.view(-1)[place] = (info.min, -1, info.max)[place]
    return drawn


def narrow(draw: Draw, *shape: int) -> Tensor:
    return uniform(*shape, dtype=(torch.int8, torch.int16, torch.int32, torch.int64)[draw(st.integers(0, 3))])


def _pack(draw: Draw, n: int) -> tuple[object, ...]:
    width, at = draw(st.integers(1, 8)), draw(st.integers(0, 9))
    return (bytearray(at + n * width + 1), at, uniform(n), width, uniform(n) if draw(st.booleans()) else None)


def _unpack(draw: Draw, n: int) -> tuple[object, ...]:
    width, at = draw(st.integers(1, 8)), draw(st.integers(0, 9))
    dtype = held_in(width, draw(st.booleans()))
    return bytearray(uniform(at + n * width, dtype=torch.int8).numpy().tobytes()), at, (n,), width, dtype


def _divided(draw: Draw, n: int) -> tuple[object, ...]:
    ring = draw(st.integers(2, 64))
    return uniform(n), draw(st.integers(1, ring - 1)), ring, draw(st.booleans())


def _extended(draw: Draw, n: int) -> tuple[object, ...]:
    return (*(uniform(n) for _ in range(4)), draw(st.integers(4, 63)), draw(st.booleans()))


def _sum_products(draw: Draw, n: int) -> tuple[object, ...]:
    return tuple((uniform(n) if draw(st.booleans()) else None, uniform(n)) for _ in range(draw(st.integers(1, 5))))


def _sum_series(draw: Draw, n: int) -> tuple[object, ...]:
    count, degree = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    powers = [uniform(n) if draw(st.booleans()) else None for _ in range(count)]
    return uniform(n), uniform(count, degree + 1).tolist(), powers


def _read_series(draw: Draw, n: int) -> tuple[object, ...]:
    count = draw(st.integers(1, 8))
    wave = torch.cos(torch.arange(POINTS + 1) * (2 * torch.pi / POINTS)).mul(1 << WAVE).round().long()
    table = torch.randint(-(1 << 20), 1 << 20, (count + 1, 2))
    return uniform(n), table, wave, narrow(draw, n, count, 2), draw(st.integers(2, 32)), draw(st.integers(0, 9)), WAVE


def _waves(draw: Draw, n: int) -> tuple[object, ...]:
    angle = torch.rand(n, dtype=torch.float64) * (2 * torch.pi)
    return angle.cos(), angle.sin(), draw(st.integers(1, 12)), draw(st.integers(0, 40))


def _read_exponential(draw: Draw, n: int) -> tuple[object, ...]:
    points, cells = draw(st.integers(0, 4)), draw(st.integers(0, 5))
    rows, fine, drop = draw(st.integers(1, 1 << cells)), points + draw(st.integers(0, 5)), draw(st.integers(0, 9))
    place = (draw(st.integers(-999, 999)), cells + fine + drop, fine + drop, drop)
    table, opened = torch.randint(0, 1 << 20, (rows, (1 << points) + 1)), uniform(rows, (n + 63) // 64)
    return uniform(n), table, opened, narrow(draw, n, 1 + rows, 1), *place


def _read_table(draw: Draw, n: int) -> tuple[object, ...]:
    count, cells = draw(st.integers(1, 4)), draw(st.integers(0, 5))
    fine, drop = draw(st.integers(0, 12)), draw(st.integers(0, 9))
    place = (draw(st.integers(-999, 999)), cells + fine + drop, fine + drop, drop)
    return uniform(n), uniform(1 << cells, count), narrow(draw, n, 1 << cells, count), *place


def _bits_of_cells(cells: int, *shape: int) -> Tensor:
    dtype = {8: torch.int8, 16: torch.int16, 32: torch.int32}.get(max(8, 1 << cells), torch.int64)
    return uniform(*shape, 1, max(1, (1 << cells) // 64)).to(dtype)


def _last_cells(draw: Draw, n: int) -> tuple[object, ...]:
    cells, low, drop = draw(st.integers(0, 8)), draw(st.integers(0, 20)), draw(st.integers(0, 9))
    place = (draw(st.integers(-999, 999)), cells + low + drop, low + drop, drop)
    return uniform(n), _bits_of_cells(cells, n), draw(st.integers(1, min(4, 1 << cells))), *place


def _row_parities(draw: Draw, n: int) -> tuple[object, ...]:
    cells, low, rows = draw(st.integers(0, 8)), draw(st.integers(0, 20)), draw(st.integers(1, 3))
    keep = draw(st.sampled_from([None, uniform(rows, n) & 1]))
    place = (draw(st.integers(-999, 999)), cells + low, low)
    count = draw(st.integers(1, 20))
    choices = uniform(n, max(1, (1 << cells) // 64), -(-count // 8) * 8)
    return uniform(rows, n), keep, _bits_of_cells(cells, rows, n), choices, count, *place


def _to_planes(draw: Draw, n: int) -> tuple[object, ...]:
    bits = draw(st.integers(1, 64))
    return uniform(n), bits, draw(st.integers(0, 64 - bits))


def _from_plane(draw: Draw, n: int) -> tuple[object, ...]:
    return uniform((n + 63) // 64), n


def _compare_blocks(draw: Draw, n: int) -> tuple[object, ...]:
    bits = draw(st.integers(2, 50))
    blocks = max(1, (bits + 2) // 4)
    return uniform(bits, n), draw(st.integers(-(1 << 40), 1 << 40)), uniform(blocks, 16, n)


def _join(draw: Draw, n: int) -> tuple[object, ...]:
    level = draw(st.sampled_from([level for n in range(2, 12) for level in (*tree(n), *all_of(n))]))
    rows, factors, places = expansion(level, CPU)
    inputs = 1 + max(wire for products in level.outputs for wires in products for wire in wires)
    shares = (uniform(count, n) for count in (len(places), len(level.subsets), inputs))
    return rows, factors, *shares, uniform(len(places), n), draw(st.booleans())


def _corrected_children(draw: Draw, n: int) -> tuple[object, ...]:
    rows, wide = draw(st.integers(1, 9)), draw(st.integers(2, 9))
    nodes, left, right = uniform(3, rows, n, 2).unbind()
    return nodes, (left, right), uniform(rows, wide), draw(st.integers(0, wide - 2))


def _deal_level(draw: Draw, n: int) -> tuple[object, ...]:
    wide = draw(st.integers(2, 9))
    ways, one, other = uniform(3, 2, n, 2).unbind()
    words = uniform(n, wide)
    return ways, [*one, *other], uniform(n), draw(st.integers(0, 63)), words, draw(st.integers(0, wide - 2))


def _leaf_numbers(draw: Draw, n: int) -> tuple[object, ...]:
    rows, blocks, at = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(0, 5))
    dtype = (torch.int8, torch.int16, torch.int32, torch.int64)[draw(st.integers(0, 3))]
    nodes, *becomes = uniform(1 + blocks, rows, n, 2).unbind()
    size = draw(st.integers(2 * blocks - 1, 2 * blocks))
    out = torch.empty(rows, n * size * 8 // dtype.itemsize, dtype=dtype)
    return nodes, becomes, uniform(rows, at + size), at, draw(st.booleans()), out


def _matmul(draw: Draw, n: int) -> tuple[object, ...]:
    rows, inner, batch = draw(st.integers(1, 14)), draw(st.integers(1, 40)), draw(st.integers(0, 3))
    x = uniform(*(2, 1, 3)[3 - batch :], rows, inner)
    y = narrow(draw, *(1, 2, 3)[3 - draw(st.integers(0, batch)) :], inner, n)
    turned = y.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x, turned if draw(st.booleans()) else y


def _linear32(draw: Draw, n: int) -> tuple[object, ...]:
    x = uniform(draw(st.integers(1, 9)), n, dtype=torch.int32)
    return x, uniform(draw(st.integers(1, 40)), n, dtype=draw(st.sampled_from([torch.int8, torch.int16])))


def _quantised(draw: Draw, n: int) -> tuple[object, ...]:
    x = torch.randn(draw(st.integers(1, 9)), n) * 10.0 ** draw(st.integers(-44, 36))
    x[draw(st.integers(0, len(x) - 1))] = 0.0
    most = draw(st.sampled_from([n + 9, 1 << 40, (1 << 62) - 1]))
    return x, most, 0.98 * most**0.5


def _pack24(draw: Draw, n: int) -> tuple[object, ...]:
    return (uniform(draw(st.integers(1, 9)), n, dtype=torch.int32),)


def _unpack24(draw: Draw, n: int) -> tuple[object, ...]:
    return bytearray(draw(st.binary(min_size=3 * n, max_size=3 * n))), (n,)


def _open_rows(draw: Draw, n: int) -> tuple[object, ...]:
    rows, outputs = draw(st.integers(1, 9)), draw(st.integers(1, 99))
    weight = uniform(outputs, n, dtype=torch.int16)
    q, rho = torch.randint(-99, 99, (rows, n), dtype=torch.int32), uniform(2, outputs)
    y = (q.long() @ weight.long().t()).to(torch.int32)
    y[draw(st.integers(0, rows - 1)), draw(st.integers(0, outputs - 1))] += draw(st.integers(0, 1))
    s, scale = uniform(rows, outputs, dtype=torch.int32), torch.rand(outputs) * 10.0 ** draw(st.integers(-40, 20))
    ring, step = draw(st.sampled_from([24, 32])), torch.rand(rows, dtype=torch.float64)
    return y - s, s, q, rho, rho @ weight.long(), step, scale, ring, torch.empty(rows, outputs)


def _fold(draw: Draw, n: int) -> tuple[object, ...]:
    depth, words = draw(st.integers(1, 8)), 8 * draw(st.integers(1, 9))
    leaves = uniform(1 << depth, 4)
    leaves[-1, 3] = -1 - (draw(st.integers(0, 100)) << 56)  # a counter near its carry, the most significant byte first
    return leaves, draw(st.booleans()), draw(st.integers(0, 1 << 40)), torch.zeros(depth, words).long(), uniform(words)


def _transpose_planes(draw: Draw, n: int) -> tuple[object, ...]:
    words = 8 * draw(st.integers(1, 9))
    return uniform(128, words), uniform(64 * words, 2)


def _hash_rows(draw: Draw, n: int) -> tuple[object, ...]:
    width, words = draw(st.integers(0, 8)), draw(st.integers(1, 9))
    out = uniform(64 * words if width else words)
    return uniform(64 * words, 2), uniform(2), draw(st.integers(0, 1 << 60)), uniform(2), width, out


def _check_sums(draw: Draw, n: int) -> tuple[object, ...]:
    words = 8 * draw(st.integers(1, 20))
    return uniform(draw(st.integers(1, 9)), words), uniform(words)


def _grow_nodes(draw: Draw, n: int) -> tuple[object, ...]:
    trees, width = draw(st.integers(1, 9)), 1 << draw(st.integers(0, 7))
    return uniform(trees, width, 2), uniform(2), uniform(trees, 2 * width, 2)


def _add_code(draw: Draw, n: int) -> tuple[object, ...]:
    return uniform(128 * draw(st.integers(1, 5)), 2), uniform(1 << 16, 2), uniform(2)


DRAWN = {
    name: globals()[f"_{name.removesuffix('_into')}"]
    for name in (
        *(
            "pack_into",
            "unpack",
            "divided",
            "extended",
            "sum_products",
            "sum_series",
            "read_series",
            "read_exponential",
            "waves",
        ),
        *("corrected_children", "deal_level", "leaf_numbers", "last_cells", "row_parities"),
        *("read_table", "to_planes", "from_plane", "compare_blocks", "join", "matmul"),
        *("linear32", "quantised", "open_rows", "pack24", "unpack24"),
        *("fold", "transpose_planes", "hash_rows", "check_sums", "grow_nodes", "add_code"),
    )
}
OF_TRANSFERS = ("fold", "transpose_planes", "hash_rows", "check_sums", "grow_nodes", "add_code")
WRITING = ("leaf_numbers", "deal_level", *OF_TRANSFERS)  # into an argument


def test_these_are_all_kernels() -> None:
    assert set(DRAWN) == set(kernels)


@pytest.mark.parametrize("level", levels.KERNELS)
def test_kernels_of_other_sources_are_refused(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "sources", lambda: 1)
    with pytest.raises(LevelError, match="was built from other C files than those beside it; run "):
        library.load(level)


@pytest.mark.parametrize("level", levels.KERNELS)
def test_threads_share_a_large_product(level: str) -> None:
    x, weight = uniform(131, 301, dtype=torch.int32), uniform(609, 301, dtype=torch.int16)
    with levels.at(level):
        product = kernels["linear32"].run(x, weight)
    assert isinstance(product, Tensor)
    assert torch.equal(product, kernels["linear32"].reference(x, weight))


@pytest.mark.parametrize("level", levels.KERNELS)
@pytest.mark.parametrize("name", DRAWN)
@given(data=st.data(), n=COUNTS)
def test_a_kernel_gives_the_bits_of_its_torch_function(name: str, level: str, data: st.DataObject, n: int) -> None:
    torch.manual_seed(n)
    results: list[object] = []
    given = DRAWN[name](data.draw, n)
    with levels.at(level):
        if name in OF_TRANSFERS and not bindings.transfer_lanes():
            pytest.skip("this level has no AES")
    for function in (kernels[name].reference, kernels[name].run):
        args = tuple(bytearray(x) if isinstance(x, bytearray) else x for x in given)
        if name in WRITING:
            args = tuple(x.clone() if isinstance(x, Tensor) else x for x in args)
        with levels.at(level):
            result = function(*args)
        assert result is not None
        written = {"pack_into": 0, "deal_level": 4, "open_rows": 8, "fold": 3, "grow_nodes": 2}
        results.append((result, args[written[name]]) if name in written else result)
    assert _same(*results), given


def test_what_does_not_fit_is_left_to_torch() -> None:
    """A Program may come from a stranger: no kernel reads beyond what it was given."""
    x, wave, nodes = uniform(5), uniform((1 << 14) + 1), uniform(3, 4, 2)
    place = {"start": 0, "bits": 12, "low": 8}
    level = tree(3)[0]
    rows, factors, places = expansion(level, CPU)
    opened, products, wires = uniform(len(places), 9), uniform(len(level.subsets), 9), uniform(6, 9)
    shares = (opened, products, wires)
    zeros = torch.zeros(1, 1, 64, dtype=torch.int64)
    ints, bytes_ = uniform(3, 4, dtype=torch.int32), uniform(5, 4, dtype=torch.int8)
    steps, scale, floats = torch.ones(3, dtype=torch.float64), torch.ones(4), torch.empty(3, 4)
    for name, args, more in (
        ("pack_into", (bytearray(99), 0, x, 9), {}),
        ("pack_into", (bytearray(39), 0, x, 8), {}),
        ("pack_into", (bytearray(99), -1, x, 8), {}),
        ("pack_into", (bytearray(99), 0, x, 8, uniform(4)), {}),
        ("unpack", (bytearray(99), 0, (5,), 0), {}),
        ("unpack", (bytearray(39), 0, (5,), 8), {}),
        ("divided", (x, 0, 64, True), {}),
        ("divided", (x, 12, 65, True), {}),
        ("extended", (x, x, x, uniform(4), 30, True), {}),
        ("extended", (x, x, x, x, 1, True), {}),
        ("sum_products", ((x, x), (uniform(4), x)), {}),
        ("sum_series", (x, [[1, 2], [3, 4]], [x]), {}),
        ("sum_series", (x, [[1, 2], [3]], [x, x]), {}),
        ("read_series", (x, uniform(3, 2), wave[:-1].contiguous(), uniform(5, 2, 2), 20, 0, WAVE), {}),
        ("read_series", (x, uniform(3, 1), wave, uniform(5, 2, 2), 20, 0, WAVE), {}),
        ("read_series", (x, uniform(3, 2), wave, uniform(5, 2, 2), 65, 0, WAVE), {}),
        ("waves", (x, x, 3, 16), {}),
        ("waves", (x.double(), x[:4].double(), 3, 16), {}),
        ("waves", (x.double(), x.double(), 3, 63), {}),
        ("read_exponential", (x, uniform(2, 18), uniform(2, 1), uniform(5, 3, 1)), place),
        ("read_exponential", (x, uniform(2, 1), uniform(2, 1), uniform(5, 3, 1)), place),
        ("read_exponential", (x, uniform(2, 1025), uniform(2, 1), uniform(5, 3, 1)), place),  # finer than its cells
        ("read_exponential", (x, uniform(2, 17), uniform(2, 1), uniform(5, 3, 1)), {**place, "drop": 9}),
        ("read_exponential", (x, uniform(2, 17), uniform(1, 1), uniform(5, 3, 1)), place),
        ("read_exponential", (x, uniform(2, 17), uniform(2, 1), uniform(5, 2, 1)), place),
        ("read_table", (x, uniform(8, 3), uniform(5, 16, 3)), place),
        ("read_table", (x, uniform(16, 3), uniform(5, 16, 2)), place),
        ("read_table", (x, uniform(16, 3), uniform(5, 16, 3)), {**place, "bits": 7}),
        ("read_table", (x, uniform(16, 3), uniform(5, 16, 3)), {**place, "bits": 70, "low": 66}),
        ("last_cells", (x, uniform(5, 1, 1), 2), place),  # of 16 cells the bits are two bytes
        ("last_cells", (x, uniform(5, 1, 1).short(), 17), place),
        ("last_cells", (x, uniform(4, 1, 1).short(), 2), place),
        ("last_cells", (x, uniform(5, 1, 1), 2), {**place, "bits": 15}),
        ("row_parities", (x, None, uniform(5, 1, 1), uniform(5, 1, 24), 20), place),
        ("row_parities", (x, uniform(4), uniform(5, 1, 1).short(), uniform(5, 1, 24), 20), place),
        ("row_parities", (x, None, uniform(5, 1, 1).short(), uniform(5, 1, 16), 20), place),
        ("row_parities", (x, None, uniform(5, 1, 1).short(), uniform(4, 1, 24), 20), place),
        ("row_parities", (x, None, uniform(5, 1, 1).short(), uniform(5, 1, 72), 65), place),
        ("to_planes", (x, 60, 5), {}),
        ("to_planes", (x, 5, -1), {}),
        ("from_plane", (x, 321), {}),
        ("from_plane", (x, -1), {}),
        ("compare_blocks", (uniform(12, 2), 1, uniform(2, 16, 2)), {}),
        ("compare_blocks", (uniform(12, 2), 1, uniform(3, 16, 1)), {}),
        ("join", (rows, factors, opened, uniform(len(products), 8), wires, opened, True), {}),  # fewer words
        ("join", (rows, factors, opened, products, wires[:1], opened, True), {}),
        ("join", (rows, factors, *shares, opened[:-1], True), {}),
        ("join", (rows - 1, factors, *shares, opened, True), {}),
        ("join", (rows, factors - 1, *shares, opened, True), {}),
        ("join", (rows[:, :, :-1].contiguous(), factors, *shares, opened, True), {}),
        ("join", (zeros, zeros[:, :, :6].contiguous(), *shares, opened, True), {}),  # of six wires
        ("corrected_children", (nodes, (nodes, nodes), uniform(3, 5), 4), {}),
        ("corrected_children", (nodes, (nodes, nodes), uniform(2, 5), 0), {}),
        ("corrected_children", (nodes, (nodes,), uniform(3, 5), 0), {}),
        ("corrected_children", (nodes, (nodes, uniform(3, 3, 2)), uniform(3, 5), 0), {}),
        ("deal_level", (uniform(2, 5, 2), [uniform(5, 2)] * 4, x, 64, uniform(5, 3), 0), {}),
        ("deal_level", (uniform(2, 5, 2), [uniform(5, 2)] * 3, x, 1, uniform(5, 3), 0), {}),
        ("deal_level", (uniform(2, 5, 2), [uniform(4, 2)] * 4, x, 1, uniform(5, 3), 0), {}),
        ("deal_level", (uniform(2, 5, 2), [uniform(5, 2)] * 4, x, 1, uniform(5, 3), 2), {}),
        ("deal_level", (uniform(2, 5, 2), [uniform(5, 2)] * 4, x, 1, uniform(4, 3), 0), {}),
        ("leaf_numbers", (nodes, (nodes,), uniform(3, 5), 2, False, uniform(3, 12)), {}),  # more than it becomes
        ("leaf_numbers", (nodes, (nodes,), uniform(3, 5), 5, False, uniform(3, 0)), {}),
        ("leaf_numbers", (nodes, [nodes] * 5, uniform(3, 10), 0, False, uniform(3, 40)), {}),
        ("leaf_numbers", (nodes, (nodes,), uniform(2, 2), 0, False, uniform(3, 8)), {}),
        ("leaf_numbers", (nodes, (nodes,), uniform(3, 2), 0, False, uniform(3, 7)), {}),
        ("matmul", (uniform(2, 3), torch.ones(3, 4, dtype=torch.uint8)), {}),
        ("matmul", (uniform(2, 3), uniform(4, 4)), {}),
        ("linear32", (ints.long(), bytes_), {}),
        ("linear32", (ints, bytes_.int()), {}),
        ("linear32", (ints, bytes_[:, :3]), {}),
        ("linear32", (ints, bytes_[:, :3].contiguous()), {}),
        ("linear32", (ints[0], bytes_), {}),
        ("linear32", (ints[:, :0].contiguous(), bytes_[:, :0].contiguous()), {}),
        ("quantised", (ints, 9, 3.0), {}),
        ("quantised", (ints.float().t(), 9, 3.0), {}),
        ("pack24", (ints.long(),), {}),
        ("pack24", (ints.t(),), {}),
        ("unpack24", (bytearray(14), (5,)), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 5), uniform(2, 4), steps, scale, 32, floats), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 4), uniform(2, 5), steps, scale, 32, floats), {}),
        ("open_rows", (ints, ints, ints[:2], uniform(2, 4), uniform(2, 4), steps, scale, 32, floats), {}),
        ("open_rows", (ints, ints[:2], ints, uniform(2, 4), uniform(2, 4), steps, scale, 32, floats), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 5)[:, :4], uniform(2, 4), steps, scale, 32, floats), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 4), uniform(2, 4), steps[:2], scale, 32, floats), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 4), uniform(2, 4), steps, scale[:3], 32, floats), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 4), uniform(2, 4), steps, scale.double(), 32, floats), {}),
        ("open_rows", (ints, ints, ints, uniform(2, 4), uniform(2, 4), steps, scale, 33, floats), {}),
        ("fold", (uniform(4, 4), True, 0, uniform(2, 9), uniform(9)), {}),  # not whole vectors
        ("fold", (uniform(4, 4), True, 0, uniform(3, 8), uniform(8)), {}),
        ("fold", (uniform(4, 4), True, 0, uniform(2, 8), uniform(16)), {}),
        ("fold", (uniform(512, 4), True, 0, uniform(9, 8), uniform(8)), {}),
        ("fold", (uniform(4, 3), True, 0, uniform(2, 8), uniform(8)), {}),
        ("transpose_planes", (uniform(128, 9), uniform(576, 2)), {}),
        ("transpose_planes", (uniform(127, 8), uniform(512, 2)), {}),
        ("transpose_planes", (uniform(128, 8), uniform(511, 2)), {}),
        ("hash_rows", (uniform(65, 2), uniform(2), 0, uniform(2), 8, uniform(65)), {}),
        ("hash_rows", (uniform(64, 2), uniform(1), 0, uniform(2), 8, uniform(64)), {}),
        ("hash_rows", (uniform(64, 2), uniform(2), 0, uniform(2), 0, uniform(64)), {}),
        ("hash_rows", (uniform(64, 2), uniform(2), 0, uniform(2), 9, uniform(64)), {}),
        ("grow_nodes", (uniform(2, 4, 2), uniform(2), uniform(2, 7, 2)), {}),
        ("grow_nodes", (uniform(2, 4, 2), uniform(3), uniform(2, 8, 2)), {}),
        ("grow_nodes", (uniform(2, 4, 3), uniform(2), uniform(2, 8, 3)), {}),
        ("add_code", (uniform(127, 2), uniform(1 << 16, 2), uniform(2)), {}),
        ("add_code", (uniform(128, 2), uniform((1 << 16) - 1, 2), uniform(2)), {}),
        ("add_code", (uniform(128, 2), uniform(1 << 16, 2), uniform(1)), {}),
        ("check_sums", (uniform(2, 9), uniform(9)), {}),
        ("check_sums", (uniform(2, 8), uniform(7)), {}),
    ):
        assert kernels[name].run(*args, **more) is None, (name, args, more)


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b
