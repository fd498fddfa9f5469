"""Correlations of later queries, made in good time: both sides keep their part of them in a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...protocols.errors import BlindformerError
from ..config import Settings
from ..registry import find_served, resolve
from ..session.messages import SlotsBusy
from ..session.online import Progress
from ..session.preprocessing_store import PreprocessingStore, StoreError
from .sessions import rest

OpenStore = Callable[[Progress], tuple[Any, Callable[[int, Progress], None]]]
"""Opens a session, whose `party` counts what it has `kept`; and what stores correlations of so many queries in it."""


@dataclass(frozen=True)
class Precomputed:
    """`kept`: queries' correlations that were made now. `left`: all that this side's store holds. `stopped`: why there
    are fewer than were asked for, if there are."""

    length: int
    kept: int
    left: int
    seconds: float
    stopped: BlindformerError | None = None


def precompute(
    settings: Settings,
    count: int,
    length: int | None = None,
    progress: Progress | None = None,
    sessions: int = 1,
    own_dealer: bool = False,
) -> Precomputed:
    """Make correlations of `count` queries of one length (None: the only one), with the parties of `settings`.
    `sessions`: so many at once, for parties with cores to spare, or several servers. `own_dealer`: this process deals,
    if the protocol allows it.

    A server that is busy is asked again for `settings.client.wait` seconds. What was kept is good whatever comes later.

    Errors: ConfigError, ArtifactError, PeerError; SlotsBusy and StoreError if nothing could be kept.
    """
    if settings.client.store is None:
        raise StoreError("store", "preprocessed correlations need a folder on this side; give --store, or client.store")
    number, stores = resolve(find_served(settings.session.protocol).storing)(settings, length, own_dealer)
    started = time.perf_counter()
    shares = [count // sessions + (place < count % sessions) for place in range(min(sessions, count))]
    jobs = [(opened, share) for opened in stores for share in shares]
    done = dict.fromkeys(range(len(jobs)), 0)

    def make(place: int) -> tuple[int, BlindformerError | None]:
        def report(phase: str, now: int, total: int) -> None:
            if phase == "precompute":
                done[place], now, total = now, sum(done.values()) - done[place] + now, count * len(stores)
            if progress is not None:
                progress(phase, now, total)

        opened, share = jobs[place]
        return _in_one_session(opened, settings.client.wait, share, report)

    with ThreadPoolExecutor(len(shares), thread_name_prefix="blindformer precompute") as pool:
        results = list(pool.map(make, range(len(jobs))))
    each = len(shares)  # sessions that store the same
    kept = min(sum(kept for kept, _ in results[at : at + each]) for at in range(0, len(results), each))
    stopped = next((error for _, error in results if error is not None), None)
    if stopped is not None and not kept:
        raise stopped
    return Precomputed(
        number, kept, PreprocessingStore(settings.client.store).left(), time.perf_counter() - started, stopped
    )


def _in_one_session(
    opened: OpenStore, wait: float, count: int, progress: Progress
) -> tuple[int, BlindformerError | None]:
    """How many were kept, and why no more. Errors: PeerError."""
    current, kept, deadline = None, 0, time.monotonic() + wait

    def report(before: int, phase: str, done: int, _: int) -> None:
        progress(phase, before + done, count)

    try:
        while kept < count:
            before = kept
            try:
                session, fill = current = current or opened(progress)
                try:
                    fill(count - kept, partial(report, kept))
                finally:
                    kept = session.party.kept
            except SlotsBusy as busy:
                if kept > before:
                    deadline = time.monotonic() + wait
                try:
                    rest(busy, deadline, progress)
                except SlotsBusy as error:
                    return kept, error
            except StoreError as error:
                return kept, error
    finally:
        if current is not None:
            current[0].close()
    return kept, None
