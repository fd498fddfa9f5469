"""Random transfers and crossed products by somebody whom both parties trust: what real ones must do, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Queue

import torch
from blindformer.protocols.pair.steps import Pair
from blindformer.protocols.pair.transfers import Crossed, TransferPool
from blindformer.protocols.ring import Ring
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.patience import PATIENCE
from torch import Tensor

WORD = 64


@dataclass
class Trusted:
    """Both parties ask the same, in the same order, so each finds its part under the number of its request."""

    stream: Stream = field(default_factory=lambda: Stream(new_seed(), "trusted"))
    queues: tuple[Queue, Queue] = field(default_factory=lambda: (Queue(), Queue()))

    def pair(self, leader: bool) -> Pair:
        mine, other = ("server", "client") if leader else ("client", "server")
        return Pair(leader, TransferPool(leader, Sender(self.stream, mine), Receiver(self.stream, other)))

    def products(self, leader: bool) -> Products:
        return Products(self, leader)


@dataclass
class Sender:
    stream: Stream
    name: str
    asked: int = 0

    def bits(self, count: int) -> tuple[Tensor, Tensor]:
        return self._both(count // WORD, 8)

    def numbers(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        return self._both(count, width)

    def _both(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        self.asked += 1
        first, second = self.stream.integers(f"{self.name}/{self.asked}", (2, count), width)
        return first, second


class Receiver(Sender):
    """Of the sender of this name."""

    def bits(self, count: int) -> tuple[Tensor, Tensor]:
        first, second = self._both(count // WORD, 8)
        choices = self._choices(count)
        return choices, first ^ choices & (first ^ second)

    def numbers(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        first, second = self._both(count, width)
        choices = self._choices(count)
        chosen = choices[:, None] >> torch.arange(WORD) & 1
        return choices, torch.where(chosen.view(-1).bool(), second, first)

    def _choices(self, count: int) -> Tensor:
        return self.stream.integers(f"{self.name}/{self.asked}/choices", (count // WORD,))


@dataclass
class Products:
    trusted: Trusted
    leader: bool
    asked: int = 0

    def cross(self, jobs: Sequence[Crossed]) -> list[Tensor]:
        mine, others = self.trusted.queues if self.leader else self.trusted.queues[::-1]
        mine.put(list(jobs))
        theirs = others.get(timeout=PATIENCE)
        return [self._share(job, other) for job, other in zip(jobs, theirs, strict=True)]

    def _share(self, job: Crossed, other: Crossed) -> Tensor:
        assert (job.kind, job.width) == (other.kind, other.width)
        clients, servers = (other, job) if self.leader else (job, other)
        self.asked += 1
        if job.kind == "product":
            product = (clients.mine * servers.mine).sum(1)
            sizes = (clients.mine.double() * servers.mine.double()).abs().sum(1)
            assert job.bits == other.bits
            assert not job.bits or bool((sizes <= 2.0 ** (job.bits - 1)).all())
            share, lack, bit = self.trusted.stream.integers(f"share/{self.asked}", (3, *product.shape))
            if 0 < job.bits < 61:  # below twice this modulus, so that they add up as integers
                modulus, shift = 4 << job.bits, 1 << job.bits - 1
                share, rest = share & modulus - 1, (product + shift - share) & modulus - 1
                lack, bit = modulus * (share < modulus // 2), (rest < modulus // 2).long()
                return torch.stack([rest - shift - modulus, bit] if self.leader else [share, lack])
            return torch.stack([product - share - lack * (bit & 1), bit & 1] if self.leader else [share, lack])
        product = Ring().matmul(clients.mine.contiguous(), servers.mine.contiguous())
        share = clients.chosen
        if share is None:
            share = self.trusted.stream.integers(f"share/{self.asked}", tuple(product.shape))
        return product - share if self.leader else share
