"""The processes that train one student: each takes a part of every batch, and all end with the same weights.

Each computes its part of the whole batch's loss, so the sum of all gradients is the gradient of one process: counts of
texts and tokens, the variance of the teacher's states and means of ranges are those of the whole batch.

Models are not wrapped in DistributedDataParallel (`Accelerator.prepare`): it averages the gradients of its own forward
only, and losses call parts of a model (an encoder without its pooling). Accelerate's `reduce` adds them instead.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from ...errors import BlindformerError, first_line
from ...protocols.devices import CPU, find_device
from ..distillation_settings import DistillError

T = TypeVar("T")

_WORLD, _LOCAL_WORLD = "WORLD_SIZE", "LOCAL_WORLD_SIZE"  # launchers set these in the environment
_LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # `accelerate launch` always sets it
_PATIENCE = timedelta(hours=2)  # the others wait while the first judges and calibrates
_SETTLE = 5.0  # seconds: a process that misses another lets the cause be reported first
_POLL = 0.05  # seconds


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


def check_count(count: int) -> None:
    """Errors: DistillError for a number of processes that cannot be, or that is not the launcher's."""
    if count < 1:
        raise DistillError(f"processes {count}: give 1 or more")
    if started() not in (0, count):
        raise DistillError(f"processes {count}: the launcher has started {started()}; leave the option out")


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


def together(count: int, work: Callable[..., T], **hear: Callable[[Any], None] | None) -> T:
    """Call `work` in `count` new processes at the same time. Returns what it returns in the first.

    work   can be pickled; the first process gives it a function for each name in `hear`
    hear   functions that are called here with what `work` calls them with
    All processes end when one of them fails, and when this function ends, however it ends. torchrun would do the same
    behind an open port; here they share a file.

    Errors: BlindformerError, as `work` raises it; DistillError for a process that was killed.
    """
    check_accelerate()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it announces every process that it ends
    messages = multiprocessing.get_context("spawn").SimpleQueue()
    names = [name for name in hear if hear[name]]
    with tempfile.TemporaryDirectory(prefix="blindformer-") as scratch:  # mode 0700
        given = (count, Path(scratch) / "addresses", torch.get_num_threads(), work, names, messages)
        with _interrupts_blocked():
            team = start_processes(_work, given, nprocs=count, join=False, daemon=True)
        assert team is not None
        try:
            while True:
                team.join(timeout=_POLL)
                while not messages.empty():
                    kind, value = messages.get()
                    if kind == "result":
                        return value
                    if kind == "failed":
                        raise value
                    hear[kind](value)  # type: ignore[misc]
        except ProcessExitedException as error:
            how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
            raise DistillError(
                f"process {error.error_index} of {count}: {how}; run the same command again: it goes on from the last "
                "checkpoint"
            ) from None
        finally:
            for process in team.processes:
                process.kill()  # type: ignore[union-attr]
                process.join()  # type: ignore[union-attr]


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Ctrl-C is for this process only, which then ends the others: those that start in the block never get SIGINT."""
    resource_tracker.ensure_running()  # its start would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    rank: int,
    count: int,
    addresses: Path,
    threads: int,
    work: Callable[..., object],
    names: Sequence[str],
    messages: Any,
) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there uninvited
        os.dup2(nothing, stream)
    torch.set_num_threads(threads)

    def send(kind: str, value: object) -> None:
        messages.put((kind, value))

    try:
        meet(rank, count, addresses)
        result = work(**({name: partial(send, name) for name in names} if rank == 0 else {}))
        if rank == 0:
            send("result", result)
    except BlindformerError as error:
        if isinstance(error, ProcessLost):
            time.sleep(_SETTLE)
        send("failed", error)


def end_with_parent() -> None:
    """Of a process that another has spawned, in a thread: it ends when that one does, whatever it is waiting for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def meet(rank: int, count: int, addresses: Path) -> None:
    """Join the processes of this machine, as one of them, without an open port: they talk over its loopback.

    addresses  a file that all of them write, in a folder of theirs
    Errors: ProcessLost.
    """
    given = {_WORLD: count, _LOCAL_WORLD: count, "RANK": rank, "LOCAL_RANK": rank}
    os.environ.update({name: str(value) for name, value in given.items()})
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    backend, place = "nccl" if has_gpus(count) else "gloo", f"file://{addresses}"
    with _naming_the_lost():
        torch.distributed.init_process_group(backend, init_method=place, rank=rank, world_size=count, timeout=_PATIENCE)


@contextmanager
def _naming_the_lost() -> Iterator[None]:
    """Turns torch's error where another process has ended into a ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(
            f"another process of this training has ended ({first_line(error, 80)}); run the same command again: it "
            "goes on from the last checkpoint"
        ) from None
