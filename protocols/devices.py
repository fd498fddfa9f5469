"""Where a party computes: the processor, or a GPU. Parties may differ, as messages are the same bytes.

A party's numbers are born in four places: its key streams (streams.py), what other parties send (wire.py), the model's
values (`Placement`), and zeros. All else follows from these, so that torch refuses what was forgotten. Keys of tables
grow on the processor, which has the cipher (beaver/point_function.py), and their numbers go to the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..levels import is_device
from .errors import BlindformerError

CPU, META = torch.device("cpu"), torch.device("meta")
_GB = 1e9


class DeviceError(BlindformerError):
    """A party cannot compute on the device that it is told to."""


def find_device(name: str) -> torch.device:
    """A device of this machine. Nothing is begun on it, so that a service may fork afterwards.

    Errors: DeviceError, which names those that there are.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if not is_device(name):
        raise DeviceError(f"device {name}: is none; give cpu, cuda, or one by its number, such as cuda:1")
    if name == "cpu":
        return CPU
    count = torch.cuda.device_count()  # by NVML, which leaves the driver alone, where a whole GPU is named
    if not count:
        built = "which is built for processors alone" if torch.version.cuda is None else "which finds no GPU here"
        raise DeviceError(f"device {name}: torch is {torch.__version__}, {built}; leave --device out")
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        last = f" to cuda:{count - 1}" if count > 1 else ""
        raise DeviceError(f"device {name}: this machine has cuda:0{last}")
    return torch.device("cuda", number)


class Placement:
    """Values of a session on its device: each is moved once as long as it lives, such as a weight."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._there: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __call__(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if self.device == CPU:
            return values
        for value in values.values():
            if value not in self._there:
                self._there[value] = value.to(self.device)
        return {name: self._there[value] for name, value in values.items()}


def settle(device: torch.device) -> None:
    """Wait until a device has done what it was told: seconds are then those of what is done."""
    if device != CPU:
        torch.cuda.synchronize(device)


def described() -> list[str]:
    """The GPUs of this machine, in words. This begins to use them."""
    count = torch.cuda.device_count()
    names = [(torch.cuda.get_device_name(n), torch.cuda.get_device_properties(n).total_memory) for n in range(count)]
    return [f"cuda:{n} {name}, {size / _GB:.0f} GB" for n, (name, size) in enumerate(names)]


def room(device: torch.device) -> float:
    """Bytes that are free on a device, or held by torch for what comes; the processor's memory is bounded elsewhere
    (memory_gb)."""
    if device == CPU:
        return math.inf
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + spare


def check_room(needed: float, device: torch.device, what: str) -> None:
    """Errors: DeviceError where so many bytes are not free."""
    if needed > (free := room(device)):
        raise DeviceError(
            f"device {device}: {what} take {needed / _GB:.3g} GB, {free / _GB:.3g} GB are free; use another device"
        )
