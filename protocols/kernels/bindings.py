"""What asks the kernels: functions with the arguments and results of the torch functions that they stand in for; None
where a kernel cannot do it. Arguments: see the torch functions.

A kernel reads where it is told, so every shape is checked here: a Program, and its tables, may come from a stranger.
What does not fit is left to torch, which refuses it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...cores import MOST_THREADS, cores, side_by_side
from ...levels import features
from ..devices import CPU
from .library import call, constant, whole

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64)
_MOST_COEFFICIENTS = 8  # of a table's row
_MOST_CELLS = 1 << 31
_MOST_BLOCKS = 4  # of a leaf's numbers
_PRODUCTS = 1 << 23  # that a thread takes at least: a fifth of a millisecond
_MOST_FACTORS = 5  # of a product that `join` adds
_MOST_DEPTH = 8  # of a tree that is folded
_CODE_ROWS = 128  # whose places are drawn together


def pack_into(out: bytearray, at: int, tensor: Tensor, width: int, minus: Tensor | None = None) -> int | None:
    end = at + tensor.numel() * width
    if not whole(tensor, minus, like=tensor) or not 0 < width <= 8 or at < 0 or end > len(out):
        return None
    if end > at:
        call("pack", tensor, minus, tensor.numel(), width, torch.frombuffer(out, dtype=torch.uint8).data_ptr() + at)
    return end


def unpack(
    data: bytearray | memoryview | Tensor,
    at: int,
    shape: tuple[int, ...],
    width: int,
    dtype: torch.dtype = torch.int64,
    device: torch.device = CPU,
) -> Tensor | None:
    if device.type != "cpu" or isinstance(data, Tensor):
        return None
    count = math.prod(shape)
    if not count or not 0 < width <= 8 or dtype not in _INTEGERS or at < 0 or at + count * width > len(data):
        return None
    if dtype.itemsize == width and count * width == len(data):  # a tensor as it is
        return torch.frombuffer(data, dtype=dtype).view(shape)
    out = torch.empty(shape, dtype=dtype)
    call("unpack", torch.frombuffer(data, dtype=torch.uint8).data_ptr() + at, count, width, dtype.itemsize, out)
    return out


def divided(x: Tensor, bits: int, ring: int, leader: bool) -> Tensor | None:
    if not whole(x) or not 0 < bits < ring <= 64:
        return None
    out = torch.empty_like(x)
    call("divide", x, x.numel(), bits, ring, leader, out)
    return out


def extended(
    mine: Tensor, theirs: Tensor, low: Tensor, wrap: Tensor, bits: int, leader: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    if not whole(mine, theirs, low, wrap, like=mine) or not 2 <= bits <= 64:
        return None
    public, wrapped, share = (torch.empty_like(mine) for _ in range(3))
    call("extend", mine, theirs, low, wrap, mine.numel(), bits, leader, public, wrapped, share)
    return public, wrapped, share


def sum_products(*terms: tuple[Tensor | None, Tensor]) -> Tensor | None:
    first = terms[0][1]
    if not all(whole(*term, like=first) for term in terms):
        return None
    out = torch.empty_like(first)
    factors, values = zip(*terms, strict=True)
    call("sum_products", factors, values, len(terms), out.numel(), out)
    return out


def sum_series(x: Tensor, series: Sequence[Sequence[int]], powers: Sequence[Tensor | None]) -> Tensor | None:
    if not whole(x, *powers, like=x) or len(powers) != len(series) or len({len(row) for row in series}) != 1:
        return None
    out = torch.empty_like(x)
    call("polynomial", x, powers, torch.tensor(series), len(series), len(series[0]) - 1, x.numel(), out)
    return out


def read_series(
    x: Tensor, table: Tensor, wave: Tensor, numbers: Tensor, bits: int, first: int, scale: int
) -> Tensor | None:
    if not table.dim():
        return None
    points, count = wave.numel().bit_length() - 1, len(table) - 1
    if not whole(x, table, wave) or not _whole_numbers(numbers, (*x.shape, count, 2)):
        return None
    if wave.shape != ((1 << points) + 1,) or table.shape != (count + 1, 2) or not 2 <= bits <= 64:
        return None
    out = torch.empty_like(x)
    call("fourier", x, wave, points, scale, table, count, numbers, numbers.itemsize, x.numel(), bits, first, out)
    return out


def waves(cosine: Tensor, sine: Tensor, count: int, fraction: int) -> Tensor | None:
    if not all(x.dtype is torch.float64 and x.is_contiguous() and x.device.type == "cpu" for x in (cosine, sine)):
        return None
    if sine.shape != cosine.shape or not 0 <= fraction < 63:
        return None
    out = torch.empty(*cosine.shape, count, 2, dtype=torch.int64)
    call("waves", cosine, sine, cosine.numel(), count, fraction, out)
    return out


def read_exponential(
    x: Tensor, table: Tensor, opened: Tensor, numbers: Tensor, start: int, bits: int, low: int, drop: int = 0
) -> Tensor | None:
    if table.dim() != 2 or table.shape[1] < 2 or not _is_place(bits, low, drop):
        return None
    rows, points = len(table), (table.shape[1] - 1).bit_length() - 1
    if not whole(x, table, opened) or not _whole_numbers(numbers, (*x.shape, 1 + rows, 1)):
        return None
    if table.shape[1] != (1 << points) + 1 or low - drop < points or opened.shape != (rows, (x.numel() + 63) // 64):
        return None
    place, out = (start, bits, low, drop), torch.empty_like(x)
    call("exponential", x, table, rows, points, opened, numbers, numbers.itemsize, x.numel(), *place, out)
    return out


def last_cells(x: Tensor, cells: Tensor, rows: int, start: int, bits: int, low: int, drop: int = 0) -> Tensor | None:
    if not _is_place(bits, low, drop) or not 0 < rows <= 1 << bits - low or not whole(x):
        return None
    if not _are_bits_of_cells(cells, x, bits - low):
        return None
    out = torch.empty(rows, (x.numel() + 63) // 64, dtype=torch.int64)
    call("last_cells", x, cells, cells.itemsize, x.numel(), rows, start, bits, low, out)
    return out


def row_parities(
    x: Tensor, keep: Tensor | None, cells: Tensor, choices: Tensor, count: int, start: int, bits: int, low: int
) -> Tensor | None:
    if not x.dim() or not _is_place(bits, low, 0) or not whole(x, keep, like=x) or not 0 < count <= 64:
        return None
    n, wide, padded = x.shape[-1], max(1, (1 << bits - low) // 64), -(-count // 8) * 8
    if not whole(choices) or choices.shape != (n, wide, padded) or not _are_bits_of_cells(cells, x, bits - low):
        return None
    rows = x.numel() // n if n else 0
    out, scratch = (torch.empty(shape, dtype=torch.int64) for shape in ((count, ((rows << bits - low) + 63) // 64), n))
    more = (choices, count, start, bits, low, scratch, out)
    call("row_parities", x, keep, cells, cells.itemsize, rows, n, *more)
    return out


def read_table(
    x: Tensor, table: Tensor, numbers: Tensor, start: int, bits: int, low: int, drop: int = 0
) -> Tensor | None:
    if table.dim() != 2 or not _is_place(bits, low, drop):
        return None
    count = table.shape[1]
    if not 0 < count <= _MOST_COEFFICIENTS or len(table) != 1 << bits - low or not whole(x, table):
        return None
    if not _whole_numbers(numbers, (*x.shape, 1 << bits - low, count)):
        return None
    place, out = (start, bits, low, drop), torch.empty_like(x)
    call("lookup", x, table, count, numbers, numbers.itemsize, x.numel(), *place, out)
    return out


def to_planes(values: Tensor, bits: int, drop: int = 0) -> Tensor | None:
    if not whole(values) or drop < 0 or not 0 < bits <= 64 - drop:
        return None
    out = torch.empty(bits, (values.numel() + 63) // 64, dtype=torch.int64)
    call("to_planes", values, values.numel(), drop, bits, out)
    return out


def from_plane(plane: Tensor, count: int) -> Tensor | None:
    if not whole(plane) or not 0 <= count <= 64 * plane.numel():
        return None
    out = torch.empty(count, dtype=torch.int64)
    call("from_plane", plane, count, out)
    return out


def compare_blocks(planes: Tensor, number: int, products: Tensor) -> tuple[Tensor, Tensor] | None:
    if planes.dim() != 2 or not whole(planes, products):
        return None
    bits, wide = planes.shape
    if not 2 <= bits <= 64 or products.shape != ((bits + 2) // 4, 16, wide):
        return None
    wires, top = products.new_empty(2 * len(products), wide), products.new_empty(wide)
    call("compare_blocks", planes, products, wide, bits, number, wires, top)
    return wires, top


def join(
    rows: Tensor, factors: Tensor, masks: Tensor, products: Tensor, wires: Tensor, opened: Tensor, leader: bool
) -> Tensor | None:
    if rows.dim() != 3 or factors.dim() != 3 or not whole(rows, factors, masks, products, wires, opened):
        return None
    (outputs, most, n), wide = factors.shape, opened.shape[-1]
    count = len(masks) + len(products) + len(wires)
    if n > _MOST_FACTORS or rows.shape != (outputs, most, 1 << n) or not outputs or not most:
        return None
    if any(x.dim() != 2 or x.shape[1] != wide for x in (masks, products, wires, opened)):
        return None
    if not _are_places(rows, 2 + count) or not _are_places(factors, 1 + len(opened)):
        return None
    out = opened.new_empty(outputs, wide)
    shares = (masks, len(masks), products, len(products), wires)
    call("join", rows, factors, outputs, most, n, *shares, opened, leader, wide, out)
    return out


def corrected_children(nodes: Tensor, becomes: Sequence[Tensor], words: Tensor, at: int) -> Tensor | None:
    if not _are_nodes(nodes, becomes, words) or len(becomes) != 2 or not 0 <= at <= words.shape[1] - 2:
        return None
    n, m, _ = nodes.shape
    out = nodes.new_empty(n, 2 * m, 2)
    call("corrected_children", nodes, *becomes, words, at, words.shape[1], n, m, out)
    return out


def deal_level(
    ways: Tensor, becomes: Sequence[Tensor], path: Tensor, shift: int, words: Tensor, at: int
) -> Tensor | None:
    n = len(path)
    if ways.shape != (2, n, 2) or len(becomes) != 4 or path.shape != (n,) or words.dim() != 2 or len(words) != n:
        return None
    if not whole(ways, path, words) or not whole(*becomes, like=ways[0]) or not 0 <= shift < 64:
        return None
    if not 0 <= at <= words.shape[1] - 2:
        return None
    out = ways.clone()
    call("deal_level", *out.unbind(), becomes, path, shift, words, at, words.shape[1], n)
    return out


def leaf_numbers(
    nodes: Tensor, becomes: Sequence[Tensor], words: Tensor, at: int, negative: bool, out: Tensor
) -> Tensor | None:
    if not _are_nodes(nodes, becomes, words) or at < 0:
        return None
    (n, m, _), blocks, size = nodes.shape, len(becomes), 8 * (words.shape[1] - at)
    if not 0 < size <= 16 * blocks <= 16 * _MOST_BLOCKS or not _whole_numbers(out, tuple(out.shape)):
        return None
    if out.nbytes != n * m * size:
        return None
    more = (n, m, blocks, size // out.itemsize, out.itemsize, negative)
    call("leaf_numbers", nodes, becomes, words, at, words.shape[1], *more, out)
    return out


def matmul(x: Tensor, y: Tensor, bits: int = 64) -> Tensor | None:
    if x.dtype is not torch.int64 or y.dtype not in _INTEGERS:
        return None
    if min(x.dim(), y.dim()) < 2 or not x.is_cpu or not y.is_cpu or x.shape[-1] != y.shape[-2]:
        return None
    shape = (*x.shape[:-1], y.shape[-1])
    if y.dim() == 2:
        x = x.reshape(-1, x.shape[-1])
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])  # torch's own imports sympy: tens of MB in every process
    x, y = x.expand(*batch, *x.shape[-2:]), y.expand(*batch, *y.shape[-2:])
    dims = [dim for dim, length in enumerate(batch) if length != 1]
    if len(dims) > 2:
        parts = [matmul(*pair, bits) for pair in zip(x.unbind(dims[0]), y.unbind(dims[0]), strict=True)]
        return None if any(part is None for part in parts) else torch.stack(parts, dims[0])  # type: ignore[arg-type]
    out = torch.empty(*batch, x.shape[-2], y.shape[-1], dtype=torch.int64)
    if not out.numel():
        return None
    missing = 2 - len(dims)
    sizes = [1] * missing + [batch[dim] for dim in dims] + [*x.shape[-2:], y.shape[-1]]
    for stride in (x.stride(), y.stride()):
        sizes += [0] * missing + [stride[dim] for dim in dims] + [*stride[-2:]]
    scratch = torch.empty(constant("matmul_scratch"), dtype=torch.int64)
    call("matmul", x, y, y.itemsize, bits, torch.tensor(sizes), scratch, out)
    return out.view(shape if y.dim() == 2 else out.shape)


def linear32(x: Tensor, weight: Tensor) -> Tensor | None:
    if not _are_rows(torch.int32, x) or not (_are_rows(torch.int8, weight) or _are_rows(torch.int16, weight)):
        return None
    (rows, inner), outputs = x.shape, len(weight)
    if weight.shape[1] != inner or not inner:
        return None
    step = constant("linear32_padded")
    padded = -(-inner // step) * step
    out = torch.empty(rows, outputs, dtype=torch.int32)

    def product(first: int, end: int) -> None:
        scratch = torch.empty(rows + (padded - 1) // inner, padded, dtype=torch.int32)
        to = out.data_ptr() + first * out.itemsize
        call("linear32", x, weight[first:end], weight.itemsize, rows, inner, end - first, scratch, to, outputs)

    threads = max(1, min(cores(), MOST_THREADS, rows * inner * outputs // _PRODUCTS, outputs))
    bounds = [outputs * part // threads for part in range(threads + 1)]
    side_by_side(lambda ends: product(*ends), list(itertools.pairwise(bounds)))
    return out


def quantised(x: Tensor, most: int, norm: float) -> tuple[Tensor, Tensor] | None:
    if not _are_rows(torch.float32, x):
        return None
    q, step = torch.empty_like(x, dtype=torch.int32), torch.empty(len(x), dtype=torch.float64)
    call("quantise_rows", x, *x.shape, most, norm * (1 << 20), q, step)
    return q, step


def pack24(x: Tensor) -> bytearray | None:
    if x.dtype is not torch.int32 or not x.is_contiguous() or not x.is_cpu or not x.numel():
        return None
    out = bytearray(3 * x.numel())
    call("pack24", x, x.numel(), torch.frombuffer(out, dtype=torch.uint8).data_ptr())
    return out


def unpack24(data: bytearray | memoryview, shape: tuple[int, ...]) -> Tensor | None:
    out = torch.empty(shape, dtype=torch.int32)
    if not out.numel() or len(data) != 3 * out.numel():
        return None
    call("unpack24", torch.frombuffer(data, dtype=torch.uint8).data_ptr(), out.numel(), out)
    return out


def open_rows(
    y: Tensor, s: Tensor, q: Tensor, rho: Tensor, u: Tensor, step: Tensor, scale: Tensor, ring: int, out: Tensor
) -> Tensor | None:
    (rows, outputs), inner = y.shape, q.shape[1]
    if not _are_rows(torch.int32, y, s, q) or not _are_rows(torch.int64, rho, u):
        return None
    if not _are_rows(torch.float64, step[None]) or not _are_rows(torch.float32, scale[None], out) or not 0 < ring <= 32:
        return None
    if not s.shape == out.shape == y.shape or len(q) != rows or rho.shape != (2, outputs) or u.shape != (2, inner):
        return None
    if step.shape != (rows,) or scale.shape != (outputs,):
        return None
    hold = torch.empty(rows, dtype=torch.bool)
    call("open_rows", y, s, q, rho, u, step, scale, rows, outputs, inner, 32 - ring, out, hold)
    return hold


def _are_rows(dtype: torch.dtype, *matrices: Tensor) -> bool:
    return all(x.dtype is dtype and x.dim() == 2 and x.is_contiguous() and x.is_cpu for x in matrices)


def _are_nodes(nodes: Tensor, becomes: Sequence[Tensor], words: Tensor) -> bool:
    """Whether these are nodes [n, m, 2], what they become, and words for each row."""
    if nodes.dim() != 3 or nodes.shape[2] != 2 or words.dim() != 2 or len(words) != len(nodes):
        return False
    return whole(nodes, *becomes, like=nodes) and whole(words)


def fold(leaves: Tensor, known: bool, start: int, planes: Tensor, total: Tensor) -> Tensor | None:
    lanes, count, depth = transfer_lanes(), total.numel(), len(planes)
    if not lanes or not 0 < depth <= _MOST_DEPTH or leaves.shape != (1 << depth, 4) or count % 8 or start < 0:
        return None
    if not whole(leaves, planes, total) or total.shape != (count,) or planes.shape != (depth, count):
        return None
    call("fold", leaves, depth, not known, start, count, lanes, planes, total)
    return total


def transpose_planes(planes: Tensor, rows: Tensor) -> Tensor | None:
    if not constant("transfer_lanes") or planes.dim() != 2 or len(planes) != 128 or planes.shape[1] % 8:
        return None
    if not whole(planes, rows) or rows.shape != (64 * planes.shape[1], 2):
        return None
    call("transpose_planes", planes, planes.shape[1], rows)
    return rows


def hash_rows(rows: Tensor, offset: Tensor, first: int, key: Tensor, width: int, out: Tensor) -> Tensor | None:
    lanes, count = transfer_lanes(), len(rows)
    if not lanes or count % 64 or rows.shape != (count, 2) or offset.shape != (2,) or key.shape != (2,):
        return None
    if not whole(rows, offset, key, out) or not 0 <= width <= 8 or out.shape != ((count if width else count // 64),):
        return None
    call("hash_rows", rows, count, offset, first, key, width, lanes, out)
    return out


def check_sums(planes: Tensor, factors: Tensor) -> Tensor | None:
    lanes = transfer_lanes()
    if not lanes or planes.dim() != 2 or not whole(planes, factors):
        return None
    n, count = planes.shape
    if count % 8 or factors.shape != (count,):
        return None
    out = torch.empty(n, 2, dtype=torch.int64)
    call("check_sums", planes, n, count, factors, lanes, out)
    return out


def grow_nodes(nodes: Tensor, key: Tensor, children: Tensor) -> Tensor | None:
    lanes = transfer_lanes()
    if not lanes or nodes.dim() != 3 or nodes.shape[2] != 2 or key.shape != (2,) or not whole(nodes, key, children):
        return None
    trees, width, _ = nodes.shape
    if not width or children.shape != (trees, 2 * width, 2):
        return None
    sums = torch.empty(trees, 2, 2, dtype=torch.int64)
    call("grow_nodes", nodes, trees, width, key, lanes, children, sums)
    return sums


def add_code(rows: Tensor, secret: Tensor, key: Tensor) -> Tensor | None:
    lanes, count = transfer_lanes(), len(rows)
    if not lanes or count % _CODE_ROWS or rows.shape != (count, 2) or secret.shape != (1 << 16, 2) or key.shape != (2,):
        return None
    if not whole(rows, secret, key):
        return None
    call("add_code", rows, count, secret, key, lanes)
    return rows


def transfer_lanes() -> int:
    """Blocks of AES at once, of the kernels of oblivious transfer; 0: there are none, or this processor lacks AES."""
    if not {"aes", "pclmulqdq"} <= features():
        return 0
    most = constant("transfer_lanes")
    return most if {"vaes", "vpclmulqdq"} <= features() else min(most, 1)


def _is_place(bits: int, low: int, drop: int) -> bool:
    """Whether these are bits of a word: of all that is looked up, of a place in a cell, of those that are dropped."""
    return 0 <= drop <= low <= bits <= 64 and 1 << bits - low <= _MOST_CELLS


def _are_bits_of_cells(cells: Tensor, x: Tensor, bits: int) -> bool:
    """Whether these are a bit for each of 2^bits cells of each x: integers that hold them, or several of 64."""
    size, wide = (max(1, (1 << bits) // 8), 1) if bits <= 6 else (8, 1 << bits - 6)
    return cells.itemsize == size and _whole_numbers(cells, (*x.shape, 1, wide))


def _are_places(indices: Tensor, count: int) -> bool:
    if not indices.numel():
        return True
    low, high = (int(edge) for edge in indices.aminmax())
    return low >= 0 and high < count


def _whole_numbers(x: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether it is an array of signed integers, of any width, that a kernel can read."""
    return x.is_cpu and x.is_contiguous() and x.shape == shape and x.dtype in _INTEGERS
