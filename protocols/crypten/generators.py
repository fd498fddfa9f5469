"""CrypTen's own random numbers, from our streams: while a session is open, its generators are only names.

CrypTen shares a tensor, and makes zero shares, by drawing from torch generators that neighbours seed alike (64 bits,
not cryptographic). It draws by `torch.randint(..., generator=...)`, which PyTorch lets a `TorchFunctionMode` answer:
here from AES-CTR streams whose seeds the same neighbours share. Every draw has a label of its own, so no mask comes
twice. What CrypTen draws as floats, for dropout, is public and stays torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..streams import SEED_BYTES, Stream, new_seed
from .versions import CryptenError

NAMES = ("prev", "next", "local", "global")


class StreamDraws(TorchFunctionMode):
    """Answers the draws of the generators in `streams` (by id). Enter it on the thread that computes."""

    def __init__(self, streams: Mapping[int, Numbers]) -> None:
        super().__init__()
        self.streams = streams

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        numbers = self.streams.get(id(kwargs.get("generator")))
        if numbers is None:
            return func(*args, **kwargs)
        if func is not torch.randint or len(args) != 3:
            raise CryptenError(
                f"crypten: draws by {getattr(func, '__name__', func)}, which has no stream; use its integers"
            )
        return numbers.draw(*args).to(kwargs.get("device"))


class Numbers:
    """One generator's stream: the same sequence at every party that has its seed."""

    def __init__(self, seed: bytes, purpose: str) -> None:
        self._stream, self._drawn = Stream(seed, purpose), 0

    def draw(self, low: int, high: int, shape: Any) -> Tensor:
        """Uniform integers: the whole ring, or the low bits of it. Errors: CryptenError for any other range."""
        words = self._stream.integers(f"draw {self._drawn}", tuple(shape))
        self._drawn += 1
        if low == -(1 << 63) and high == (1 << 63) - 1:
            return words
        if low == 0 and high & (high - 1) == 0:
            return words & (high - 1)
        raise CryptenError(f"crypten: draws from {low} to {high}, which has no stream; use a power of two")


def shared_streams(communicator: Any, generators: Mapping[str, Mapping[Any, Any]]) -> dict[int, Numbers]:
    """Streams for all of CrypTen's generators: `next` is the next party's `prev`, `global` is everybody's.

    Each device has a purpose of its own, as CrypTen's generators have.
    """
    rank, size = communicator.get_rank(), communicator.get_world_size()
    seeds = {"local": new_seed(), "next": new_seed(), "prev": bytes(SEED_BYTES), "global": new_seed()}
    came = torch.zeros(SEED_BYTES, dtype=torch.uint8)
    work = [communicator.isend(_tensor(seeds["next"]), (rank + 1) % size)]
    work.append(communicator.irecv(came, src=(rank - 1) % size))
    for item in work:
        item.wait()
    seeds["prev"] = bytes(came.tolist())
    seeds["global"] = bytes(communicator.broadcast(_tensor(seeds["global"]), 0).tolist())
    purposes = {"prev": "crypten neighbours", "next": "crypten neighbours"}
    return {
        id(generator): Numbers(seeds[name], f"{purposes.get(name, f'crypten {name}')} {device}")
        for name in NAMES
        for device, generator in generators[name].items()
    }


def _tensor(seed: bytes) -> Tensor:
    return torch.tensor(list(seed), dtype=torch.uint8)
