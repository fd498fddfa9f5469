"""An affine form in slots: for every rotation of a ciphertext, the plaintext that the rotated one is multiplied by.

    y[i] = sum_s D_s[i] x[i + s]         s = q + b:    y = sum_q rotate_q( sum_b rotate_-q(D_s) * rotate_b(x) )

Baby steps b are rotations of the source, shared by all that reads it; giant steps q are rotations of sums. Their
number together is about twice the root of the number of diagonals (S. Halevi and V. Shoup, CRYPTO 2018).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .affine import AffineForm
from .packing import Layout, Packing

Array = np.ndarray


@dataclass(frozen=True)
class Product:
    """One plaintext product: `source` (a ciphertext) rotated by `baby`, times `diagonal`, [slots]."""

    source: int
    baby: int
    diagonal: Array


@dataclass(frozen=True)
class Block:
    """What one ciphertext of the result is made of: products by giant step, and a constant, [slots]."""

    giants: dict[int, list[Product]]
    constant: Array


def blocks_of(
    form: AffineForm, target: Layout, bases: Mapping[int, tuple[Layout, Sequence[int]]], packing: Packing
) -> list[Block]:
    """The form, laid out as `target`, from its bases: layout and ciphertexts of each by number."""
    diagonals: dict[tuple[int, int, int], Array] = {}  # (block of the result, ciphertext, rotation) -> diagonal
    features = form.shape[-1]
    for term in form.terms:
        layout, ciphertexts = bases[term.base]
        support = term.support[:, None, :]  # [R, 1, S]
        element = np.arange(form.size).reshape(-1, features)
        weights = term.matrix[term.kind]  # [R, F, S]
        reads = np.broadcast_to((term.matrix != 0).any(0)[None], weights.shape)  # alike for all rows, whatever weights
        where = np.nonzero(reads)
        out, source, weight = element[where[0], where[1]], support[where[0], 0, where[2]], weights[where]
        for copy in range(target.everywhere.shape[1]):
            to = target.everywhere[out, copy]
            slot = (layout.everywhere[:, copy] if layout.same(target) else layout.slot)[source]
            _accumulate(
                diagonals, to, target.block[out], layout.block[source], slot, weight, ciphertexts, packing.slots
            )
    step = baby_modulus([(source, s) for _, source, s in diagonals], [(block, s) for block, _, s in diagonals], packing)
    constants = target.spread(form.constant.reshape(-1))
    blocks = [Block({}, constants[b]) for b in range(target.blocks)]
    for (block, source, s), diagonal in sorted(diagonals.items(), key=lambda item: item[0]):
        baby, giant = s % step, s - s % step
        product = Product(source, baby, np.roll(diagonal, giant))
        blocks[block].giants.setdefault(giant, []).append(product)
    return blocks


def _accumulate(
    diagonals: dict[tuple[int, int, int], Array], to: Array, block: Array, source_block: Array, source_slot: Array,
    weight: Array, ciphertexts: Sequence[int], slots: int
) -> None:  # fmt: skip
    shift = (source_slot - to) % slots
    key = (block * len(ciphertexts) + source_block) * slots + shift
    distinct, index = np.unique(key, return_inverse=True)
    table = np.bincount(index.reshape(-1) * slots + to, weights=weight, minlength=len(distinct) * slots)
    for k, diagonal in zip(distinct.tolist(), table.reshape(-1, slots), strict=True):
        pair, s = divmod(k, slots)
        name = (pair // len(ciphertexts), ciphertexts[pair % len(ciphertexts)], s)
        diagonals[name] = diagonals[name] + diagonal if name in diagonals else diagonal


def baby_modulus(reads: list[tuple[int, int]], writes: list[tuple[int, int]], packing: Packing) -> int:
    """The power of two below which a rotation is a baby step: the one with the fewest rotations in all."""
    best, least = packing.slots, len(set(reads))
    for power in range(packing.slots.bit_length()):
        step = 1 << power
        count = len({(c, s % step) for c, s in reads if s % step}) + len(
            {(b, s - s % step) for b, s in writes if s >= step}
        )
        if count < least:
            best, least = step, count
    return best
