"""A small delegated model, its parties as threads, and parties that lie: their channels change what crosses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from blindformer.models.delegated.manifest import DelegatedModel, prepare
from blindformer.models.delegated.running import DelegatedRunner
from blindformer.protocols.channel import Channel
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.shared.memory import MemoryChannel, is_message
from blindformer.tests.shared.threads import DelegatedThreads
from torch import Tensor, nn

WIDE, OUT = 48, 80


class Net(nn.Module):
    """Two layers that read one input, one in between, and one more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.one, self.two = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
        self.three, self.four = nn.Linear(WIDE, OUT), nn.Linear(OUT, WIDE)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.four(torch.relu(self.three(torch.tanh(self.one(x)) * self.two(x))))


@cache
def small(plan: str = "faithful") -> tuple[Net, DelegatedModel]:
    module = Net().eval()
    return module, prepare(module, lambda: module(torch.randn(1, 4, WIDE)), "small", ring=RINGS[plan])


class DelegatedSite(DelegatedThreads):
    """received   all payloads by (receiver, sender)
    ends          a party's ends of its channels
    """

    def __init__(self, timeout: float = 20, plan: str = "faithful") -> None:
        self.module, self.model = small(plan)
        super().__init__(self.model, timeout=timeout)
        self.runner = DelegatedRunner(self.module, self.model)
        self.received: dict[tuple[str, str], list[bytes]] = {}
        self.ends: dict[str, list[MemoryChannel]] = {}
        self.wrapped: Callable[[str, str, Any], Any] = lambda me, peer, end: end

    def connect(self, a: str, b: str) -> Any:
        pair = super().connect(a, b)
        for me, peer, end in ((a, b, pair[0]), (b, a, pair[1])):
            assert isinstance(end, MemoryChannel)
            end.record = self.received.setdefault((me, peer), [])
            self.ends.setdefault(me, []).append(end)
        return tuple(self.wrapped(me, peer, end) for me, peer, end in ((a, b, pair[0]), (b, a, pair[1])))

    def frames(self, receiver: str, sender: str) -> list[bytes]:
        """What came as tensors."""
        return [payload for payload in self.received.get((receiver, sender), []) if not is_message(payload)]

    def ask(self, client: Any, x: Tensor | None = None) -> Tensor:
        """One pass, whose answer must be right."""
        x = torch.randn(1, 4, WIDE) if x is None else x
        answer, wanted = self.runner.run(client, self.module, x), self.module(x)
        relative = {32: 1e-3, 24: 1e-2}[self.model.manifest.ring]
        assert (answer - wanted).double().norm() <= relative * wanted.double().norm()
        return answer

    def vanish(self, party: str) -> None:
        """What happens when its process is killed."""
        for end in self.ends[party]:
            end.interrupt()

    def ended(self, seconds: float = 60) -> list[BlindformerError]:
        """All threads have ended: how, where it was not in order."""
        self.join(seconds)
        assert not [thread.name for thread in self.threads if thread.is_alive()]
        readable = [error for _, error in self.failures if isinstance(error, BlindformerError)]
        assert len(readable) == len(self.failures), self.failures
        for error in readable:
            assert "\n" not in str(error)
        return readable

    def with_weights(self, role: str, change: Callable[[list[Tensor]], None]) -> None:
        """This role computes with other numbers, under the manifest of the right ones."""
        integers = [matrix.clone() for matrix in self.model.integers]
        change(integers)
        self.weights[role] = replace(self.weights[role], integers=integers)


class Lying:
    """A channel whose frames are changed on their way out: `change` gets each one with its number."""

    def __init__(self, channel: Channel, change: Callable[[int, bytearray], Any]) -> None:
        self._channel, self._change, self.sent = channel, change, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("timeout",):
            setattr(self._channel, name, value)
        else:
            super().__setattr__(name, value)

    def send(self, data: Any) -> None:
        self._channel.send(self._changed(data))

    def exchange(self, data: Any, size: int) -> bytearray:
        return self._channel.exchange(self._changed(data), size)

    def _changed(self, data: Any) -> bytearray:
        frame = bytearray(data)
        self._change(self.sent, frame)
        self.sent += 1
        return frame
