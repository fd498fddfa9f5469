"""One query on a worker: told of step by step, and stopped between two steps when nobody listens any more."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from .key_store import KeySet
from .places import Places
from .refusals import Refusal
from .workers import WorkerProcess, Workers

NEWS_SECONDS = 10.0


@dataclass
class EncryptedQuery:
    """`run` does it; `first` and `lines` tell whoever asked. `abandon`: nobody listens any more. `connection`: the
    number of the one that asks."""

    keys: KeySet
    body: bytes
    connection: int
    seconds: float = 0.0
    sent: int = 0
    refusal: Refusal | None = None
    _news: asyncio.Queue[dict[str, Any] | Refusal | None] = field(default_factory=asyncio.Queue)
    _abandoned: bool = False

    async def run(self, places: Places, workers: Workers) -> None:
        """Errors go to whoever listens."""
        self.keys.users += 1
        try:
            await places.turn(self.connection)
            try:
                async with workers.worker(self.keys.name) as worker:
                    if not self._abandoned:
                        await self._compute(worker)
            finally:
                places.release(self.connection)
        except Refusal as refusal:
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
        """Return when the query computes. Errors: Refusal, when it will not."""
        news = await self._news.get()
        if isinstance(news, Refusal):
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
            yield {"error": str(news), "status": news.status} if isinstance(news, Refusal) else news

    def abandon(self) -> None:
        self._abandoned = True
