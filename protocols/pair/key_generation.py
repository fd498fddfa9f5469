"""Keys of points (beaver/point_function.py) without a dealer: the two parties make the words that it would send.

Doerner and Shelat, "Scaling ORAM for secure computation" (https://eprint.iacr.org/2017/827), section 4. Each party
grows the whole tree from its root. Off the way to the secret cell both have the same nodes, so the exclusive or of all
of a party's left children, and of all right ones, is a share of the two children on the way:

word       by level. The lost child is the right one, with both children added where the shared bit of the way turns
           right: one `chosen` of 128 bits. Both open it, with the bits that correct the children's
last word  the sums of each party's numbers are shares of what the two leaves on the way differ by, and `in_cells` of
           what the last bits choose in a leaf. Its sign is the second party's bit there: the numbers of set bits differ
           by 1 or by -1, and modulo 4 the upper bit of that difference is an exclusive or of what each party knows

The trees of all points of a group grow together, and groups side by side: two rounds a level.

Who learns what. Both learn the words but the last, and the server the last: the keys, which the server passes on to the
client in any case. AES's keys are public, and go to the client first. All else is masked (steps.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..beaver.lookup import CellPoint
from ..beaver.point_function import (
    KEYS,
    Hashes,
    PointLayout,
    corrected_children,
    leaf_numbers,
    root_nodes,
    sets_of,
)
from ..rounds import Step, Swap, together
from .places import cell_of, in_cells, rests_of
from .steps import Derivation, Pair


@dataclass(frozen=True)
class KeyWords:
    """The words of a group's points. `roots`: this party's [n, 2]; `keys`: AES's, at the server."""

    layout: PointLayout
    points: tuple[CellPoint, ...]
    runs: int
    roots: Tensor
    keys: Tensor | None


def key_words(pair: Pair, recipe: KeyWords, job: Derivation) -> Step:
    layout, runs = recipe.layout, recipe.runs
    if recipe.keys is not None:
        keys = recipe.keys
        yield [Swap(keys, None)]
    else:
        (keys,) = yield [Swap(None, (runs * sets_of(len(recipe.roots) // runs), KEYS, 2))]
    places = yield from together(*(cell_of(pair, point.rho) for point in recipe.points))
    rests = yield from together(*(rests_of(pair, point.rho, point.count) for point in recipe.points))
    bits = torch.cat([bits.view(len(bits), runs, -1) for bits in places], 2).flatten(1)
    numbers = torch.cat([rest.view(runs, -1, layout.columns) for rest in rests], 1).flatten(0, 1)

    within, width = layout.together.bit_length() - 1, layout.dtype.itemsize
    tree = _Tree(pair, layout, recipe.roots, keys, runs)
    way, leaf = bits[within:].flip(0), in_cells(pair, bits[:within], numbers, width)
    _, leaf = yield from together(tree.grown(way), leaf)
    return (yield from tree.last_word(leaf, width))


class _Tree:
    """This party's trees of all points, and the words as they come."""

    def __init__(self, pair: Pair, layout: PointLayout, roots: Tensor, keys: Tensor, runs: int) -> None:
        self.pair, self.layout = pair, layout
        self.words = torch.zeros(len(roots), layout.words, dtype=torch.int64)
        self._none = torch.zeros_like(self.words)
        self._nodes = root_nodes(roots, 0 if pair.leader else 1)[:, None]
        self._hashes = Hashes(keys, len(roots), runs, len(roots) << layout.levels)

    def grown(self, way: Tensor) -> Step:
        """Along shared bits [levels, n] of the way, from the root on."""
        pair, nodes, count = self.pair, self._nodes, len(self.words)
        choosers = []
        for turn in way:
            choosers.append(pair.chooser(turn.repeat_interleave(2)))
        for level, (turn, by) in enumerate(zip(way, (yield from together(*choosers)), strict=True)):
            becomes, at = self._hashes.of(nodes, 2), 2 * level
            children = corrected_children(nodes, becomes, self._none, at).view(count, -1, 2, 2)
            left, right = _sum(children).unbind(1)
            both = yield from pair.chosen(by, (left ^ right).view(-1), xor=True)
            mine = right ^ both.view(right.shape)
            bits = left[:, 0] & 1 ^ turn ^ int(pair.leader) | (right[:, 0] & 1 ^ turn) << 1
            mine = torch.stack([mine[:, 0] & ~3 | bits, mine[:, 1]], -1)
            (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
            self.words[:, at : at + 2] = mine ^ theirs
            nodes = corrected_children(nodes, becomes, self.words, at)
        self._nodes = nodes

    def last_word(self, leaf: Tensor, width: int) -> Step:
        """All words at the server. `leaf`: shares of what must stand on the way [n, cells, columns]."""
        layout, nodes, leader = self.layout, self._nodes, self.pair.leader
        numbers = torch.empty(len(nodes), layout.cells, layout.columns, dtype=layout.dtype)
        becomes = self._hashes.of(nodes, layout.blocks)
        leaf_numbers(nodes, becomes, self._none, 2 * layout.levels, False, numbers)
        total = numbers.view(*nodes.shape[:2], -1).sum(1, dtype=torch.int64)
        share = leaf.flatten(1) + (-total if leader else total)
        set_ = (nodes[..., 0] & 1).sum(1)
        negative = set_ >> 1 & 1 if leader else (set_ >> 1 ^ set_) & 1
        turned = yield from self.pair.times_bits(negative[:, None].expand(share.shape), share, width)
        last = yield from self.pair.settled(share - 2 * turned, width, torch.zeros_like(share))
        if not leader:
            return None
        self.words[:, 2 * layout.levels :] = last.to(layout.dtype).contiguous().view(torch.int64)
        return self.words


def _sum(children: Tensor) -> Tensor:
    """The exclusive or over [n, m, ...], m a power of two."""
    while (half := children.shape[1] // 2) > 0:
        children = children[:, :half] ^ children[:, half:]
    return children[:, 0]
