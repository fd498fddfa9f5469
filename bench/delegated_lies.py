"""How many lies about delegated layers a client finds, on a small Transformer in threads of one process.

    python -m bench.delegated_lies --lies 10000 --honest 2000 --format json

One lie a session, of the server or of the dealer: one change of one call's numbers, or other weights. README.md says
what each figure means.
"""

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from blindformer.models.delegated.manifest import DelegatedModel, prepare
from blindformer.models.delegated.running import DelegatedRunner
from blindformer.models.delegated.sequences import sequence_of
from blindformer.parties.client.threads import DelegatedThreads
from blindformer.protocols.channel import Buffer
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.delegated.arithmetic import pack_ring, signed_in, unpack_ring
from blindformer.protocols.errors import PeerDeviated
from rich.table import Table
from torch import Tensor

from .harness import Report, Say, carry_out, grid, parser
from .lies import CHANGES, transformer

ROLES = ("server", "dealer")
PEERS = {"server": "client", "dealer": "server"}  # to whom each role's numbers go
PASSES = 50  # of an honest session
Numbers = Tensor  # of one call: int32 [rows, outputs]


def _rows_swapped(y: Numbers, chance: random.Random) -> None:
    one, other = chance.sample(range(len(y)), 2)
    y[[one, other]] = y[[other, one]].clone()


def _cancelled(y: Numbers, chance: random.Random) -> None:
    """The sum of all rows stays."""
    (one, other), column, error = chance.sample(range(len(y)), 2), chance.randrange(y.shape[1]), chance.randrange(1, 31)
    y[one, column] += 1 << error
    y[other, column] -= 1 << error


ROWS = {"rows": _rows_swapped, "cancelled": _cancelled}
WEIGHTS = ("weights", "model")  # one number is another; all are
KINDS = (*CHANGES, *ROWS, *WEIGHTS)


class ChangedCalls:
    """A role's channel: notes the frames of the first pass, and changes one of the second. `sizes`: numbers by call."""

    def __init__(
        self, channel: Any, ring: int, sizes: list[int], at: int, lie: Callable[[bytearray, bytearray], None]
    ) -> None:
        self._channel, self._ring, self._sizes, self._at, self._lie = channel, ring, sizes, at, lie
        self._before: list[bytearray] = []
        self.changed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def send(self, data: Buffer) -> None:
        calls, view = len(self._sizes), memoryview(data).cast("B")
        numbers = unpack_ring(bytearray(view), (8 * len(view) // self._ring,), self._ring)
        frame = bytearray(signed_in(numbers, self._ring).numpy().tobytes())
        if len(self._before) == calls + self._at:
            one = frame[: 4 * self._sizes[self._at]]  # the dealer sends those of the passes after it as well
            self._lie(one, self._before[self._at])
            lied = torch.frombuffer(one, dtype=torch.int32)
            self.changed = not torch.equal(signed_in(lied, self._ring), signed_in(numbers[: len(lied)], self._ring))
            frame[: len(one)] = one
        self._before.append(frame)
        self._channel.send(pack_ring(torch.frombuffer(frame, dtype=torch.int32), self._ring))


class LyingThreads(DelegatedThreads):
    """Parties one of which lies."""

    def __init__(self, model: DelegatedModel, role: str, lying: Callable[[Any], ChangedCalls]) -> None:
        super().__init__(model)
        self._role, self._lying = role, lying
        self.frames: ChangedCalls | None = None

    def connect(self, a: str, b: str) -> Any:
        mine, theirs = super().connect(a, b)
        if (self._role, PEERS[self._role]) == (a, b):
            mine = self.frames = self._lying(mine)
        elif (self._role, PEERS[self._role]) == (b, a):
            theirs = self.frames = self._lying(theirs)
        return mine, theirs


class Campaign:
    """A model and its texts, and sessions in which one party lies."""

    def __init__(self, plan: str) -> None:
        module, self.texts = transformer()
        self.model = prepare(module, lambda: module(**self.texts[0]), "small", ring=RINGS[plan])
        self.runner = DelegatedRunner(module, self.model)
        self.sequence = sequence_of(self.runner.steps(module, (), self.texts[0]))
        self.shapes = [(rows, self.runner.groups[group].outputs) for group, rows in self.sequence]

    def lie(self, role: str, kind: str, chance: random.Random) -> str:
        """One session with an honest pass, and one with a lie: "found", "answered", or "no lie" where the change
        changes nothing."""
        rows = [at for at, (count, _) in enumerate(self.shapes) if count > 1]
        at = chance.choice(rows) if kind in ROWS else chance.randrange(len(self.shapes))

        def change(frame: bytearray, before: bytearray) -> None:
            if kind in CHANGES:
                CHANGES[kind](frame, before, chance)
            elif kind in ROWS:
                ROWS[kind](torch.frombuffer(frame, dtype=torch.int32).view(self.shapes[at]), chance)

        sizes, ring = [count * outputs for count, outputs in self.shapes], self.model.manifest.ring
        threads = LyingThreads(self.model, role, lambda channel: ChangedCalls(channel, ring, sizes, at, change))
        if kind in WEIGHTS:
            changed = [matrix.flip(0) if kind == "model" else matrix.clone() for matrix in self.model.integers]
            if kind == "weights":
                numbers = chance.choice(changed).view(-1)
                numbers[chance.randrange(len(numbers))] ^= 1 << chance.randrange(8)
            threads.weights[role] = replace(threads.weights[role], integers=changed)
        try:
            client = threads.client()
            for _ in range(2):
                self.runner.run(client, self.runner.module, **chance.choice(self.texts))
            return "answered" if kind in WEIGHTS or (threads.frames and threads.frames.changed) else "no lie"
        except PeerDeviated:
            return "found"
        finally:
            threads.close()

    def honest(self, count: int, say: Say) -> int:
        """How many of so many honest passes end in an accusation."""
        accused = done = 0
        while done < count:
            say(f"honest runs: {done}/{count}")
            threads = DelegatedThreads(self.model)
            try:
                client = threads.client()
                for _ in range(min(PASSES, count - done)):
                    done += 1
                    self.runner.run(client, self.runner.module, **self.texts[done % len(self.texts)])
                client.close()
            except PeerDeviated:
                accused += 1
            finally:
                threads.close()
        return accused


def measure(chosen: argparse.Namespace, say: Say) -> Report:
    torch.set_num_threads(1)
    chance, started, campaign = random.Random(chosen.seed), time.perf_counter(), Campaign(chosen.plan)
    by_role: dict[str, dict[str, Counter[str]]] = {role: {kind: Counter() for kind in KINDS} for role in ROLES}
    for number in range(chosen.lies):
        say(f"lies: {number}/{chosen.lies}")
        role, kind = ROLES[number % 2], KINDS[number // 2 % len(KINDS)]
        by_role[role][kind][campaign.lie(role, kind, chance)] += 1
    counts = [count for kinds in by_role.values() for count in kinds.values()]
    return {
        "lies": sum(count["found"] + count["answered"] for count in counts),
        "found": sum(count["found"] for count in counts),
        "by_role": {role: {kind: dict(count) for kind, count in kinds.items()} for role, kinds in by_role.items()},
        "honest": chosen.honest,
        "accused": campaign.honest(chosen.honest, say),
        "seconds": time.perf_counter() - started,
    }


def broken(report: Report) -> str:
    """Which claim does not hold."""
    if report["found"] < report["lies"]:
        return f"{report['lies'] - report['found']} of {report['lies']} lies were not found"
    return f"{report['accused']} of {report['honest']} honest runs were accused" if report["accused"] else ""


def show(report: Report) -> list[Table | str]:
    rows = {
        f"lies of the {role}": ", ".join(f"{kind} {count.get('found', 0)}" for kind, count in kinds.items())
        for role, kinds in report["by_role"].items()
    }
    rows["lies, all"] = f"{report['found']} of {report['lies']} found"
    rows["honest runs"] = f"{report['accused']} of {report['honest']} accused"
    return [grid("Delegated layers of a Transformer of two layers: lies that are found", rows)]


def main(arguments: list[str] | None = None) -> int:
    options = parser("delegated_lies", "Count the lies about delegated layers that a client finds.")
    options.add_argument("--lies", type=int, default=360, help="of server and dealer (default %(default)s)")
    options.add_argument("--honest", type=int, default=200, help="honest runs (default %(default)s)")
    options.add_argument("--plan", choices=RINGS, default="faithful")
    options.add_argument("--seed", type=int, default=0)
    return carry_out(options, arguments, measure, show, broken=broken)


if __name__ == "__main__":
    raise SystemExit(main())
