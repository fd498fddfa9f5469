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
    """Concatenate int64 tensors, each element cut to its low `width` bytes. From a device they come down together."""
    tensors = list(tensors)
    if tensors and not tensors[0][0].is_cpu:
        return bytearray(torch.cat([part for tensor, width in tensors for part in _parts(tensor, width)]).cpu().numpy())
    out = bytearray(size)
    at = 0
    for tensor, width in tensors:
        at = pack_into(out, at, tensor, width)
    return out


@kernel(bindings.pack_into)
def pack_into(out: bytearray, at: int, tensor: Tensor, width: int, minus: Tensor | None = None) -> int:
    """Write one tensor, less `minus`, at byte `at`; returns where the next one goes."""
    parts = _parts(tensor if minus is None else tensor - minus, width)
    view = torch.frombuffer(out, dtype=torch.uint8) if out else None
    for part in parts if tensor.is_cpu else [torch.cat(parts).cpu()]:
        if part.numel():
            assert view is not None
            view[at : at + part.numel()].copy_(part)
            at += part.numel()
    return at


def _parts(tensor: Tensor, width: int) -> list[Tensor]:
    """The bytes of a tensor's planes."""
    flat, dtypes = tensor.reshape(-1), _PLANES[width]
    planes: list[Tensor] = []
    for number, dtype in enumerate(dtypes):
        planes.append(flat.to(dtype))
        if number + 1 < len(dtypes):
            # Planes are signed: the next one makes up for this one's sign, so that joining is one multiply-add.
            flat = (flat - planes[-1].to(torch.int64)) >> (8 * dtype.itemsize)
    return [plane.contiguous().view(torch.uint8) for plane in planes]


@kernel(bindings.unpack)
def unpack(
    data: bytearray | memoryview | Tensor,
    at: int,
    shape: tuple[int, ...],
    width: int,
    dtype: torch.dtype = torch.int64,
    device: torch.device = CPU,
) -> Tensor:
    """The tensor of `shape` whose low `width` bytes start at byte `at`; higher bits are unspecified. To a device go
    bytes, as they travelled; or they are there already, in a tensor of bytes."""
    count = elements(shape)
    if not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    raw = data[at:] if isinstance(data, Tensor) else uploaded(data, device, at, count * width)
    total: Tensor | None = None
    shift = start = 0
    for part in _PLANES[width]:
        plane = raw[start : start + count * part.itemsize]
        aligned = (plane.data_ptr() if plane.is_cpu else plane.storage_offset()) % part.itemsize == 0
        plane = (plane if aligned else plane.clone()).view(part).to(torch.int64)
        total = plane if total is None else total.add_(plane, alpha=1 << shift)
        start += count * part.itemsize
        shift += 8 * part.itemsize
    assert total is not None
    return total.view(shape).to(dtype)


def uploaded(data: bytearray | memoryview, device: torch.device, at: int, size: int) -> Tensor:
    """So many bytes from byte `at` on, on a device. Pinned memory is taken from its first byte on: by that torch knows
    what is still being read."""
    return torch.frombuffer(data, dtype=torch.uint8, count=size, offset=at).to(device, non_blocking=True)
