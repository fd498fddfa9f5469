"""Evaluations of what follows from where a secret stands: tables' cells, exponentials and waves of a mask.

With rho = -a, a = a0 + a1 a mask's shares, party i knows its part -a_i, of which it takes k, or f, bits. rho's bits are
those of the two parts and of the carries between them (steps.py).

    CellBits       r_H bit by bit doubles one cell, which is set, to two, of which one is set: products of bits
    CellNumbers    the same with numbers: powers of -r_L in one cell, times a bit of r_H, are those of the upper half
    CellPoint      key_generation.py
    ExpNumbers     r_L = l_0 + l_1 - 2^f c, of the parties' low parts and of the carry c out of them. So e^-r_L is a
                   factor of the server's times one of the client's, which has c as well: the server picks among the
                   client's by its share of c. One crossed product of 31 bits each, shifted; then times the bits b_r
    Waves          cos n t (p_0 + p_1) and sin n t (p_0 + p_1) are a complex product of what each knows: two sums of
                   crossed products of as many bits as the results have, and 4 more; what each party gets is shifted

Exponentials are less than a unit off, and by 2^-20 of themselves, waves two; a dealer's are half a unit off.

Who learns what: nothing but what steps.py and crossed products say. Each party's own part is uniform, and no other's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..beaver.bitslice import from_plane, plane_by_run, planes_by_run
from ..beaver.cells import WORD, CellBits, ExpNumbers
from ..beaver.fourier import Waves, waves
from ..beaver.lookup import CellNumbers, MaskPlace, Place
from ..rounds import Step
from .factors import Factor, powers
from .steps import Derivation, One, Pair

FULL = 8  # bytes of the ring
FACTOR = 31  # bits of a factor of an exponential: the product keeps the ring's top bit for its wrap
FINER, MOST_OF_WAVES = 4, 29  # bits of a factor of a wave, more than the result's, and at most


def negated_bits(pair: Pair, mask: Tensor, bits: int, drop: int, runs: int) -> One:
    """Planes of minus a mask, from `drop` to `bits`."""
    carries = yield from _negated_carries(pair, mask, bits - 1, runs)
    return (planes_by_run(-mask, bits, 0, runs) ^ carries)[drop:]


def _negated_carries(pair: Pair, mask: Tensor, bits: int, runs: int) -> One:
    """Of the parts of minus a mask, into each of the low bits and out of the last: planes [bits + 1, W]."""
    key = ("negated", id(mask), bits, runs)
    return pair.once(key, lambda: pair.carries(planes_by_run(-mask, bits, 0, runs)))


def _carry(pair: Pair, mask: Tensor, at: Place, bit: int) -> One:
    """This party's share of the carry into a bit, of each element [n]."""
    carries = yield from _negated_carries(pair, mask, max(at.bits - 1, bit), 1)
    return from_plane(carries[bit], mask.numel())


def cell_of(pair: Pair, rho: MaskPlace) -> One:
    """This party's shares of the bits of r_H, from the lowest [bits, n]."""
    at, count = rho.at, rho.mask.numel()
    planes = yield from negated_bits(pair, rho.mask, at.bits, at.low, 1)
    return torch.stack([from_plane(plane, count) for plane in planes]) if at.cells > 1 else planes.new_empty(0, count)


def rests_of(pair: Pair, rho: MaskPlace, count: int) -> One:
    """The powers below `count` of -r_L [n, count]."""
    ones = torch.full((rho.mask.numel(),), int(pair.leader))
    if count == 1:
        return ones[:, None]
        yield []
    key = ("rest", id(rho.mask), rho.at)
    rest = yield from pair.once(key, lambda: _rest(pair, rho))
    number, more = Factor(rest, max(2, rho.at.fine)), []
    for exponent in range(1, count):
        more.append((yield from powers(pair, key, number, exponent, FULL)))
    return torch.stack([ones, *more], -1)


def _rest(pair: Pair, rho: MaskPlace) -> One:
    """-r_L: minus both parts and the carry from what is dropped, and plus the carry out of them."""
    at, mask = rho.at, rho.mask
    share = -((-mask.reshape(-1) & (1 << at.low) - 1) >> at.drop)
    out = yield from _carry(pair, mask, at, at.low)
    if at.drop:
        into = yield from _carry(pair, mask, at, at.drop)
        out, into = (yield from pair.number(torch.cat([out, into]), FULL)).view(2, -1)
        share = share - into
    else:
        out = yield from pair.number(out, FULL)
    return share + (out << at.fine)


def in_cells(pair: Pair, bits: Tensor, numbers: Tensor, width: int) -> One:
    """Numbers [n, columns] in the cell that shared bits [k, n] name, from the lowest: [n, 2^k, columns]."""
    cells = numbers[:, None]
    for bit in bits:
        upper = yield from pair.times_bits(bit[:, None, None].expand(cells.shape), cells, width)
        cells = torch.cat([cells - upper, upper], 1)
    return cells


def cell_bits(pair: Pair, recipe: CellBits, job: Derivation) -> Step:
    """One plane a cell, of all x; doubled bit by bit of r_H."""
    mask, at = recipe.rho.mask, recipe.rho.at
    planes = yield from negated_bits(pair, mask, at.bits, at.low, 1)
    cells = planes.new_full((1, planes.shape[1]), -1 if pair.leader else 0)
    for plane in planes:
        chosen = plane[None]
        if len(cells) > 1:
            chosen = yield from pair.both(cells, plane.expand(cells.shape))
        cells = torch.cat([cells ^ chosen, chosen])
    share = mask.new_zeros(mask.numel(), job.shape[-1])
    for cell in range(at.cells):
        bit = from_plane(cells[-cell % at.cells], mask.numel())
        share[:, cell // WORD] |= bit << cell % WORD
    return (yield from pair.settled_bits(share.view(job.shape), job.width, job.share))


def cell_numbers(pair: Pair, recipe: CellNumbers, job: Derivation) -> Step:
    numbers = yield from rests_of(pair, recipe.rho, recipe.count)
    bits = yield from cell_of(pair, recipe.rho)
    share = yield from in_cells(pair, bits, numbers, job.width)
    return (yield from pair.settled(share.view(job.shape), job.width, job.share))


def exp_numbers(pair: Pair, recipe: ExpNumbers, job: Derivation) -> Step:
    """What is dropped of r_L is read all the same: it is less than a unit."""
    mask, at, masks = recipe.rho.mask, recipe.rho.at, recipe.masks
    carry = yield from _carry(pair, mask, at, at.low)
    number = yield from _exponential(pair, -mask.reshape(-1) & (1 << at.low) - 1, carry, at.low, recipe.rate)
    number = yield from pair.shifted(number, 2 * FACTOR - recipe.fraction, 64, job.width)
    bits = torch.stack([plane_by_run(plane, mask.numel(), recipe.runs) for plane in masks])
    products = yield from pair.times_bits(bits, number.expand(bits.shape), job.width)
    share = torch.cat([number[None], products]).T
    return (yield from pair.settled(share.reshape(job.shape), job.width, job.share))


def _exponential(pair: Pair, own: Tensor, carry: Tensor, bits: int, rate: float) -> One:
    """e^(-rate r / 2^bits) with twice the bits of a factor, r = l_0 + l_1 - 2^bits c of `own` and of a shared carry.

    A factor of e^-rate with so few bits would be too rough where c undoes it. So both parties leave out the top bit of
    their part, which would halve the exponent, and the client's factor makes up for it: the server picks it by its top
    bit t, by its share s of c, and by both.
    """
    top = own >> bits - 1 & 1
    factor = torch.exp((own - (top << bits - 1)).double() * (-rate / (1 << bits)))

    def whole(halves: Tensor | int) -> Tensor:
        return (factor * 2.0**FACTOR * torch.exp(rate / 2 * torch.as_tensor(halves).double())).round_().long()

    if pair.leader:
        picks = torch.stack([top, carry, top & carry])
    else:
        # By t and s: c = 2 halves, less a half for each top bit.
        none, by_top, by_carry, by_both = (whole(2 * (carry ^ s) - top - t) for s in (0, 1) for t in (0, 1))
        picks = torch.stack([by_top - none, by_carry - none, by_both - by_top - by_carry + none])
    share = (yield from pair.picked(picks.view(-1), FULL)).view(3, -1).sum(0)
    if not pair.leader:
        share = share + none
    mine = whole(0) if pair.leader else share
    (crossed,) = yield from pair.multiplied(mine[None, None], mine[None], FULL, 64 + FACTOR)
    return crossed + mine * share if pair.leader else crossed


def mask_waves(pair: Pair, recipe: Waves, job: Derivation) -> Step:
    """C + iS = (C_0 + i S_0) (C_1 + i S_1). What both parties get of it are integers below 2^62, which add up exactly:
    so each is shifted by itself."""
    bits = min(recipe.fraction + FINER, MOST_OF_WAVES)
    part = (-recipe.periods * recipe.mask & (1 << recipe.bits) - 1).double() * (2 * math.pi / (1 << recipe.bits))
    cosine, sine = waves(part.cos(), part.sin(), recipe.count, bits).unbind(-1)
    turned = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    share, lack = yield from pair.crossed("product", turned, torch.stack([cosine, sine]), FULL, bits=2 * bits + 2)
    drop = 2 * bits - recipe.fraction
    share = share + (1 << drop - 1) >> drop
    if not pair.leader:
        lack = lack + (1 << drop - 1) >> drop
    share = share + (yield from pair.picked(lack.reshape(-1), job.width)).view(share.shape)
    return (yield from pair.settled(share.movedim(0, -1).reshape(job.shape), job.width, job.share))
