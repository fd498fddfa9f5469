"""Whether what a party opens looks uniform, opening by opening and from query to query.

What a party opens is a value of the other side under a mask that it does not know. If every mask is uniform and used
once, every byte of every opening is uniform and independent of all else, and so is its difference from the same opening
of the query before; whatever the values are. A mask that is missing (in some rows, or in the high bits) or used
twice leaves small numbers, whose high bytes are all alike.

So each opening is tested by itself, and so is its difference from that of the last query: the highest and the lowest
byte of its elements, and how many bits its elements have; of bit planes all bytes.

It finds blunders, and proves nothing: bytes that look uniform can tell everything to who knows the masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from blindformer.protocols.rounds import Swap
from torch import Tensor

CELLS = 256
TOP = 29  # bits of an element's highest four bytes, without the first three: a sign, and what a rescale adds
ALARM = 1e-6  # an honest session gives an alarm less often than this
Sample = list[Tensor]


def opened(swap: Swap, theirs: Tensor) -> Tensor:
    """What a party knows after it has received `theirs`: a value under a mask of the other side."""
    mine = swap.kept if swap.send is None else swap.send
    if mine is None:
        return theirs.clone()
    return mine ^ theirs if swap.xor else mine + theirs


def sample(values: Tensor, width: int, xor: bool = False) -> Sample:
    """What is looked at of integers [...] of which `width` bytes matter: the lowest byte, uint8 [n], and the highest
    four, int32 [n], or the highest, uint8 [n], of fewer than four; of bit planes all bytes, uint8 [8 n]."""
    flat = values.reshape(-1)
    if xor:
        return [flat.contiguous().view(torch.uint8)]
    if width < 4:
        return [flat.to(torch.uint8), (flat >> (8 * width - 8)).to(torch.uint8)]
    return [flat.to(torch.uint8), (flat << (64 - 8 * width) >> 32).to(torch.int32)]


def difference(a: Sample, b: Sample) -> Sample:
    return [x - y for x, y in zip(a, b, strict=True)]


def log_p_values(samples: Sequence[Sample]) -> list[float]:
    """Upper bounds of the logarithms of p-values: how often uniform numbers would look at least as uneven.

    Every array gives a test of its (highest) bytes, four bytes also one of the bits that they need. The bounds hold
    for all n: there is no approximation to fail far out, where alarms are.
    """
    arrays = [array for sample in samples for array in sample]
    tops = [array for array in arrays if array.dtype == torch.int32]
    cells = [
        torch.bincount(a if a.dtype == torch.uint8 else (a >> 24).to(torch.uint8), minlength=CELLS) for a in arrays
    ]
    sizes = [torch.bincount(_bits(top), minlength=TOP + 1) for top in tops]
    bounds = [_uneven(torch.stack(cells).numpy())] if cells else []
    bounds += [_small(torch.stack(sizes).numpy())] if sizes else []
    return np.concatenate([np.zeros(1), *bounds])[1:].tolist()


def _bits(top: Tensor) -> Tensor:
    """The bits that signed numbers need, sign aside: 0 to TOP. A float's exponent tells them.

    The two highest of the 32 bits do not count: a rescale adds 2^(w - 2) to what it opens.
    """
    top = top << 2 >> 2
    magnitude = (top ^ (top >> 31)).to(torch.float32)
    return (magnitude.view(torch.int32) >> 23).sub_(126).clamp_(0, TOP).to(torch.uint8)


def _uneven(counts: np.ndarray) -> np.ndarray:
    """Of counts [rows, 256] of byte values. Two tests, as each sees what the other does not, so twice the lesser bound;
    with n bytes and k cells:
        the divergence D of all cells from uniform: P(n D >= x) <= exp(-x) (e x / (k - 1))^(k - 1) for x > k - 1
        (Agrawal 2020, arXiv:1904.02291);
        the fullest cell, of c bytes: k times Chernoff's bound of a binomial's tail, exp(-n D(c / n, 1 / k)).
    """
    n, free = counts.sum(-1), CELLS - 1
    divergence = np.maximum(_entropy(counts, n[:, None] / CELLS).sum(-1), free)
    spread = free - divergence + free * np.log(divergence / free)
    fullest = math.log(CELLS) + _chernoff(counts.max(-1), n, 1 / CELLS)
    return np.minimum(0.0, math.log(2) + np.minimum(spread, fullest))


def _small(counts: np.ndarray) -> np.ndarray:
    """Of counts [rows, TOP + 1] of numbers by the bits they need: for each b, a number needs at most b with a chance of
    2^(b - TOP); Chernoff's bound for the most surprising b, times their number."""
    n, chance = counts.sum(-1, keepdims=True), 2.0 ** np.arange(-TOP, 0)
    return np.minimum(0.0, math.log(TOP) + _chernoff(counts.cumsum(-1)[:, :TOP], n, chance).min(-1))


def _chernoff(count: np.ndarray, n: np.ndarray, chance: float | np.ndarray) -> np.ndarray:
    """Logarithm of a bound of the chance that of n at least so many are `count`; 0 up to the mean."""
    count = np.maximum(count, n * chance)
    return -_entropy(count, n * chance) - _entropy(n - count, n - n * chance)


def _entropy(count: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """count * log(count / expected); 0 where nothing is count."""
    return count * np.log(np.maximum(count, 1e-300) / np.maximum(expected, 1e-300))
