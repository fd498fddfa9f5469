"""A service with many clients on a virtual clock: who waits, how long, and who is told to come back.

A query takes here what it takes in parties/session/server.py: it holds a worker from its turn to its answer. First it
waits for its correlations, which dealer, server and client make at once (in a session of several queries: while the
query before runs), then the online phase runs. Who gets a worker, who waits and who is told to come back is decided by
the services' own rules, parties/service/admission.py. All that computes on a machine shares its cores equally
(processor sharing); a network only delays.

Left out: the CPU time of handshakes and of TLS, and failures of dealers. simpy is imported when something is simulated.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from ...protocols.errors import BlindformerError
from ...protocols.streams import SEED_BYTES, Stream
from ..client.base import REOPEN_SECONDS
from ..service.admission import Admission, Busy, Go, News
from ..service.limits import ServiceLimits

if TYPE_CHECKING:
    import simpy

SLICES = 8  # of an online phase: in each both parties compute, then the network delays
WARM_UP = 0.1  # of the time: queries that were asked in it do not count, as the service began empty
SPREAD = 0.2  # a client comes back up to this part later than it was told to (parties/client/transport.py)
LEAST = 1e-12  # seconds: computing that is over, but for rounding


class QueueingError(BlindformerError):
    """A service that cannot be simulated."""


@dataclass(frozen=True)
class QueryCosts:
    """What one query takes where nobody else asks. Seconds of CPU by party and phase; `_wait`: seconds that a phase
    takes beyond computing (the network's); `opening`: of a session, before its first query."""

    server_offline: float = 0.0
    server_online: float = 0.0
    client_offline: float = 0.0
    client_online: float = 0.0
    dealer: float = 0.0
    offline_wait: float = 0.0
    online_wait: float = 0.0
    opening: float = 0.0

    @property
    def server(self) -> float:
        return self.server_offline + self.server_online

    @property
    def held(self) -> float:
        """Seconds that a query on live correlations holds a worker of an idle service."""
        offline = max(self.server_offline, self.client_offline, self.dealer) + self.offline_wait
        return offline + max(self.server_online, self.client_online) + self.online_wait

    @property
    def latency(self) -> float:
        """Seconds from asking to the answer, of a session's only query to an idle service."""
        return self.opening + self.held

    def stored(self) -> QueryCosts:
        """Of a query whose correlations were made ahead."""
        return replace(self, dealer=0.0, offline_wait=0.0)

    def times(self, factor: float) -> QueryCosts:
        return QueryCosts(**{name: factor * value for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Fleet:
    """Machines of `cores` cores each: servers (`replicas`), and dealers, each of which deals to some of the servers.

    A client dials any replica that runs. `workers`, `sessions`, `queue`, `share`: settings of each server;
    `dealer_workers`: of each dealer. `failure_s`: mean seconds until a replica fails; `restart_s`: until it is back.
    `one_machine`: all parties, clients too, share one machine's cores.
    """

    replicas: int = 1
    dealers: int = 1
    cores: int = 4
    workers: int = 4
    sessions: int = 32
    queue: int = 64
    share: float = 0.15
    dealer_workers: int = 4
    failure_s: float = math.inf
    restart_s: float = 60.0
    one_machine: bool = False


@dataclass(frozen=True)
class Traffic:
    """Who asks, for `seconds`: `rate` sessions of one query a second, at random (Poisson), each of another client; or,
    with `clients`, so many that ask again as soon as they are answered, each in one session.

    `wait`: seconds that a client goes on asking a busy service. `stored`: the part of queries whose correlations were
    made ahead. `exponential`: a query takes a random multiple of its costs (of mean 1), as theory likes it.
    """

    seconds: float
    rate: float = 0.0
    clients: int = 0
    wait: float = 60.0
    stored: float = 0.0
    exponential: bool = False


@dataclass(frozen=True)
class Simulated:
    """What became of the queries: asked = answered + turned_away + lost.

    `told`: queries that were told to come back at least once, of which those in `turned_away` gave up; `lost`: a
    replica failed twice under them, or none ran. Latencies: seconds from asking to the answer; waits: from asking until
    a worker was free. Utilisation: of the cores.
    """

    asked: int
    answered: int
    told: int
    turned_away: int
    lost: int
    per_second: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    wait_mean_s: float
    wait_p50_s: float
    wait_p95_s: float
    server_utilisation: float
    dealer_utilisation: float


def simulate(costs: QueryCosts, fleet: Fleet, traffic: Traffic, seed: int = 0) -> Simulated:
    """The same figures for the same seed. Errors: QueueingError without simpy, or where nobody asks."""
    if traffic.rate <= 0 and traffic.clients <= 0:
        raise QueueingError("simulate: nobody asks; give a rate or clients above 0")
    return _Simulation(costs, fleet, traffic, seed).run()


def need_simpy() -> Any:
    """The library. Errors: QueueingError."""
    try:
        import simpy
    except ImportError:
        raise QueueingError("simpy is not installed, which simulates; run: pip install 'blindformer[scale]'") from None
    return simpy


class _ComeBack(Exception):
    """The service is busy: the client asks again in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class _Away(Exception):
    """No replica runs."""


class _Draws:
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

    def exponential(self, mean: float) -> float:
        return -mean * math.log(1.0 - self.uniform())


class _Computes(Protocol):
    def work(self, seconds: float) -> simpy.Event: ...


class _OwnMachine:
    """A client's: nobody else computes on it."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env

    def work(self, seconds: float) -> simpy.Event:
        return self._env.timeout(seconds)


class _Cores:
    """Cores that jobs of one thread each share equally. A job is over when `_each`, what any job that was here all the
    time has got, has grown by its seconds."""

    def __init__(self, env: simpy.Environment, cores: int) -> None:
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
        """The machine fails: what it computes is lost."""
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


class _Slots:
    """Sessions and workers of one service, by its own rules."""

    def __init__(self, env: simpy.Environment, limits: ServiceLimits) -> None:
        self._env, self._admission = env, Admission(limits, lambda: env.now)
        self._queued: dict[int, simpy.Event] = {}

    def open(self, child: int, owner: str) -> None:
        verdict = self._admission.open(child, owner)
        if isinstance(verdict, Busy):
            raise _ComeBack(verdict.seconds)

    def want(self, child: int) -> simpy.Event:
        """The event of having a worker."""
        verdict, turn = self._admission.want(child), self._env.event()
        if isinstance(verdict, Busy):
            raise _ComeBack(verdict.seconds)
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


@dataclass
class _Dealer:
    cores: _Cores
    slots: _Slots


@dataclass
class _Replica:
    name: str
    cores: _Cores
    slots: _Slots
    dealer: _Dealer
    runs: bool = True
    sessions: dict[int, _Session] = field(default_factory=dict)


@dataclass
class _Session:
    """`ahead`: the making of the next query's correlations; its value is an error or None."""

    child: int
    replica: _Replica
    client: _Computes
    process: simpy.Process
    ahead: simpy.Process | None = None
    turn: float = 0.0  # when the last query got a worker


Steps = Generator["simpy.Event", Any, Any]


class _Simulation:
    def __init__(self, costs: QueryCosts, fleet: Fleet, traffic: Traffic, seed: int) -> None:
        self._simpy = need_simpy()
        env = self.env = self._simpy.Environment()
        self.costs, self.fleet, self.traffic, self.draws = costs, fleet, traffic, _Draws(seed)
        self._children = count()
        self._shared = _Cores(env, fleet.cores) if fleet.one_machine else None
        # A dealer lets as many sessions in as its servers do: a plan sets it so.
        many = min(10_000, fleet.sessions * math.ceil(fleet.replicas / fleet.dealers))
        dealt = ServiceLimits(workers=fleet.dealer_workers, sessions=many, queue=fleet.queue, share=1.0)
        self.dealers = [_Dealer(self._machine(), _Slots(env, dealt)) for _ in range(fleet.dealers)]
        self.replicas = [
            _Replica(str(number), self._machine(), self._slots(), self.dealers[number % fleet.dealers])
            for number in range(fleet.replicas)
        ]
        self.outcomes: list[tuple[str, float, float, float, bool]] = []  # what, asked, ended, waited, told

    def _machine(self) -> _Cores:
        return self._shared or _Cores(self.env, self.fleet.cores)

    def _slots(self) -> _Slots:
        fleet = self.fleet
        limits = ServiceLimits(
            workers=fleet.workers, sessions=fleet.sessions, queue=fleet.queue, share=fleet.share
        )  # fmt: skip
        return _Slots(self.env, limits)

    def run(self) -> Simulated:
        env, end = self.env, self.traffic.seconds
        if math.isfinite(self.fleet.failure_s):
            for replica in self.replicas:
                env.process(self._fail(replica))
        everyone = env.process(self._everyone())
        env.run(until=end)
        used = [self._used([one.cores for one in machines], end) for machines in (self.replicas, self.dealers)]
        if everyone.is_alive:
            env.run(until=everyone)
        return self._figures(*used)

    def _used(self, machines: Sequence[_Cores], seconds: float) -> float:
        return sum(one.busy for one in machines) / (seconds * sum(one.cores for one in machines))

    def _everyone(self) -> Steps:
        """Until the last client has its answer."""
        env, traffic = self.env, self.traffic
        visits = [env.process(self._visit(f"{number}")) for number in range(traffic.clients)]
        while traffic.rate:
            yield env.timeout(self.draws.exponential(1.0 / traffic.rate))
            if env.now >= traffic.seconds:
                break
            visits.append(env.process(self._visit(f"{len(visits)}")))
        for visit in visits:
            if visit.is_alive:
                yield visit

    def _visit(self, owner: str) -> Steps:
        """A client's one session: a query, or one after the other until the time is over."""
        env, traffic = self.env, self.traffic
        client = self._shared or _OwnMachine(env)
        session: _Session | None = None
        while True:
            costs = self._drawn()
            began, deadline, lost, told, outcome = env.now, env.now + traffic.wait, False, False, ""
            more = traffic.clients > 0
            while not outcome:
                try:
                    if session is None:
                        session = self._open(owner, client)
                        yield env.timeout(costs.opening)
                    yield from self._query(session, costs, more)
                    outcome = "answered"
                except _ComeBack as busy:
                    told = True
                    if (left := deadline - env.now) <= 0:
                        outcome = "turned away"
                    else:
                        session = yield from self._rest(
                            session, min(left, busy.seconds * (1 + SPREAD * self.draws.uniform()))
                        )
                except _Away:
                    if not lost or env.now + REOPEN_SECONDS > deadline:
                        outcome = "lost"
                    else:
                        yield env.timeout(REOPEN_SECONDS)
                except self._simpy.Interrupt:  # the replica failed
                    session, outcome, lost = None, "lost" if lost else "", True
            waited = session.turn - began if session is not None else 0.0
            self.outcomes.append((outcome, began, env.now, waited, told))
            if not more or env.now >= traffic.seconds:
                break
        if session is not None:
            self._close(session)

    def _drawn(self) -> QueryCosts:
        costs, traffic = self.costs, self.traffic
        if traffic.stored and self.draws.uniform() < traffic.stored:
            costs = costs.stored()
        return costs.times(self.draws.exponential(1.0)) if traffic.exponential else costs

    def _open(self, owner: str, client: _Computes) -> _Session:
        running = [replica for replica in self.replicas if replica.runs]
        if not running:
            raise _Away
        replica = running[int(self.draws.uniform() * len(running))]
        child = next(self._children)
        replica.slots.open(child, owner)
        try:
            replica.dealer.slots.open(child, replica.name)
        except _ComeBack:
            replica.slots.leave(child)
            raise
        assert self.env.active_process is not None
        session = replica.sessions[child] = _Session(child, replica, client, self.env.active_process)
        return session

    def _close(self, session: _Session) -> None:
        replica, child = session.replica, session.child
        if session.ahead is not None and session.ahead.is_alive:
            session.ahead.interrupt()
        replica.sessions.pop(child, None)
        replica.slots.leave(child)
        replica.dealer.slots.leave(child)

    def _rest(self, session: _Session | None, seconds: float) -> Steps:
        """The session as it is after so many seconds: None if there is none, or its replica failed meanwhile."""
        try:
            yield self.env.timeout(seconds)
        except self._simpy.Interrupt:
            return None
        return session

    def _query(self, session: _Session, costs: QueryCosts, more: bool) -> Steps:
        env, server, client = self.env, session.replica, session.client
        yield server.slots.want(session.child)
        session.turn = env.now
        ahead = session.ahead
        busy = (yield from self._correlations(session, costs)) if ahead is None else (yield ahead)
        session.ahead = None
        if busy is not None:
            server.slots.release(session.child)
            raise busy
        if more:
            session.ahead = env.process(self._correlations(session, self._drawn(), aside=True))
        for _ in range(SLICES):
            yield server.cores.work(costs.server_online / SLICES) & client.work(costs.client_online / SLICES)
            yield env.timeout(costs.online_wait / SLICES)
        server.slots.release(session.child)

    def _correlations(self, session: _Session, costs: QueryCosts, aside: bool = False) -> Steps:
        """All three parties make a query's correlations. `aside`: in a process of its own. The dealer may be busy: then
        the value is an error to raise."""
        server, dealer = session.replica, session.replica.dealer
        try:
            parts = [session.client.work(costs.client_offline)]
            if costs.dealer:
                try:
                    yield dealer.slots.want(session.child)
                except _ComeBack as busy:
                    return busy
                parts.append(dealer.cores.work(costs.dealer))
            yield self._simpy.AllOf(self.env, [*parts, server.cores.work(costs.server_offline)])
            yield self.env.timeout(costs.offline_wait)
            if costs.dealer:
                dealer.slots.release(session.child)
        except self._simpy.Interrupt:
            if not aside:
                raise
        return None

    def _fail(self, replica: _Replica) -> Steps:
        while True:
            yield self.env.timeout(self.draws.exponential(self.fleet.failure_s))
            replica.runs = False
            replica.cores.drop()
            for session in list(replica.sessions.values()):
                self._close(session)
                session.process.interrupt()
            yield self.env.timeout(self.fleet.restart_s)
            replica.slots, replica.runs = self._slots(), True

    def _figures(self, servers: float, dealers: float) -> Simulated:
        warm = WARM_UP * self.traffic.seconds
        counted = [found for found in self.outcomes if found[1] >= warm]
        answered = [found for found in counted if found[0] == "answered"]
        latencies = sorted(ended - began for _, began, ended, _, _ in answered)
        waits = sorted(waited for *_, waited, _ in answered)
        inside = sum(
            what == "answered" and warm <= ended <= self.traffic.seconds for what, _, ended, *_ in self.outcomes
        )
        return Simulated(
            asked=len(counted),
            answered=len(answered),
            told=sum(told for *_, told in counted),
            turned_away=sum(what == "turned away" for what, *_ in counted),
            lost=sum(what == "lost" for what, *_ in counted),
            per_second=inside / (self.traffic.seconds - warm),
            latency_mean_s=_mean(latencies),
            latency_p50_s=_quantile(latencies, 0.5),
            latency_p95_s=_quantile(latencies, 0.95),
            latency_p99_s=_quantile(latencies, 0.99),
            wait_mean_s=_mean(waits),
            wait_p50_s=_quantile(waits, 0.5),
            wait_p95_s=_quantile(waits, 0.95),
            server_utilisation=servers,
            dealer_utilisation=dealers,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values."""
    return values[max(0, math.ceil(part * len(values)) - 1)] if values else math.nan
