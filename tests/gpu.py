"""A GPU for tests, with or without one: tensors that say that they are on it, and hold what is on the processor.

Real torch refuses an operation on tensors of two devices, and copies in silence where it is told to. Here both are
seen: `OnGpu` refuses the same, and what numpy or a kernel would read in its memory, and `Gpu` counts what goes up and
down, and each number that the processor waits for.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from blindformer.protocols.beaver.gates import expansion
from blindformer.protocols.kernels import library
from torch import Tensor
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
_FACTS = {Tensor.device.__get__: GPU, Tensor.is_cpu.__get__: False, Tensor.is_cuda.__get__: True}  # type: ignore[attr-defined]
_WAITED_FOR = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__"}
_TAKE_NUMBERS = {"mul", "__mul__", "__rmul__", "add", "__add__", "__radd__", "sub", "__getitem__", "__setitem__"}
_OF_THE_PROCESSOR = {"numpy", "data_ptr", "__array__"}
_COUNTING = threading.Lock()  # threads share a counter
_INTERPRETER = threading.Lock()  # of Triton, which one thread at a time can use
_KERNELS = library.on_gpu  # as it is before a GPU is pretended
Fused = Callable[[str], Callable[..., Any] | None]


class MixedDevices(AssertionError):
    """Torch would refuse it on a GPU, or read another device's memory."""


class OnGpu(Tensor):
    """What is on the GPU."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FACTS:
            return _FACTS[func]
        name = getattr(func, "__name__", "")
        if name in _OF_THE_PROCESSOR:
            raise MixedDevices(f"{name} of a tensor on the GPU")
        numbers = 1 if name in _TAKE_NUMBERS else 0  # of the processor, that go along
        if any(type(x) is Tensor and x.dim() >= numbers for x in _tensors((args, kwargs or {}))):
            raise MixedDevices(f"{name}: tensors on the processor and on the GPU")
        if name == "_int_mm" and args[1].is_contiguous() and min(args[1].shape) > 1:
            raise MixedDevices(f"{name}: cuBLAS may take the second matrix by columns alone")
        result = super().__torch_function__(func, types, args, kwargs or {})
        return _exact(*args) if name == "_int_mm" else result


def _exact(x: Tensor, y: Tensor) -> Tensor:
    """Of signed bytes, as GPUs multiply them: processors without VNNI saturate in the midst."""
    with DisableTorchFunction(), _disable_current_modes():
        return (x.to(torch.float64) @ y.to(torch.float64)).to(torch.int32).as_subclass(OnGpu)


class Gpu(TorchFunctionMode):
    """`bytes`: copied "up" and "down"; `waits`: numbers that the processor has waited for. Of this thread, and
    (`pretended`) of those that it starts."""

    def __init__(self, bytes: Counter[str] | None = None) -> None:
        super().__init__()
        self.bytes = Counter[str]() if bytes is None else bytes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        kwargs.pop("pin_memory", None)
        if name in ("cpu", "to") and isinstance(args[0], Tensor):
            device = CPU if name == "cpu" else _device_of(args[1:], kwargs)
            if device is not None:
                return self._copied(args[0], device)
        if name in _WAITED_FOR and args and isinstance(args[0], OnGpu):
            self._count("waits", 1)
        device = kwargs.get("device")
        if isinstance(device, torch.device) and device == GPU:
            return func(*args, **{**kwargs, "device": CPU}).as_subclass(OnGpu)
        return func(*args, **kwargs)

    def _count(self, kind: str, amount: int) -> None:
        with _COUNTING:
            self.bytes[kind] += amount

    def _copied(self, x: Tensor, device: torch.device) -> Tensor:
        if x.device == device:
            return x
        self._count("up" if device == GPU else "down", x.nbytes)
        return x.as_subclass(OnGpu if device == GPU else Tensor).clone()


def _device_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    return next((x for x in (*args[:1], kwargs.get("device")) if isinstance(x, torch.device)), None)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from _tensors(list(tree.values()))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _tensors(item)


def interpreted(name: str) -> Callable[..., Any] | None:
    """A kernel of Triton, which its interpreter runs on the processor, for one thread at a time."""
    kernel = _KERNELS(name) if os.environ.get("TRITON_INTERPRET") == "1" else None
    if kernel is None:
        return None

    def run(*args: Any) -> Any:
        with _INTERPRETER, DisableTorchFunction():
            result = kernel(*(x.as_subclass(Tensor) if isinstance(x, Tensor) else x for x in args))
            return tree_map(lambda x: x.as_subclass(OnGpu), result)

    return run


@contextmanager
def pretended(
    beside: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
    fused: Fused = lambda name: None,
) -> Iterator[Gpu]:
    """A GPU, for this thread and all that it starts meanwhile. `beside`: what each thread enters, by its name; `fused`:
    a kernel of Triton by its name, such as `interpreted`, which takes long."""
    run, counted = threading.Thread.run, Counter[str]()

    def with_gpu(thread: threading.Thread) -> None:
        with Gpu(counted), beside(thread.name):
            run(thread)

    with pytest.MonkeyPatch.context() as patch, Gpu(counted) as gpu, beside(threading.current_thread().name):
        patch.setattr(threading.Thread, "run", with_gpu)
        patch.setattr(library, "on_gpu", fused)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "synchronize", lambda device: None)
        patch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
        patch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
        patch.setattr(torch.cuda, "mem_get_info", lambda device: (80 * 10**9, 80 * 10**9))
        yield gpu
    expansion.cache_clear()  # a real GPU may come next


@contextmanager
def real() -> Iterator[None]:
    """The GPU of this machine."""
    yield None


on_a_gpu = pytest.mark.skipif(not torch.cuda.device_count(), reason="this machine has no GPU")
KINDS = [pretended, pytest.param(real, marks=on_a_gpu)]
