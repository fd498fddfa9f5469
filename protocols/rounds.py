"""Rounds: independent openings travel together.

A primitive is a generator. Where it needs the other party it yields its `Swap`s (what it sends, what it expects) and is
resumed with what came; an empty list means "next round" (another instruction is opening the value it waits for). The
scheduler runs every instruction whose arguments are ready until it waits or ends, packs all that wait into one
message per direction, and resumes them in order. Both parties run the same Program, so both pack the same swaps in
the same order, and the number of rounds is the depth of the Program.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .channel import Channel
from .wire import elements, pack, unpack


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


def over_channel(channel: Channel) -> Wire:
    """The wire of a real session: one frame per direction and round; an empty direction sends nothing."""

    def exchange(swaps: list[Swap]) -> list[Tensor | None]:
        outgoing = sum(s.send_bytes for s in swaps)
        incoming = sum(s.expect_bytes for s in swaps)
        message = pack(((s.send, s.width) for s in swaps if s.send is not None), outgoing)
        if outgoing and incoming:
            data = channel.exchange(message, incoming)
        elif outgoing:
            channel.send(message)
            data = bytearray()
        else:
            data = channel.recv(incoming) if incoming else bytearray()
        at, results = 0, []
        for swap in swaps:
            results.append(None if swap.expect is None else unpack(data, at, swap.expect, swap.width))
            at += swap.expect_bytes
        return results

    return exchange


@dataclass
class RoundTask:
    """One instruction of a Program: which tasks it needs, and how to start it once they are done."""

    needs: tuple[int, ...]
    start: Callable[[], Step]
    done: Callable[[Any], None]


def run_rounds(tasks: list[RoundTask], wire: Wire, progress: Callable[[int], None] | None = None) -> int:
    """Run all tasks; return the number of rounds (messages exchanged in sequence)."""
    missing = [len(set(t.needs)) for t in tasks]
    users: list[list[int]] = [[] for _ in tasks]
    for index, task in enumerate(tasks):
        for need in set(task.needs):
            users[need].append(index)
    ready = [i for i, n in enumerate(missing) if n == 0]
    waiting: list[tuple[int, Step, list[Swap]]] = []
    rounds, stalled = 0, False

    def advance(index: int, step: Step, answers: list[Any] | None) -> None:
        try:
            swaps = next(step) if answers is None else step.send(answers)
        except StopIteration as end:
            tasks[index].done(end.value)
            if progress:
                progress(index)
            for user in users[index]:
                missing[user] -= 1
                if missing[user] == 0:
                    ready.append(user)
        else:
            waiting.append((index, step, swaps))

    while ready or waiting:
        while ready:
            index = ready.pop(0)
            advance(index, tasks[index].start(), None)
        if not waiting:
            break
        current, waiting = sorted(waiting, key=lambda entry: entry[0]), []
        swaps = [swap for _, _, wanted in current for swap in wanted]
        if not swaps and stalled:
            raise RuntimeError("every instruction waits for another's opening; this is a bug")
        stalled = not swaps
        answers = wire(swaps) if swaps else []
        rounds += bool(swaps)
        at = 0
        for index, step, wanted in current:
            advance(index, step, answers[at : at + len(wanted)])
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
