"""The processes that train one student: each takes a part of every batch, and all end with the same weights.

Each computes its part of the whole batch's loss, so the sum of all gradients is the gradient of one process: counts of
texts and tokens, the variance of the teacher's states and means of ranges are those of the whole batch.

Models are not wrapped in DistributedDataParallel (`Accelerator.prepare`): it averages the gradients of its own forward
only, and losses call parts of a model (an encoder without its pooling). Accelerate's `reduce` adds them instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...errors import first_line
from ...protocols.devices import CPU, find_device
from ..distillation_settings import DistillError

T = TypeVar("T")

_WORLD, _LOCAL_WORLD = "WORLD_SIZE", "LOCAL_WORLD_SIZE"  # launchers set these in the environment
_LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # `accelerate launch` always sets it
_PATIENCE = timedelta(hours=2)  # the others wait while the first judges and calibrates


class ProcessLost(DistillError):
    """Another process of this training has ended."""


class Processes:
    """This process alone. Others override what takes more than one.

    rank    0 is the first: only it judges, stores and reports
    count   of all
    copies  how many processes have the same part of the batch: all of them where it has fewer texts than processes
    device  where this one trains
    """

    rank, count, copies = 0, 1, 1

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device

    def part(self, batch: Sequence[int]) -> Sequence[int]:
        """This process's positions of a batch; all of them if it has fewer texts than there are processes."""
        self.copies = 1 if len(batch) >= self.count else self.count
        return batch[self.rank :: self.count] if self.copies == 1 else batch

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, elementwise."""
        return values

    def totals(self, *numbers: float) -> list[float]:
        """The sums over all processes."""
        return self.total(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, at all of them."""
        return make()

    def each(self, value: T) -> list[T]:
        """What each process gives, by rank."""
        return [value]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace gradients by their sum over all processes."""

    def random_state(self) -> Tensor:
        """The state of the generator that dropout draws from."""
        return torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        """Continue from a state that `random_state` gave."""
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)


ALONE = Processes()


class _Accelerated(Processes):
    """The processes of Accelerate. Errors of all methods: ProcessLost."""

    def __init__(self) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # else Accelerate sets another number
        with _naming_the_lost():
            self._accelerator = Accelerator(
                cpu=not has_gpus(int(os.environ.get(_LOCAL_WORLD, "1"))),
                mixed_precision="no",  # the setting bfloat16 says
                kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
            )
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device

    def total(self, values: Tensor) -> Tensor:
        with _naming_the_lost():
            total = self._accelerator.reduce(values.to(self.device), "sum")
            return total.to(values.device)  # type: ignore[union-attr]

    def first(self, make: Callable[[], T]) -> T:
        from accelerate.utils import broadcast_object_list

        result: list[Any] = [make() if self.rank == 0 else None]
        with _naming_the_lost():
            return broadcast_object_list(result)[0]

    def each(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        with _naming_the_lost():
            return gather_object([value])

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]  # each process has a text, so all have these
        added = self.total(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, total in zip(gradients, added.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


def has_gpus(count: int) -> bool:
    """Whether each of `count` processes of this machine has a GPU to itself; else all of them train on the CPU."""
    return torch.cuda.device_count() >= count


def started() -> int:
    """The number of processes that a launcher has started, this one among them; 0 without a launcher."""
    return int(os.environ.get(_WORLD, "1" if _LAUNCHED in os.environ else "0"))


def check_accelerate() -> None:
    """Errors: DistillError where Accelerate is not installed."""
    if find_spec("accelerate") is None:
        raise DistillError("processes: need the library accelerate; run: pip install 'blindformer[scale]'")


def joined(device: str = "cpu") -> Processes:
    """The processes that `accelerate launch` or torchrun has started, each on a device of its own, else this one alone.
    Errors: DistillError, DeviceError."""
    if not started():
        return Processes(find_device(device))
    if device != "cpu":
        raise DistillError(f"device {device}: each of several processes has a GPU of its own; leave --device out")
    check_accelerate()
    return _Accelerated()


@contextmanager
def placed(device: torch.device, *models: nn.Module) -> Iterator[None]:
    """Models on a device, and back on the CPU at the end."""
    for model in models:
        model.to(device)
    try:
        yield
    finally:
        for model in models:
            model.to("cpu")


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    """Turns torch's error where another process has ended into a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another training process ended ({first_line(error, 80)}); run the command again: it resumes "
            "at the last checkpoint"
        ) from None
