"""Requests wait in their order, within bounds; one whose caller leaves gives its place to the next, and ends."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from blindformer.parties.gateway.problems import ApiError
from blindformer.parties.gateway.request_queue import Gone, Job, RequestQueue, while_connected
from blindformer.tests.patience import PATIENCE


def run(test: Callable[[RequestQueue], Coroutine[Any, Any, None]], at_once: int, most: int) -> None:
    """An asynchronous test of a queue."""

    async def bounded() -> None:
        with closing(RequestQueue(at_once, most)) as queue:
            await asyncio.wait_for(test(queue), 20)

    asyncio.run(bounded())


def leaving(after: asyncio.Event) -> Any:
    """A request whose caller disconnects then."""

    async def receive() -> dict[str, str]:
        await after.wait()
        return {"type": "http.disconnect"}

    return SimpleNamespace(receive=receive)


def test_so_many_run_so_many_wait_in_order_and_the_others_are_told_when_to_come_back():
    order = []

    async def test(queue: RequestQueue) -> None:
        async def ask(number: int) -> str:
            try:
                job = await queue.begin(lambda job: None)
            except ApiError as error:
                return f"{error.status}, again in {error.retry_after:.0f} s"
            order.append(number)
            await job.result()
            return "answered"

        answers = Counter(await asyncio.gather(*(ask(number) for number in range(64))))
        assert answers == {"answered": 5, "429, again in 2 s": 59}
        assert order == sorted(order)
        assert (queue.running, queue.waiting) == (0, 0)

    run(test, 2, 3)


def test_who_leaves_while_waiting_leaves_the_queue():
    async def test(queue: RequestQueue) -> None:
        gone, end = asyncio.Event(), threading.Event()
        await queue.begin(lambda job: end.wait(PATIENCE))
        waits = asyncio.ensure_future(while_connected(leaving(gone), queue.begin(lambda job: None)))
        while not queue.waiting:
            await asyncio.sleep(0)
        gone.set()
        with pytest.raises(Gone):
            await waits
        assert (queue.running, queue.waiting) == (1, 0)
        end.set()
        await (await queue.begin(lambda job: None)).result()

    run(test, 1, 8)


def test_who_leaves_ends_the_work_and_the_place_is_free_when_its_thread_is_done():
    async def test(queue: RequestQueue) -> None:
        gone, going = asyncio.Event(), threading.Event()

        def work(job: Job[None]) -> None:
            job.say("a piece")
            while not job.stopped:
                going.wait(0.01)

        job = await queue.begin(work)
        await job.begun(10)

        async def read() -> None:
            try:
                await job.result()
            finally:
                job.stop()

        asked = asyncio.ensure_future(while_connected(leaving(gone), read()))
        await asyncio.sleep(0.01)
        assert queue.running == 1
        gone.set()
        with pytest.raises(Gone):
            await asked
        await (await queue.begin(lambda job: None)).result()  # when the thread has ended
        assert queue.running == 0
        assert [piece async for piece in job.pieces()] == ["a piece"]

    run(test, 1, 8)


def test_an_error_of_the_work_is_raised_where_it_is_asked_for_and_silence_is_noticed():
    async def test(queue: RequestQueue) -> None:
        wait = threading.Event()

        def work(job: Job[None]) -> None:
            wait.wait(PATIENCE)
            raise ApiError(400, "no")

        job = await queue.begin(work)
        pieces = job.pieces(0.01)
        assert await anext(pieces) == ""
        wait.set()
        with pytest.raises(ApiError):
            await job.result()
        with pytest.raises(ApiError):
            await job.begun(1)
        assert queue.running == 0

    run(test, 1, 0)


def test_callers_take_turns_and_a_flood_delays_its_sender_alone():
    served: list[str] = []

    async def test(queue: RequestQueue) -> None:
        end = threading.Event()
        first = await queue.begin(lambda job: end.wait(PATIENCE), "flood")

        async def ask(caller: str) -> str:
            try:
                job = await queue.begin(lambda job: served.append(caller), caller)
            except ApiError as error:
                return f"{caller} {error.status}"
            await job.result()
            return f"{caller} answered"

        flood = [asyncio.ensure_future(ask("flood")) for _ in range(5)]
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(ask(name)) for name in ("alice", "bob")]
        await asyncio.sleep(0)
        assert queue.waiting == 4
        end.set()
        await first.result()
        answers = Counter(await asyncio.gather(*flood, *others))
        assert answers == {"flood answered": 2, "flood 429": 3, "alice answered": 1, "bob answered": 1}
        assert served == ["alice", "bob", "flood", "flood"]
        assert (queue.running, queue.waiting) == (0, 0)

    run(test, 1, 4)
