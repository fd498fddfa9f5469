"""Rounds: independent openings travel together.

A primitive is a generator. Where it needs the other party it yields its `Swap`s (what it sends, what it expects) and is
resumed with what came; an empty list means "next round" (another instruction is opening the value it waits for). The
scheduler runs every task (an instruction) whose needs are met until it waits or ends, packs all that wait into one
message per direction, and resumes them in order. Both parties run the same Program, so both pack the same swaps in
the same order, and the number of rounds is the depth of the Program.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .channel import Frames
from .devices import CPU
from .wire import elements, pack, unpack, uploaded


@dataclass
class Swap:
    """One primitive's part of a round. `send` is None where only the peer sends; `expect` None where only we do.

    `kept`: where only the peer sends, this side's share of what is opened, which stays here (session/uniformity.py).
    `width`: bytes per element on the wire (only the low bytes travel). With more than two parties: `peer` is the one
    that this is exchanged with, None for each of the others; what these send is added up, or joined by exclusive or.
    """

    send: Tensor | None
    expect: tuple[int, ...] | None
    width: int = 8
    peer: int | None = None
    xor: bool = False
    kept: Tensor | None = None

    @property
    def send_bytes(self) -> int:
        return 0 if self.send is None else self.send.numel() * self.width

    @property
    def expect_bytes(self) -> int:
        return 0 if self.expect is None else elements(self.expect) * self.width


Step = Generator[list[Swap], list[Any], Any]
Wire = Callable[[list[Swap]], list[Tensor | None]]


HEAD = 1024  # bytes


def over_channel(channel: Frames, head: bytearray | None = None, device: torch.device = CPU) -> Wire:
    """The wire of a real session: one frame per direction and round; an empty direction sends nothing. `head`: gets the
    first `HEAD` bytes that are sent; `device`: gets what comes."""

    def exchange(swaps: list[Swap]) -> list[Tensor | None]:
        outgoing = sum(s.send_bytes for s in swaps)
        incoming = sum(s.expect_bytes for s in swaps)
        message = pack(((s.send, s.width) for s in swaps if s.send is not None), outgoing)
        if head is not None and len(head) < HEAD:
            head.extend(message[: HEAD - len(head)])
        if outgoing and incoming:
            data = channel.exchange(message, incoming)
        elif outgoing:
            channel.send(message)
            data = bytearray()
        else:
            data = channel.recv(incoming) if incoming else bytearray()
        at, results = 0, []
        arrived = data if device == CPU or not data else uploaded(data, device, 0, len(data))
        for swap in swaps:
            results.append(None if swap.expect is None else unpack(arrived, at, swap.expect, swap.width, device=device))
            at += swap.expect_bytes
        return results

    return exchange


class Graph:
    """Which tasks need which others, found once for all runs. `needs`: by task, those that must be done before."""

    def __init__(self, needs: Sequence[Iterable[int]]) -> None:
        self.needs = [tuple(dict.fromkeys(of)) for of in needs]
        self.users: list[list[int]] = [[] for _ in self.needs]
        for task, of in enumerate(self.needs):
            for need in of:
                self.users[need].append(task)
        self.first = [task for task, of in enumerate(self.needs) if not of]


ALONE = Graph([()])  # one task


def run_rounds(graph: Graph, start: Callable[[int], Step], done: Callable[[int, Any], None], wire: Wire) -> int:
    """Run all tasks, each once those that it needs are done; return the number of rounds (messages in sequence)."""
    missing = [len(of) for of in graph.needs]
    ready = deque(graph.first)
    waiting: list[tuple[int, Step, list[Swap]]] = []
    rounds, stalled = 0, False

    def advance(task: int, step: Step, answers: list[Any] | None) -> None:
        try:
            swaps = next(step) if answers is None else step.send(answers)
        except StopIteration as end:
            done(task, end.value)
            for user in graph.users[task]:
                missing[user] -= 1
                if missing[user] == 0:
                    ready.append(user)
        else:
            waiting.append((task, step, swaps))

    while ready or waiting:
        while ready:
            task = ready.popleft()
            advance(task, start(task), None)
        if not waiting:
            break
        current, waiting = sorted(waiting, key=lambda entry: entry[0]), []
        swaps = [swap for _, _, wanted in current for swap in wanted]
        if not swaps and stalled:
            raise RuntimeError("every task waits for another's opening; this is a bug")
        stalled = not swaps
        answers = wire(swaps) if swaps else []
        rounds += bool(swaps)
        at = 0
        for task, step, wanted in current:
            advance(task, step, answers[at : at + len(wanted)])
            at += len(wanted)
    return rounds


def together(*steps: Step) -> Generator[list[Swap], list[Any], list[Any]]:
    """Run several steps side by side: their swaps share rounds. Returns their results in order."""
    results: list[Any] = [None] * len(steps)
    waiting: list[tuple[int, list[Swap]]] = []

    def advance(index: int, answers: list[Any] | None) -> None:
        try:
            wanted = next(steps[index]) if answers is None else steps[index].send(answers)
        except StopIteration as end:
            results[index] = end.value
        else:
            waiting.append((index, wanted))

    for index in range(len(steps)):
        advance(index, None)
    while waiting:
        current, waiting = waiting, []
        answers = yield [swap for _, wanted in current for swap in wanted]
        at = 0
        for index, wanted in current:
            advance(index, answers[at : at + len(wanted)])
            at += len(wanted)
    return results
