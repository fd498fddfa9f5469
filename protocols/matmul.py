"""Products of matrices modulo 2^64, exact: the one place that decides what computes them.

C kernels compute them wherever they were built, at every level (kernels/matmul.c). Elsewhere torch does: with its own
product of 64-bit integers where that is fast (AVX-512), else with float64 limbs through BLAS. On a GPU, which has no
product of 64-bit integers, matrices are multiplied by their bytes, and batches of them, which are small, by limbs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..levels import level
from .kernels import bindings
from .kernels.library import kernel

_LIMB = 22  # bits of a signed limb: 2^21 2^21 2^11 is 2^53, up to which a float64 is exact
_LIMB_BESIDE_BYTES = 32
_INNER = 1 << 11  # terms that are added up as floats
_INNER_OF_BYTES = 1 << 16  # terms of products of two bytes that are added up in 32 bits
_LEAST_ROWS, _SIDE = 32, 16  # that cuBLAS takes of bytes (https://github.com/pytorch/pytorch/pull/178469)
_RAISED = 0x7F7F7F7F7F7F7F80  # what is subtracted modulo 2^64 to add 128 in each byte
_ROWS_FOR_BLAS = 16  # on ARM, where the kernel has scalars only, from so many rows on (estimated, not measured)


def matmul(x: Tensor, y: Tensor, bits: int = 64) -> Tensor:
    """x @ y modulo 2^64, right in the low `bits` bits. x of 64 bits (or 32, of a ring of 32), y of 8 to 64."""
    if level() == "aarch64" and x.is_cpu and x.dim() > 1 and x.shape[-2] >= _ROWS_FOR_BLAS:
        return matmul_limbs(x, y, bits)
    return _matmul(x, y, bits)


@kernel(bindings.matmul)
def _matmul(x: Tensor, y: Tensor, bits: int = 64) -> Tensor:
    # FBGEMM multiplies integers of 64 bits with AVX-512; without it, torch has a loop that is 30 times slower.
    fast = x.is_cpu and y.shape[-1] >= 64 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if fast or x.is_meta:
        return torch.matmul(x, y.to(x.dtype))
    return matmul_bytes(x, y, bits) if x.is_cuda and y.dim() == 2 else matmul_limbs(x, y, bits)


def matmul_bytes(x: Tensor, y: Tensor, bits: int = 64) -> Tensor:
    """`matmul` of x [..., M, K] by y [K, N] by exact products of signed bytes, summed up in 32 bits, for which GPUs
    have units: of 64 bits 36 of them, or 8 for a y of bytes. On an H100 these are 5 and 7 times as many a second as
    those of `matmul_limbs`, and on a consumer's GPU, which has next to no float64, 50 and more.

    All bytes of x that one byte of y is multiplied with stand in one matrix, below each other.
    """
    rows, inner, columns = x.shape[:-1], x.shape[-1], y.shape[1]
    if inner > _INNER_OF_BYTES:
        starts = range(0, inner, _INNER_OF_BYTES)
        parts = ((start, min(_INNER_OF_BYTES, inner - start)) for start in starts)
        return sum(matmul_bytes(x.narrow(-1, *part), y.narrow(0, *part), bits) for part in parts)  # type: ignore[return-value]
    count = -(-bits // 8)
    of_x = _bytes(x.reshape(-1, inner), count)
    # By columns, which is how all GPUs take it: [bytes, N, K]. The last byte of a narrow y is a carry.
    of_y = y.t()[None] if y.dtype is torch.int8 else _bytes(y.t(), min(count, y.dtype.itemsize + 1))
    shifts = torch.arange(0, 8 * count, 8, device=x.device).view(-1, 1, 1)
    total: Tensor | None = None
    for j, right in enumerate(of_y):
        left = of_x[: count - j].flatten(0, 1)
        pair = _padded(left, _LEAST_ROWS), _padded(right, 1).t()
        sums = torch._int_mm(*pair)[: len(left), :columns]  # type: ignore[attr-defined]
        part = (sums.unflatten(0, (count - j, -1)).to(torch.int64) << shifts[j:]).sum(0)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total.view(*rows, columns).to(x.dtype)


def _bytes(x: Tensor, count: int) -> Tensor:
    """Signed bytes [count, *x.shape], as `_limb` has them, all at once: a number that is raised by 128 in each of its
    bytes has them in memory, each raised by 128."""
    raised = (x.to(torch.int64) - _RAISED).contiguous().unsqueeze(-1).view(torch.uint8)
    return raised.bitwise_xor_(128).view(torch.int8)[..., :count].movedim(-1, 0).contiguous()


def _padded(matrix: Tensor, rows: int) -> Tensor:
    """With zeros, to so many rows at least, and sides that cuBLAS takes for bytes."""
    height, width = (-(-max(size, least) // _SIDE) * _SIDE for size, least in zip(matrix.shape, (rows, 1), strict=True))
    if matrix.shape == (height, width):
        return matrix.contiguous()
    out = matrix.new_zeros(height, width)
    out[: matrix.shape[0], : matrix.shape[1]] = matrix
    return out


def matmul_limbs(x: Tensor, y: Tensor, bits: int = 64) -> Tensor:
    """`matmul` by exact float64 products of signed limbs, on any device: six of them, or two of bytes for a y of bytes.

    A limb of y takes 8 bytes an element, and lives as long as its products.
    """
    inner = x.shape[-1]
    if inner > _INNER:
        starts = range(0, inner, _INNER)
        parts = ((start, min(_INNER, inner - start)) for start in starts)
        dim = -2 if y.dim() > 1 else -1
        return sum(matmul_limbs(x.narrow(-1, *part), y.narrow(dim, *part), bits) for part in parts)  # type: ignore[return-value]
    width = _LIMB_BESIDE_BYTES if y.dtype is torch.int8 else _LIMB
    of_x = [_limb(x, i, width) for i in range(-(-bits // width))]
    narrow = y.dtype.itemsize <= 2  # one limb as it is
    total: Tensor | None = None
    for j in range(1 if narrow else -(-min(bits, 8 * y.dtype.itemsize) // _LIMB)):
        right = y.to(torch.float64) if narrow else _limb(y, j, _LIMB)
        for i, left in enumerate(of_x):
            shift = width * i + _LIMB * j
            if shift < bits:
                part = torch.matmul(left, right).to(torch.int64) << shift
                total = part if total is None else total.add_(part)
    assert total is not None
    return total.to(x.dtype)


def _limb(x: Tensor, number: int, width: int) -> Tensor:
    """Limb `number` of x, signed, as float64: x is the sum of them times 2^(width number), modulo 2^64."""
    half = 1 << width - 1
    raised = sum(half << width * i for i in range(number + 1)) % (1 << 64)
    moved = x.to(torch.int64) + (raised - (1 << 64) if raised >> 63 else raised)
    return ((moved >> width * number) & (2 * half - 1)).sub_(half).to(torch.float64)


@dataclass(frozen=True)
class ByteColumns:
    """A matrix of signed bytes [K, N] times a power of two by column, [N] (None: 1)."""

    integers: Tensor
    shifts: Tensor | None


_examined: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> its ByteColumns or None: found once a session


def linear(x: Tensor, weight: Tensor, bits: int = 64) -> Tensor:
    """x @ weight, as `matmul`, for a weight that is used again and again.

    A weight of signed bytes, column by column, is multiplied as bytes, two to three times as fast. These bytes stay in
    memory beside the weight.
    """
    columns = byte_columns(weight)
    if columns is None:
        return matmul(x, weight, bits)
    product = matmul(x, columns.integers, bits)
    return product if columns.shifts is None else product.__ilshift__(columns.shifts)


def byte_columns(weight: Tensor) -> ByteColumns | None:
    """The matrix as bytes, if every column is some bytes times a power of two. Each tensor is examined once."""
    if weight not in _examined:
        _examined[weight] = _as_bytes(weight)
    return _examined[weight]


def _as_bytes(weight: Tensor) -> ByteColumns | None:
    if weight.dim() != 2 or not weight.numel() or weight.is_meta:
        return None
    low, high = weight.amin(0), weight.amax(0)
    shifts = torch.zeros_like(low, dtype=torch.int32)
    for _ in range(64):
        over = (low >> shifts < -128) | (high >> shifts > 127)
        if not bool(over.any()):
            break
        shifts += over
    if not torch.equal(weight >> shifts << shifts, weight):
        return None
    integers = (weight >> shifts).to(torch.int8)
    integers = integers.contiguous() if weight.is_cpu else integers.t().contiguous().t()  # as `matmul_bytes` reads it
    return ByteColumns(integers, shifts if bool(shifts.any()) else None)
