"""The cluster's driver: `python -m blindformer.parties.replicas.driver`, a process apart, as Ray's threads and the
forks of a service do not go together.

On stdin an order as a JSON line, and one more for each change; when stdin ends, all replicas are drained. Who is ready,
and how many sessions each has, is written to the order's file every second.

A replica that fails, or whose node does, is replaced. What it was dealing or serving is lost with its session: parties
that ask again do so in a new one, with new seeds, so nothing of it is used twice.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from ...files import whole_file
from ...protocols.errors import BlindformerError
from ..cluster import connect
from ..service.metrics import Backoff
from .replica import SILENT_SECONDS, START_SECONDS, Replica

TURN_SECONDS = 1.0


@dataclass(frozen=True)
class Order:
    """What is to run. `cores`: that the cluster sets aside for each. `number`: of the order; a new one replaces all."""

    number: int
    command: str
    settings: str
    replicas: int
    cores: float
    grace: float
    file: str


@dataclass(eq=False)
class Running:
    """A replica, and what it said last. `look`: the question that it is being asked."""

    order: Order
    actor: Any
    look: Any
    asked: float = field(default_factory=time.monotonic)
    address: str = ""
    sessions: int = 0


class Replicas:
    """Keeps as many as ordered. A new order takes new replicas: the old ones are drained when these are ready."""

    def __init__(self) -> None:
        self._running: list[Running] = []
        self._draining: list[tuple[Running, Any, float]] = []
        self._backoff, self._again, self._any = Backoff(), 0.0, False

    def turn(self, order: Order) -> None:
        self._listen()
        mine = [one for one in self._running if one.order == order]
        if time.monotonic() >= self._again:
            self._running += [self._start(order) for _ in range(order.replicas - len(mine))]
        ready = [one for one in mine if one.address]
        if len(ready) >= order.replicas:
            for one in [*ready[order.replicas :], *(one for one in self._running if one.order != order)]:
                self._drain(one)
        for one, done, end in list(self._draining):
            if ray.wait([done], timeout=0)[0] or time.monotonic() > end:
                self._draining.remove((one, done, end))
                ray.kill(one.actor)
        shown = {one.address: one.sessions for one in self._running if one.address}
        with whole_file(Path(order.file)) as stream:
            stream.write(json.dumps(shown).encode())

    def drain(self) -> None:
        for one in list(self._running):
            self._drain(one)
        if self._draining:
            ends = [end - time.monotonic() for _, _, end in self._draining]
            ray.wait([done for _, done, _ in self._draining], num_returns=len(ends), timeout=max(0.0, *ends))

    def _start(self, order: Order) -> Running:
        actor = ray.remote(num_cpus=order.cores, scheduling_strategy="SPREAD")(Replica).remote(
            order.command, order.settings
        )
        return Running(order, actor, actor.look.remote())

    def _drain(self, one: Running) -> None:
        self._running.remove(one)
        self._draining.append((one, one.actor.drain.remote(), time.monotonic() + one.order.grace + SILENT_SECONDS))

    def _listen(self) -> None:
        """Hear those that have answered; give up those that have failed, or are silent."""
        for one in list(self._running):
            try:
                one.address, one.sessions = ray.get(one.look, timeout=0)
            except GetTimeoutError:
                if time.monotonic() - one.asked < (SILENT_SECONDS if one.address else START_SECONDS):
                    continue
                self._lost(one, f"said nothing for {SILENT_SECONDS:g} seconds")
            except RayError as error:
                message = " ".join(str(error).split()).rpartition("ReplicaError: ")[-1]  # after Ray's own words, if any
                self._lost(one, message if len(message) < 400 else f"...{message[-300:]}")
            else:
                self._backoff.reset()
                self._any = True
                one.look, one.asked = one.actor.look.remote(), time.monotonic()

    def _lost(self, one: Running, why: str) -> None:
        self._running.remove(one)
        ray.kill(one.actor)
        if not self._any:
            sys.exit(f"blindformer: replica: {why}")
        self._again = time.monotonic() + self._backoff.ended()
        sys.stderr.write(f"blindformer: replica {one.address or 'that was starting'}: {why}; another is started\n")


def main() -> None:
    orders: queue.SimpleQueue[str] = queue.SimpleQueue()

    connected = threading.Event()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        orders.put("")
        if not connected.is_set():
            os._exit(1)  # the cluster may take minutes to say that it is not there

    threading.Thread(target=read, daemon=True).start()
    try:
        connect()
    except BlindformerError as error:
        sys.exit(f"blindformer: {error}")
    connected.set()
    order, replicas = Order(**json.loads(orders.get())), Replicas()
    while True:
        replicas.turn(order)
        try:
            line = orders.get(timeout=TURN_SECONDS)
        except queue.Empty:
            continue
        if not line:
            break
        order = Order(**json.loads(line))
    replicas.drain()
    ray.shutdown()


if __name__ == "__main__":
    main()
