"""What a client holds of the service: keys on disk, a place for its request, and a query that a worker computes."""

from __future__ import annotations

import asyncio
import base64
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ....protocols.ckks.facts import CircuitNeeds
from ....protocols.ckks.frames import most
from ...session.compute_slots import SlotsBusy
from ..admission import Admission, Busy, News, Queued, ServiceLimits
from .bodies import Refusal
from .workers import WorkerProcess, Workers

SERVER = "server"
NEWS_SECONDS = 10.0
GONE = "no keys of this certificate under that name: never sent, or expired; send keys again"


@dataclass
class KeySet:
    """`owner`, `serial`: of a certificate. `reserved`: the most that it may take on disk. `users`: jobs that need it
    now."""

    name: str
    owner: str
    facts: CircuitNeeds
    folder: Path
    reserved: int
    used: float
    whole: bool = False
    taking: bool = False
    users: int = field(default=0)
    serial: str = "0"


class KeyStore:
    """Bounded in bytes, in sets, and in sets of one certificate; what was used least lately goes first.

    forgotten   is told the name of every set that goes
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int,
        most_sets: int,
        each: int,
        seconds: float,
        forgotten: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.seconds = folder, seconds
        self._most_bytes, self._most_sets, self._each = most_bytes, most_sets, each
        self._forgotten, self._clock = forgotten, clock
        self.sets: dict[str, KeySet] = {}

    @property
    def bytes(self) -> int:
        return sum(item.reserved for item in self.sets.values())

    def reserve(self, owner: str, facts: CircuitNeeds, serial: str = "0") -> KeySet:
        """Room for one more set. Errors: SlotsBusy."""
        self.expire()
        size = most(facts.key_items())
        mine = [item for item in self.sets.values() if item.owner == owner]
        if len(mine) >= self._each:
            self._drop_idle(mine)
        while len(self.sets) >= self._most_sets or self.bytes + size > self._most_bytes:
            self._drop_idle(list(self.sets.values()))
        name = secrets.token_hex(16)
        item = KeySet(name, owner, facts, self.folder / name, size, self._clock(), serial=serial)
        item.folder.mkdir(mode=0o700)
        self.sets[name] = item
        return item

    def find(self, owner: str, name: str, whole: bool = True) -> KeySet:
        """Errors: Refusal (410): one that is not there, or of another certificate, which is all the same to whoever
        asks; (409) for one that is not all there."""
        self.expire()
        item = self.sets.get(name)
        if item is None or item.owner != owner:
            raise Refusal(410, GONE)
        if whole and not item.whole:
            raise Refusal(409, "these keys have not arrived whole; send them again")
        item.used = self._clock()
        return item

    def drop(self, item: KeySet) -> None:
        if self.sets.pop(item.name, None) is not None:
            shutil.rmtree(item.folder, ignore_errors=True)
            self._forgotten(item.name)

    def expire(self) -> None:
        """Drop what was not used for too long."""
        now = self._clock()
        for item in [item for item in self.sets.values() if not self._busy(item) and now - item.used > self.seconds]:
            self.drop(item)

    def _drop_idle(self, items: list[KeySet]) -> None:
        idle = sorted((item for item in items if not self._busy(item)), key=lambda item: item.used)
        if not idle:
            raise SlotsBusy(SERVER, 30, "it has no room for more keys")
        self.drop(idle[0])

    def _busy(self, item: KeySet) -> bool:
        return bool(item.users) or item.taking


class RequestAdmission:
    """`limits.sessions`: connections with a request at a time. `connection`: its number."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._admission = Admission(limits, called="connections")
        self._waiting: dict[int, asyncio.Future[None]] = {}  # of queries that wait
        self._left = set[int]()  # connections that are gone while their queries run

    @property
    def gauges(self) -> dict[str, int]:
        return {"running": self._admission.running, "queued": self._admission.queued}

    def open(self, connection: int, owner: str) -> SlotsBusy | None:
        """A place for a request; or why there is none."""
        verdict = self._admission.open(connection, owner)
        return SlotsBusy(SERVER, verdict.seconds, verdict.why) if isinstance(verdict, Busy) else None

    def leave(self, connection: int) -> None:
        """It is gone, and its query with it, if that waits. One that runs ends at its next step, and holds its places
        until then: whoever hangs up again and again would have many run."""
        if waiting := self._waiting.pop(connection, None):
            waiting.cancel()
        if self._admission.is_running(connection):
            self._left.add(connection)
        else:
            self._spread(self._admission.leave(connection))

    def check(self, connection: int) -> None:
        """Errors: SlotsBusy if a query would find no place; Refusal if the connection has left."""
        try:
            verdict = self._admission.check(connection)
        except ValueError:
            raise Refusal(400, "the connection has ended; ask again") from None
        if verdict is not None:
            raise SlotsBusy(SERVER, verdict.seconds, verdict.why)

    async def wait(self, connection: int) -> None:
        """Return when the query may compute. Errors: as `check`; CancelledError when the connection leaves."""
        self.check(connection)
        verdict = self._admission.want(connection)
        if isinstance(verdict, Queued):
            self._waiting[connection] = asyncio.get_running_loop().create_future()
            await self._waiting[connection]

    def release(self, connection: int) -> None:
        """The query is over, and all that one held whose connection has left."""
        if self._admission.is_running(connection):
            self._spread(self._admission.release(connection))
        if connection in self._left:
            self._left.remove(connection)
            self._spread(self._admission.leave(connection))

    def _spread(self, news: News) -> None:
        for connection, verdict in news:
            if not isinstance(verdict, Queued):
                self._waiting.pop(connection).set_result(None)


@dataclass
class EncryptedQuery:
    """`run` does it; `first` and `lines` report to whoever asked. `abandon`: nobody listens any more. `connection`: the
    number of the one that asks."""

    keys: KeySet
    body: bytes
    connection: int
    seconds: float = 0.0
    sent: int = 0
    refusal: Refusal | SlotsBusy | None = None
    _news: asyncio.Queue[dict[str, Any] | Refusal | SlotsBusy | None] = field(default_factory=asyncio.Queue)
    _abandoned: bool = False

    async def run(self, admission: RequestAdmission, workers: Workers) -> None:
        """Errors go to whoever listens."""
        self.keys.users += 1
        try:
            await admission.wait(self.connection)
            try:
                async with workers.worker(self.keys.name) as worker:
                    if not self._abandoned:
                        await self._compute(worker)
            finally:
                admission.release(self.connection)
        except (Refusal, SlotsBusy) as refusal:
            self.refusal = refusal
            self._news.put_nowait(refusal)
        finally:
            self.keys.users -= 1
            self._news.put_nowait(None)

    async def _compute(self, worker: WorkerProcess) -> None:
        await worker.ask(
            {"do": "query", "keys": self.keys.name, "program": self.keys.facts.program,
             "folder": str(self.keys.folder)},
            self.body,
        )  # fmt: skip
        steps, stopping = self.keys.facts.steps, False
        self._news.put_nowait({"accepted": True})
        while True:
            head, body = await worker.hear()
            if "seconds" in head:
                self.seconds, self.sent = float(head["seconds"]), len(body)
                self._news.put_nowait({"seconds": self.seconds, "answer": base64.b64encode(body).decode()})
                return
            if "done" not in head:  # stopped, or failed
                if "failed" in head:
                    raise Refusal(500, head["failed"])
                return
            done = int(head["done"])
            self._news.put_nowait({"done": done, "of": int(head["of"]), "layer": steps[done - 1]})
            if self._abandoned and not stopping:
                stopping = True
                await worker.say({"do": "stop"})

    async def first(self) -> None:
        """Return when the query computes. Errors: Refusal, SlotsBusy, when it will not."""
        news = await self._news.get()
        if isinstance(news, Exception):
            raise news

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """What happens; where nothing does for a while, that it is still on its way."""
        while True:
            try:
                news = await asyncio.wait_for(self._news.get(), NEWS_SECONDS)
            except TimeoutError:
                yield {"waiting": True}
                continue
            if news is None:
                return
            yield {"error": str(news), "status": status_of(news)} if isinstance(news, Exception) else news

    def abandon(self) -> None:
        self._abandoned = True


def status_of(error: Refusal | SlotsBusy) -> int:
    """Of an HTTP reply."""
    return 503 if isinstance(error, SlotsBusy) else error.status
