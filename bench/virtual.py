"""What a simulated service is made of: machines whose cores and links are shared, sessions and workers by the services'
own rules, and random numbers that a seed decides. simpy is imported when it is used."""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from blindformer.parties.service.admission import Admission, Busy, Go, News, ServiceLimits
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.errors import BlindformerError
from blindformer.protocols.streams import SEED_BYTES, Stream

if TYPE_CHECKING:
    import simpy

T = TypeVar("T")
Steps = Generator["simpy.Event", Any, Any]
LEAST = 1e-12  # seconds: computing that is over, but for rounding


class QueueingError(BlindformerError):
    """A service that cannot be simulated."""


def need_simpy() -> Any:
    """The library. Errors: QueueingError."""
    try:
        import simpy
    except ImportError:
        raise QueueingError("simpy is not installed, which simulates; run: pip install simpy") from None
    return simpy


class Draws:
    """Random numbers that a seed decides."""

    def __init__(self, seed: int) -> None:
        self._stream = Stream(seed.to_bytes(SEED_BYTES, "big"), "queueing")
        self._batches, self._left = count(), []

    def uniform(self) -> float:
        """Below 1, of 53 bits."""
        if not self._left:
            drawn = self._stream.integers(str(next(self._batches)), (4096,))
            self._left = [number / 2**53 for number in ((drawn >> 11) & (2**53 - 1)).tolist()]
        return self._left.pop()

    def choice(self, among: Sequence[T]) -> T:
        return among[int(self.uniform() * len(among))]

    def exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self.uniform())


class Computes(Protocol):
    def work(self, seconds: float) -> simpy.Event: ...


class OwnMachine:
    """A client's: nobody else computes on it."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env

    def work(self, seconds: float) -> simpy.Event:
        return self._env.timeout(seconds)


class SharedRate:
    """Cores that jobs of one thread each share equally; or, with one, a link. A job is over when `_each`, what any job
    that was here all the time has got, has grown by its seconds."""

    def __init__(self, env: simpy.Environment, cores: float) -> None:
        self._env, self.cores = env, cores
        self.busy = 0.0  # core seconds
        self._each, self._since, self._alarm, self._numbers = 0.0, 0.0, 0, count()
        self._jobs: list[tuple[float, int, simpy.Event]] = []

    def work(self, seconds: float) -> simpy.Event:
        """The event of so many CPU seconds being done."""
        self._advance()
        done = self._env.event()
        heapq.heappush(self._jobs, (self._each + seconds, next(self._numbers), done))
        self._set_alarm()
        return done

    def drop(self) -> None:
        """What is under way is lost."""
        self._advance()
        self._jobs.clear()
        self._alarm += 1

    def _speed(self) -> float:
        return min(1.0, self.cores / len(self._jobs))

    def _advance(self) -> None:
        if self._jobs:
            gained = (self._env.now - self._since) * self._speed()
            self._each += gained
            self.busy += gained * len(self._jobs)
        self._since = self._env.now

    def _set_alarm(self) -> None:
        self._alarm += 1
        left = max(0.0, self._jobs[0][0] - self._each) / self._speed()
        alarm = self._env.timeout(left, self._alarm)
        assert alarm.callbacks is not None
        alarm.callbacks.append(self._ring)

    def _ring(self, event: simpy.Event) -> None:
        if event.value != self._alarm:
            return  # jobs have come or gone since it was set
        self._advance()
        self._each = max(self._each, self._jobs[0][0])
        while self._jobs and self._jobs[0][0] <= self._each + LEAST:
            heapq.heappop(self._jobs)[2].succeed()
        if self._jobs:
            self._set_alarm()


class Machine:
    """Cores, and a link of `uplink` bits a second each way, which those who send share equally, too. `shared`: cores of
    another machine, which are these."""

    def __init__(self, env: simpy.Environment, cores: float, uplink: float, shared: SharedRate | None = None) -> None:
        self._env, self._uplink = env, uplink
        self.cores = shared or SharedRate(env, cores)
        self.entering, self.leaving = SharedRate(env, 1), SharedRate(env, 1)

    def carry(self, entering: float = 0.0, leaving: float = 0.0) -> list[simpy.Event]:
        """The events of so many bytes having passed."""
        ways = ((self.entering, entering), (self.leaving, leaving))
        return [link.work(8 * size / self._uplink) for link, size in ways if size and math.isfinite(self._uplink)]

    def drop(self) -> None:
        """It fails: what it does is lost."""
        for part in (self.cores, self.entering, self.leaving):
            part.drop()


class Slots:
    """Sessions and workers of one service, by its own rules."""

    def __init__(self, env: simpy.Environment, party: str, limits: ServiceLimits) -> None:
        self._party, self._env, self._admission = party, env, Admission(limits, lambda: env.now)
        self._queued: dict[int, simpy.Event] = {}

    def open(self, child: int, owner: str) -> None:
        verdict = self._admission.open(child, owner)
        if isinstance(verdict, Busy):
            raise SlotsBusy(self._party, verdict.seconds, verdict.why)

    def want(self, child: int) -> simpy.Event:
        """The event of having a worker."""
        verdict, turn = self._admission.want(child), self._env.event()
        if isinstance(verdict, Busy):
            raise SlotsBusy(self._party, verdict.seconds, verdict.why)
        if isinstance(verdict, Go):
            return turn.succeed()
        self._queued[child] = turn
        return turn

    def release(self, child: int) -> None:
        self._tell(self._admission.release(child))

    def leave(self, child: int) -> None:
        self._queued.pop(child, None)
        self._tell(self._admission.leave(child))

    def _tell(self, news: News) -> None:
        for child, verdict in news:
            if isinstance(verdict, Go):
                self._queued.pop(child).succeed()
