"""Requests wait in their order, within bounds; one that is left gives its place to the next, and ends its work."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from blindformer.parties.gateway.problems import ApiError
from blindformer.parties.gateway.turns import Gone, Job, Line, while_there
from blindformer.tests.patience import PATIENCE


def run(test) -> None:
    """An asynchronous test, with a pool of threads."""
    with ThreadPoolExecutor(4) as pool:
        asyncio.run(asyncio.wait_for(test(pool), 20))


def leaving(after: asyncio.Event) -> Any:
    """A request whose sender leaves then."""

    async def receive() -> dict[str, str]:
        await after.wait()
        return {"type": "http.disconnect"}

    return SimpleNamespace(receive=receive)


def test_so_many_run_so_many_wait_in_order_and_the_others_are_told_when_to_come_back():
    async def test(pool):
        line, order = Line(2, 3), []

        async def ask(number: int) -> str:
            try:
                await line.enter()
            except ApiError as error:
                return f"{error.status}, again in {error.retry_after:.0f} s"
            order.append(number)
            await Job(line, pool, lambda job: None).result()
            return "answered"

        answers = Counter(await asyncio.gather(*(ask(number) for number in range(64))))
        assert answers == {"answered": 5, "429, again in 2 s": 59}
        assert order == sorted(order)
        assert (line.running, line.waiting) == (0, 0)

    run(test)


def test_who_leaves_while_waiting_leaves_the_line():
    async def test(pool):
        line, gone = Line(1, 8), asyncio.Event()
        await line.enter()
        waits = asyncio.ensure_future(while_there(leaving(gone), line.enter()))
        while not line.waiting:
            await asyncio.sleep(0)
        gone.set()
        with pytest.raises(Gone):
            await waits
        assert (line.running, line.waiting) == (1, 0)
        line.leave(0.1)
        await line.enter()

    run(test)


def test_who_leaves_ends_the_work_and_the_place_is_free_when_its_thread_is_done():
    async def test(pool):
        line, gone, going = Line(1, 8), asyncio.Event(), threading.Event()

        def work(job: Job[None]) -> None:
            job.say("a piece")
            while not job.stopped:
                going.wait(0.01)

        await line.enter()
        job = Job(line, pool, work)
        await job.begun(10)

        async def read() -> None:
            try:
                await job.result()
            finally:
                job.stop()

        asked = asyncio.ensure_future(while_there(leaving(gone), read()))
        await asyncio.sleep(0.01)
        assert line.running == 1
        gone.set()
        with pytest.raises(Gone):
            await asked
        await line.enter()  # when the thread has ended
        assert line.running == 1
        assert [piece async for piece in job.pieces()] == ["a piece"]

    run(test)


def test_an_error_of_the_work_is_raised_where_it_is_asked_for_and_silence_is_noticed():
    async def test(pool):
        line, wait = Line(1, 0), threading.Event()

        def work(job: Job[None]) -> None:
            wait.wait(PATIENCE)
            raise ApiError(400, "no")

        await line.enter()
        job = Job(line, pool, work)
        pieces = job.pieces(0.01)
        assert await anext(pieces) == ""
        wait.set()
        with pytest.raises(ApiError):
            await job.result()
        with pytest.raises(ApiError):
            await job.begun(1)
        assert line.running == 0

    run(test)
