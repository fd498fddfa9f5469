"""What the two parties do for each recipe: from shares of what it reads to the server's correction.

    PrivateProduct     one crossed product; of matrices the client's share is chosen, so nothing else is sent
    MaskProduct        factors.py, by the bits of both masks
    MaskMatrixProduct  two crossed products
    Power              products of powers, which several recipes share (factors.py)
    WrappedPower       the wrap, a bit, times lower powers
    BitsAbove, TopBit  the carries of the mask's shares (steps.py), which both read; a bit as a number
    Divided            the carry alone
    SubsetProducts     products of bits, by size of the subset
    BlockProducts      rho's bits by carries, once for all that read them, then products; TopBits likewise
    BitNumbers         bits as numbers
    Zeros              the client sends minus its share, which both may know: it is for a third

Cells, exponentials and waves: places.py; keys: key_generation.py. Of a recipe that is not here, nothing is sent:
CorrelationError.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import torch
from torch import Tensor

from ..beaver.bitslice import plane_by_run, to_planes
from ..beaver.cells import CellBits, ExpNumbers
from ..beaver.compare import BLOCK, BlockProducts, MaskBits, TopBits, in_blocks
from ..beaver.fourier import Waves
from ..beaver.gates import BitNumbers, SubsetProducts
from ..beaver.lookup import CellNumbers
from ..beaver.product import Power, WrappedPower
from ..beaver.recipes import MaskMatrixProduct, MaskProduct, PrivateProduct, Zeros
from ..beaver.rescale import BitsAbove, TopBit
from ..beaver.reveal import Divided
from ..beaver.source import Recipe
from ..beaver.values import MaskTerm, Shape
from ..errors import CorrelationError
from ..ring import logical_shift, signed
from ..rounds import Step, together
from ..wire import elements
from .factors import Factor, powers, product
from .key_generation import KeyWords, key_words
from .places import FULL, cell_bits, cell_numbers, exp_numbers, mask_waves, negated_bits
from .steps import Derivation, One, Pair


def evaluate(pair: Pair, job: Derivation) -> Step:
    """Returns the correction at the server, None at the client. Errors: CorrelationError."""
    return _evaluation(job.recipe)(pair, job.recipe, job)


def check(recipe: Recipe) -> None:
    """Errors: CorrelationError if two parties cannot evaluate it."""
    _evaluation(recipe)


def _evaluation(recipe: Recipe) -> Callable[[Pair, Any, Derivation], Step]:
    if type(recipe) not in _EVALUATIONS:
        name = type(recipe).__name__
        raise CorrelationError(f"{name}: two parties alone cannot make it yet; compile with a plan of other functions")
    return _EVALUATIONS[type(recipe)]


def _private_product(pair: Pair, recipe: PrivateProduct, job: Derivation) -> Step:
    servers = recipe.servers
    if recipe.ring is not None:
        known = torch.zeros((), dtype=torch.int64).expand(recipe.weight_shape) if servers is None else servers
        share = yield from pair.crossed("linear", recipe.clients, known, job.width, job.share, recipe.weight)
        return share if pair.leader else None
    clients = recipe.clients.expand(job.shape)[None, None]
    known = torch.zeros((), dtype=torch.int64) if servers is None else servers
    known = known.expand(job.shape)[None]
    (share,) = yield from pair.multiplied(clients, known, job.width, name=recipe.weight)
    return (yield from pair.settled(share, job.width, job.share))


def _factor(term: MaskTerm, shape: Shape | None = None) -> Factor:
    share = term.value >> term.zeros
    return Factor(share if shape is None else share.expand(shape), term.bits)


def _mask_product(pair: Pair, recipe: MaskProduct, job: Derivation) -> Step:
    """Of a factor with `zeros`, bits that the shift back by `zeros` drops may be others than the dealer's."""
    left, right = (_factor(term, job.shape) for term in (recipe.left, recipe.right))
    if recipe.left.value is recipe.right.value:
        right = left
    share = yield from product(pair, left, right, job.width)
    return (yield from pair.settled(share, job.width, job.share))


def _matrix_product(pair: Pair, recipe: MaskMatrixProduct, job: Derivation) -> Step:
    left, right = recipe.left, recipe.right
    share = recipe.ring.matmul(left, right)
    ways = pair.crossed("matrix", left, right, job.width), pair.crossed("matrix", right.mT, left.mT, job.width)
    first, second = yield from together(*ways)
    return (yield from pair.settled(share + first + second.mT, job.width, job.share))


def _powers(pair: Pair, low: MaskTerm, exponent: int) -> One:
    return powers(pair, ("power", id(low.value)), _factor(low), exponent, FULL)


def _power(pair: Pair, recipe: Power, job: Derivation) -> Step:
    share = yield from _powers(pair, recipe.low, recipe.exponent)
    return (yield from pair.settled(share, job.width, job.share))


def _wrapped_power(pair: Pair, recipe: WrappedPower, job: Derivation) -> Step:
    """The wrap is a bit times 2^k: so the difference by 2^k is that bit times ((low + 2^k)^e - low^e) / 2^k."""
    low, wrap, exponent = recipe.low, recipe.wrap, recipe.exponent
    steps = [1 << wrap.zeros * (exponent - 1 - power) for power in range(exponent)]
    share = torch.full_like(low.value, signed(steps[0]) if pair.leader else 0)
    for power in range(1, exponent):
        share = share + signed(comb(exponent, power) * steps[power]) * (yield from _powers(pair, low, power))
    share = yield from product(pair, _factor(wrap), Factor(share), job.width)
    return (yield from pair.settled(share, job.width, job.share))


def _carries(pair: Pair, mask: Tensor, bits: int) -> One:
    """Of the mask's shares, into each of the low bits and out of the last."""
    return pair.once(("carries", id(mask), bits), lambda: pair.carries(to_planes(mask.reshape(-1), bits)))


def _bits_above(pair: Pair, recipe: BitsAbove, job: Derivation) -> Step:
    carries = yield from _carries(pair, recipe.mask, recipe.left)
    return (yield from pair.numbers(carries[-1], recipe.mask >> recipe.left, job.width, job.share))


def _top_bit(pair: Pair, recipe: TopBit, job: Derivation) -> Step:
    carries = yield from _carries(pair, recipe.mask, recipe.left)
    top = carries[-2] ^ to_planes(recipe.mask.reshape(-1), 1, recipe.left - 1)[0]
    return (yield from pair.numbers(top, torch.zeros_like(recipe.mask), job.width, job.share))


def _divided(pair: Pair, recipe: Divided, job: Derivation) -> Step:
    """Its bits from ring - bits on are another multiple than the dealer's: nobody reads them."""
    carries = yield from pair.carries(to_planes(recipe.r.reshape(-1), recipe.bits))
    # -(q + carry), as numbers has it of one bit: -q - 1 + (1 - carry).
    carry = ~carries[-1] if pair.leader else carries[-1]
    own = -logical_shift(recipe.r, recipe.bits) - (1 if pair.leader else 0)
    return (yield from pair.numbers(carry, own, job.width, job.share))


def _zeros(pair: Pair, recipe: Zeros, job: Derivation) -> Step:
    return (yield from pair.settled(recipe.value(), job.width, job.share))


def _subset_products(pair: Pair, recipe: SubsetProducts, job: Derivation) -> Step:
    level = recipe.level
    rows: dict[tuple[int, ...], Tensor] = {(wire,): mask for wire, mask in zip(level.opened, recipe.masks, strict=True)}
    for size in range(2, 1 + max(map(len, level.subsets), default=1)):
        subsets = [subset for subset in level.subsets if len(subset) == size]
        factors = (torch.stack([rows[of] for of in some]) for some in _factors(subsets))
        products = yield from pair.both(*factors)
        rows.update(zip(subsets, products, strict=True))
    products = [rows[subset] for subset in level.subsets]
    share = torch.stack(products) if products else recipe.masks.new_empty(job.shape)
    return (yield from pair.settled_bits(share, job.width, job.share))


def _factors(subsets: list[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [subset[:-1] for subset in subsets], [subset[-1:] for subset in subsets]


def _rho(pair: Pair, rho: MaskBits) -> One:
    return negated_bits(pair, rho.mask, rho.bits, rho.drop, rho.runs)


def _block_products(pair: Pair, recipe: BlockProducts, job: Derivation) -> Step:
    planes = yield from _rho(pair, recipe.rho)
    blocks = in_blocks(planes[:-1])
    products = blocks[:, :1]
    for i in range(1, BLOCK):
        bit = blocks[:, i : i + 1]
        more = yield from pair.both(products, bit.expand(products.shape))
        products = torch.cat([products, bit, more], dim=1)
    return (yield from pair.settled_bits(products, job.width, job.share))


def _top_bits(pair: Pair, recipe: TopBits, job: Derivation) -> Step:
    planes = yield from _rho(pair, recipe.rho)
    return (yield from pair.settled_bits(planes[-1], job.width, job.share))


def _bit_numbers(pair: Pair, recipe: BitNumbers, job: Derivation) -> Step:
    bits = plane_by_run(recipe.bits, elements(job.shape), recipe.runs)
    own = torch.zeros(job.shape, dtype=torch.int64)
    return (yield from pair.numbers(to_planes(bits, 1)[0], own, job.width, job.share))


_EVALUATIONS: dict[type, Callable[[Pair, Any, Derivation], Step]] = {
    PrivateProduct: _private_product,
    MaskProduct: _mask_product,
    MaskMatrixProduct: _matrix_product,
    Power: _power,
    WrappedPower: _wrapped_power,
    BitsAbove: _bits_above,
    TopBit: _top_bit,
    Divided: _divided,
    Zeros: _zeros,
    SubsetProducts: _subset_products,
    BlockProducts: _block_products,
    TopBits: _top_bits,
    BitNumbers: _bit_numbers,
    CellBits: cell_bits,
    CellNumbers: cell_numbers,
    KeyWords: key_words,
    ExpNumbers: exp_numbers,
    Waves: mask_waves,
}
