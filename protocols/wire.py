"""How ring tensors look on the wire: only the low bytes of each element that matter.

An element of 1, 2, 4 or 8 bytes is cast; other sizes travel as planes (4 + 2 for 6 bytes), because casting planes is
several times faster than copying a few bytes of every element.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .devices import CPU
from .kernels import bindings
from .kernels.library import kernel

_PLANES: dict[int, tuple[torch.dtype, ...]] = {
    1: (torch.int8,),
    2: (torch.int16,),
    3: (torch.int16, torch.int8),
    4: (torch.int32,),
    5: (torch.int32, torch.int8),
    6: (torch.int32, torch.int16),
    7: (torch.int32, torch.int16, torch.int8),
    8: (torch.int64,),
}


def wire_bytes(bits: int) -> int:
    """Bytes per element that carry `bits` low bits; 0 for none."""
    if bits <= 0:
        return 0
    return (min(bits, 64) + 7) // 8


def held_in(width: int, narrow: bool = True) -> torch.dtype:
    """int64; or the smallest type of integers that holds `width` bytes."""
    types = (torch.int8, torch.int16, torch.int32) if narrow else ()
    return next((dtype for dtype in types if dtype.itemsize >= width), torch.int64)


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def pinned(size: int) -> memoryview:
    """Memory that goes to a device while the processor goes on: torch waits for the copy before it is used again."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data


def pack(tensors: Iterable[tuple[Tensor, int]], size: int) -> bytearray:
    """Concatenate int64 tensors, each element cut to its low `width` bytes."""
    out = bytearray(size)
    at = 0
    for tensor, width in tensors:
        at = pack_into(out, at, tensor, width)
    return out


@kernel(bindings.pack_into)
def pack_into(out: bytearray, at: int, tensor: Tensor, width: int, minus: Tensor | None = None) -> int:
    """Write one tensor, less `minus`, at byte `at`; returns where the next one goes."""
    flat = (tensor if minus is None else tensor - minus).reshape(-1)
    if not flat.numel():
        return at
    view = torch.frombuffer(out, dtype=torch.uint8)
    dtypes = _PLANES[width]
    planes: list[Tensor] = []
    for number, dtype in enumerate(dtypes):
        planes.append(flat.to(dtype))
        if number + 1 < len(dtypes):
            # Planes are signed: the next one makes up for this one's sign, so that joining is one multiply-add.
            flat = (flat - planes[-1].to(torch.int64)) >> (8 * dtype.itemsize)
    for plane in planes:
        raw = plane.contiguous().view(torch.uint8).cpu()
        view[at : at + raw.numel()].copy_(raw)
        at += raw.numel()
    return at


@kernel(bindings.unpack)
def unpack(
    data: bytearray | memoryview,
    at: int,
    shape: tuple[int, ...],
    width: int,
    dtype: torch.dtype = torch.int64,
    device: torch.device = CPU,
) -> Tensor:
    """The tensor of `shape` whose low `width` bytes start at byte `at`; higher bits are unspecified. To a device go
    bytes, as they travelled."""
    count = elements(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    # One copy to a device, from its first byte on: by that torch knows which pinned memory is still being read.
    raw = torch.frombuffer(data, dtype=torch.uint8, count=count * width, offset=at).to(device, non_blocking=True)
    total: Tensor | None = None
    shift = start = 0
    for part in _PLANES[width]:
        plane = raw[start : start + count * part.itemsize]
        aligned = plane.is_cpu and plane.data_ptr() % part.itemsize == 0
        plane = (plane if aligned else plane.clone()).view(part).to(torch.int64)
        total = plane if total is None else total.add_(plane, alpha=1 << shift)
        start += count * part.itemsize
        shift += 8 * part.itemsize
    assert total is not None
    return total.view(shape).to(dtype)
