"""Distributed point functions (DPF): shares of numbers that are 0 but in one secret cell, out of short keys.

Boyle, Gilboa and Ishai, "Function secret sharing: improvements and extensions" (https://eprint.iacr.org/2018/707),
figure 1, evaluated in all cells. Each party has a root, a seed of its own. A tree of seeds grows from it: a node's
children are pseudo-random in its seed, and where the node's bit is set both are corrected by the level's word. The
words, the same at both parties, are made so that the parties' nodes are equal off the way to the secret cell, and
independent on it. A leaf becomes numbers, one party's with the sign turned: off the way they add up to 0, and in the
secret cell the last word makes them the dealer's numbers.

What a party sees: its root and the words. These are pseudo-random, whatever the cell and the numbers (the theorem
there). Level by level, the other party's seed on the way is unknown to this party, so a word, which has this seed's
lost child added by exclusive or, is as random as that child is; the next seed on the way is pseudo-random again; and so
are the numbers of the last one, which the last word has added. So the server may read the client's words, as it does:
it passes them on, and they are its own.

A node x, a seed and its bit, becomes H_i(x) = AES_k(x) xor x with k the i-th of four keys: children of the first two, a
leaf's numbers of all. With public keys this is pseudo-random in unknown seeds if AES is an ideal cipher (Guo, Katz,
Wang, Yu, "Efficient and secure multiparty computation from fixed-key block ciphers", https://eprint.iacr.org/2019/074;
Matyas, Meyer, Oseas). The keys are drawn anew for every 512 points. So a guess of a seed is tried on as many points and
their levels, at most 2^13 seeds: 113 of a seed's 126 bits are left at least.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

from ..devices import CPU
from ..kernels import bindings
from ..kernels.library import kernel
from ..wire import held_in, pack, unpack
from .values import Tape

BLOCK = 16  # bytes: AES's, and a node's
KEYS = 4  # of AES, and the most blocks of a leaf
KEY_BYTES = KEYS * BLOCK
POINTS_PER_KEYSET = 512  # points that keys are drawn for
_EVAL_CHUNK_CELLS = 1 << 15  # cells whose seeds are held at once, in a processor's cache
_DEAL_CHUNK_POINTS = 1 << 13  # points whose trees are dealt at once
MAX_BATCH_POINTS = 1 << 12  # points of one run that are dealt together: more save no time, and the dealer holds them
Point = tuple[Tensor, Tensor]  # the cell [n], and the numbers [n, columns] that stand there


class PointRecipe(Protocol):
    """Of what points are computed, and how."""

    def point(self) -> Point:
        """At the dealer."""
        ...


@dataclass(frozen=True)
class PointLayout:
    """`columns` numbers in each of 2^k `cells`, of `width` bytes. A leaf has those of as many cells as fit
    (early termination)."""

    cells: int
    columns: int
    width: int

    @property
    def dtype(self) -> torch.dtype:
        return held_in(self.width)

    @cached_property
    def together(self) -> int:
        """Cells of a leaf."""
        row, cells = self.columns * self.dtype.itemsize, 1
        while cells < self.cells and (2 * cells * row <= KEYS * BLOCK or cells * row % 8):
            cells *= 2
        return cells

    @property
    def leaf(self) -> int:
        """Bytes of a leaf's numbers."""
        return self.together * self.columns * self.dtype.itemsize

    @property
    def blocks(self) -> int:
        return -(-self.leaf // BLOCK)

    @property
    def levels(self) -> int:
        return (self.cells // self.together).bit_length() - 1

    @property
    def words(self) -> int:
        """Elements of 8 bytes in the words of one point."""
        return 2 * self.levels + self.leaf // 8

    @property
    def numbers(self) -> int:
        """Bytes of one point's numbers."""
        return self.cells * self.columns * self.dtype.itemsize

    def dealing(self, count: int) -> int:
        """Bytes that the dealer holds of so many points: roots, cells, numbers, words and their frame; of those that
        are dealt at once nodes and what they become of both parties, numbers, their powers, and leaves."""
        each = 2 * BLOCK + 3 * self.gathered + 3 * 8 * self.words
        return count * each + min(count, _DEAL_CHUNK_POINTS) * (24 * BLOCK + 6 * (self.leaf + 8 * self.columns))

    @property
    def gathered(self) -> int:
        """Bytes of a point's cell and numbers, which the dealer keeps until all points are there."""
        return 8 * (1 + self.columns)

    @property
    def pays(self) -> bool:
        """Whether the words of a point, sent twice, and what is computed for it, cost less than the numbers
        themselves."""
        fits = self.leaf > 0 and self.leaf % 8 == 0 and self.blocks <= KEYS
        return fits and 4 * 8 * self.words <= self.cells * self.columns * self.width


@dataclass(eq=False)
class PointKeys:
    """One party's keys of n points, those of `runs` one after the other: `roots` [n, 2], `words` [n, layout.words], and
    AES's `keys` [runs * sets, KEYS, 2], a set for every POINTS_PER_KEYSET points of a run. The server passes words and
    keys on to the client, ahead of the query. All are on the processor, which has the cipher; `device` gets the
    numbers."""

    layout: PointLayout
    roots: Tensor
    party: int
    words: Tensor | None = None
    keys: Tensor | None = None
    runs: int = 1
    kept: Tensor | None = None
    device: torch.device = CPU

    def keep_numbers(self) -> None:
        """Make the numbers now, ahead of the query."""
        self.kept = self.numbers().to(self.device)
        self.__dict__.pop("_hashes", None)  # and their buffers

    def numbers(self) -> Tensor:
        """This party's shares, [n, cells, columns]."""
        numbers = _numbers(self.layout, len(self.roots))
        for _ in replace(self, device=CPU).parts(into=numbers):
            pass
        return numbers

    def parts(
        self, start: int = 0, count: int | None = None, into: Tensor | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """The numbers of `count` points (None: all) from `start` on; as many at once as a processor's cache holds,
        where they are not made yet. The slices are of these points. `into`: for the numbers of all."""
        count = len(self.roots) - start if count is None else count
        if self.kept is not None:
            yield slice(None), self.kept[start : start + count]
            return
        assert self.words is not None
        layout, rows, hashes = self.layout, self._rows, self._hashes
        for at in range(start, start + count, rows):
            part = slice(at, min(at + rows, start + count))
            words, nodes = self.words[part], root_nodes(self.roots[part], self.party)[:, None]
            for level in range(layout.levels):
                nodes = corrected_children(nodes, hashes.of(nodes, 2, at), words, 2 * level)
            out = into[part] if into is not None else _numbers(layout, len(words))
            becomes, last = hashes.of(nodes, layout.blocks, at), 2 * layout.levels
            here = slice(part.start - start, part.stop - start)
            numbers = leaf_numbers(nodes, becomes, words, last, self.party == 1, out)
            yield here, numbers.to(self.device)

    @property
    def _rows(self) -> int:
        """Points whose numbers are made at once."""
        return max(1, min(_EVAL_CHUNK_CELLS // self.layout.cells, len(self.roots)))

    @cached_property
    def _hashes(self) -> Hashes:
        assert self.keys is not None
        return Hashes(self.keys, len(self.roots), self.runs, self._rows << self.layout.levels)

    def of_run(self, run: int, runs: int) -> PointKeys:
        """Those of one of several runs."""
        parts = (self.roots, self.words, self.keys, self.kept)
        roots, words, keys, kept = (None if x is None else x.view(runs, -1, *x.shape[1:])[run] for x in parts)
        assert roots is not None
        return PointKeys(self.layout, roots, self.party, words, keys, kept=kept, device=self.device)


class PointGroup:
    """Points of one layout that a program's tables are read at, whose keys are dealt, sent and grown together: one
    point takes as long as hundreds.

    label   of the instruction that reads the first, by which roots and keys are drawn
    count   of one run
    cells   at the dealer, by table: [runs * n] cells, and [runs * n, columns] numbers
    recipes of these, where two parties make the keys
    keys    when all points are there, at a party
    """

    def __init__(self, label: str, layout: PointLayout, runs: int) -> None:
        self.label, self.layout, self.runs, self.count = label, layout, runs, 0
        self.cells: list[Point] = []
        self.recipes: list[PointRecipe] = []
        self.keys: PointKeys | None = None
        self._by_run: dict[int, PointGroup] = {}

    def add(self, count: int) -> TablePoints:
        """So many points more, of one run, which one table is read at."""
        self.count += count
        return TablePoints(self, self.count - count, count)

    def points(self) -> Point:
        """Of all tables, run by run."""
        by_table = [(cell.view(self.runs, -1), n.view(self.runs, -1, n.shape[-1])) for cell, n in self.cells]
        cells, numbers = (torch.cat(parts, 1) for parts in zip(*by_table, strict=True))
        return cells.flatten().cpu(), numbers.flatten(0, 1).cpu()

    def of_run(self, run: int) -> PointGroup:
        """Those of one of several runs."""
        if run not in self._by_run:
            assert self.keys is not None
            mine = self._by_run[run] = PointGroup(self.label, self.layout, 1)
            mine.count, mine.keys = self.count, self.keys.of_run(run, self.runs)
        return self._by_run[run]


@dataclass(frozen=True)
class TablePoints:
    """The points that one table is read at, of its group's."""

    group: PointGroup
    start: int
    count: int

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """As of PointKeys."""
        assert self.group.keys is not None
        return self.group.keys.parts(self.start, self.count)

    def of_run(self, run: int) -> TablePoints:
        return TablePoints(self.group.of_run(run), self.start, self.count)


def pack_keys(tape: Tape) -> bytearray:
    """At the server: what the client needs of a query's keys."""
    parts = [part for points in _points_of(tape) for part in (points.words, points.keys) if part is not None]
    return pack(((part, 8) for part in parts), sum(part.nbytes for part in parts))


def take_keys(tape: Tape, data: bytearray, keep: bool = True) -> None:
    """At the client: what the server has passed on. `keep`: make the numbers now, ahead of the query."""
    at = 0
    for points in _points_of(tape):
        count = len(points.roots)
        words, keys = (count, points.layout.words), (sets_of(count), KEYS, 2)
        points.words, points.keys = unpack(data, at, words, 8), unpack(data, at + 8 * math.prod(words), keys, 8)
        at += 8 * (math.prod(words) + math.prod(keys))
        if keep:
            points.keep_numbers()


def sets_of(count: int) -> int:
    """Sets of keys for so many points of one run."""
    return -(-count // POINTS_PER_KEYSET)


def _points_of(tape: Tape) -> list[PointKeys]:
    groups = dict.fromkeys(entry.group for entry in tape.entries() if isinstance(entry, TablePoints))
    return [group.keys for group in groups if group.keys is not None]


def deal_points(
    layout: PointLayout, roots: tuple[Tensor, Tensor], keys: Tensor, points: Point, runs: int = 1
) -> Tensor:
    """At the dealer: the words [n, layout.words] of points, of the parties' roots [n, 2] each."""
    cell, numbers = points
    words, most = torch.zeros(len(cell), layout.words, dtype=torch.int64), max(1, min(len(cell), _DEAL_CHUNK_POINTS))
    hashes = [Hashes(keys, len(cell), runs, most) for _ in roots]
    for at in range(0, len(cell), most):
        part = slice(at, at + most)
        ways = torch.stack([root_nodes(root[part], party) for party, root in enumerate(roots)])
        _deal(layout, ways, hashes, (cell[part], numbers[part]), words[part], at)
    return words


def _deal(layout: PointLayout, ways: Tensor, hashes: Sequence[Hashes], points: Point, words: Tensor, at: int) -> None:
    """Write the words of the points from `at` on. `ways`: the nodes on the way to them [2, n, 2], first the roots."""
    cell, numbers = points
    path = cell // layout.together
    for level in range(layout.levels):
        becomes = [after for one, way in zip(hashes, ways, strict=True) for after in one.of(way, 2, at)]
        ways = deal_level(ways, becomes, path, layout.levels - 1 - level, words, 2 * level)
    leaf = torch.zeros(len(cell), layout.together, layout.columns, dtype=layout.dtype)
    first, second = (
        leaf_numbers(way, one.of(way, layout.blocks, at), words, 2 * layout.levels, False, torch.empty_like(leaf))
        for one, way in zip(hashes, ways[:, :, None], strict=True)
    )
    leaf[torch.arange(len(cell)), cell % layout.together] = numbers.to(layout.dtype)
    last = (leaf - first + second).view(len(cell), -1)
    words[:, 2 * layout.levels :] = torch.where((ways[1, :, :1] & 1).bool(), -last, last).view(torch.int64)


def _numbers(layout: PointLayout, count: int) -> Tensor:
    return torch.empty(count, layout.cells, layout.columns, dtype=layout.dtype)


def root_nodes(seed: Tensor, party: int) -> Tensor:
    """Of roots [n, 2], with the party's bit."""
    return torch.stack([seed[..., 0] & ~3 | party, seed[..., 1]], -1)


class Hashes:
    """What nodes of n points become: of at most `most` nodes at once."""

    def __init__(self, keys: Tensor, count: int, runs: int, most: int) -> None:
        self._keys, each = keys, count // runs
        self._starts = [run * each + at for run in range(runs) for at in range(0, each, POINTS_PER_KEYSET)]
        self._ends = [*self._starts[1:], count]
        self._ciphers: dict[int, CipherContext] = {}  # of the sets that are read
        # `cryptography` wants room for a block that does not come.
        self._buffers = [memoryview(bytearray(BLOCK * (most + 1))) for _ in range(KEYS)]

    def of(self, nodes: Tensor, count: int, at: int = 0) -> list[Tensor]:
        """AES of the nodes [n, ..., 2] of the points from `at` on, under the first `count` keys of each; until the next
        call."""
        plain, results, each = nodes.numpy().data.cast("B"), [], nodes.nbytes // len(nodes)
        first, end = bisect_right(self._starts, at) - 1, at + len(nodes)
        for number, out in enumerate(self._buffers[:count]):
            for set_ in range(first, bisect_left(self._starts, end)):
                start, stop = ((min(max(row, at), end) - at) * each for row in (self._starts[set_], self._ends[set_]))
                self._cipher(KEYS * set_ + number).update_into(plain[start:stop], out[start:])
            results.append(torch.frombuffer(out, dtype=torch.int64, count=nodes.numel()).view(nodes.shape))
        return results

    def _cipher(self, key: int) -> CipherContext:
        if key not in self._ciphers:
            self._ciphers[key] = Cipher(
                algorithms.AES(self._keys[divmod(key, KEYS)].numpy().tobytes()), modes.ECB()
            ).encryptor()
        return self._ciphers[key]


@kernel(bindings.corrected_children)
def corrected_children(nodes: Tensor, becomes: Sequence[Tensor], words: Tensor, at: int) -> Tensor:
    """The children [n, 2m, 2] of nodes [n, m, 2], corrected by the words' two [n] from `at` on."""
    low, high = words[:, at], words[:, at + 1]
    set_ = -(nodes[..., 0] & 1)
    sides = []
    for side, hashed in enumerate(becomes):
        first = ((hashed[..., 0] ^ nodes[..., 0]) & ~2) ^ set_ & (low & ~3 | low >> side & 1)[:, None]
        sides.append(torch.stack([first, hashed[..., 1] ^ nodes[..., 1] ^ set_ & high[:, None]], -1))
    return torch.stack(sides, -2).view(len(nodes), -1, 2)


@kernel(bindings.deal_level)
def deal_level(ways: Tensor, becomes: Sequence[Tensor], path: Tensor, shift: int, words: Tensor, at: int) -> Tensor:
    """The nodes [2, n, 2] that follow on both ways, where bit `shift` of the path [n] turns; the words' two from
    `at` on are written. `becomes`: left and right [n, 2] of the first party's, and of the other's."""
    points, turn = torch.arange(len(path)), path >> shift & 1
    pairs = [(way[:, None], [x[:, None] for x in becomes[2 * i : 2 * i + 2]]) for i, way in enumerate(ways)]
    none = torch.zeros_like(words)
    grown = [corrected_children(way, of, none, at) for way, of in pairs]
    both = grown[0] ^ grown[1]
    lost = both[points, 1 - turn]
    left, right = (both[:, side, 0] & 1 ^ turn ^ 1 - side for side in (0, 1))
    words[:, at], words[:, at + 1] = lost[:, 0] & ~3 | left | right << 1, lost[:, 1]
    return torch.stack([corrected_children(way, of, words, at)[points, turn] for way, of in pairs])


@kernel(bindings.leaf_numbers)
def leaf_numbers(
    nodes: Tensor, becomes: Sequence[Tensor], words: Tensor, at: int, negative: bool, out: Tensor
) -> Tensor:
    """The numbers of leaves [n, m, 2], corrected by the words [n] from `at` on, in `out` [n, ...]."""
    last = words[:, at:].contiguous().view(out.dtype)
    blocks = torch.stack([hashed ^ nodes for hashed in becomes], -2).view(*nodes.shape[:2], -1)
    numbers = blocks.view(out.dtype)[..., : last.shape[1]] + (nodes[..., :1] & 1).to(out.dtype) * last[:, None]
    return out.copy_((-numbers if negative else numbers).view(out.shape))
