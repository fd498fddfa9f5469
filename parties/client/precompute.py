"""Correlations of later queries, made in good time: both sides keep their part of them in a store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...protocols.errors import BlindformerError, PeerError
from ..config import Settings
from ..launch import end_with_stdin
from ..registry import find_served, resolve
from ..service.logs import Log
from ..session.messages import SlotsBusy
from ..session.online import Progress
from ..session.preprocessing_store import PreprocessingStore, StoreError
from .sessions import rest
from .share_processes import DONE, KEPT, ShareProcesses

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
    `sessions`: so many at once, for parties with cores to spare, or several servers; the first is this process's, each
    other one a process of its own. `own_dealer`: this process deals, if the protocol allows it.

    A server that is busy is asked again for `settings.client.wait` seconds. What was kept is good whatever comes later.
    If one session ends early, even killed, the query that it was making is lost, and the others go on.

    Errors: ConfigError, ArtifactError, LaunchError; PeerError, SlotsBusy and StoreError if nothing could be kept.
    """
    if settings.client.store is None:
        raise StoreError("store", "preprocessed correlations need a folder on this side; give --store, or client.store")
    number, stores = _storing(settings, length, own_dealer)
    started = time.perf_counter()
    mine, *others = [count // sessions + (place < count % sessions) for place in range(min(sessions, count))]
    share = partial(_Share, settings.model_dump(mode="json"), str(settings.file or ""), length, own_dealer)
    tell = progress or (lambda phase, done, total: None)
    with ShareProcesses([asdict(share(other)) for other in others], len(stores)) as beside:
        kept = [[0] * len(stores), *beside.kept]

        def sum_up() -> None:
            tell("precompute", sum(map(sum, kept)), count * len(stores))

        def report(store: int, now: int) -> None:
            kept[0][store] = now
            sum_up()

        stopped = _make(stores, settings.client.wait, mine, report, tell)
        failed = beside.wait(sum_up)
    stopped = stopped or failed
    least = min(map(sum, zip(*kept, strict=True)))
    if stopped is not None and not least:
        raise stopped
    left = PreprocessingStore(settings.client.store).left()
    return Precomputed(number, least, left, time.perf_counter() - started, stopped)


@dataclass(frozen=True)
class _Share:
    """What another process makes. `file`: which its settings come from, if any."""

    settings: dict[str, Any]
    file: str
    length: int | None
    own_dealer: bool
    count: int


def make_share() -> None:
    """In a process of ShareProcesses: what stdin names, until stdin ends. Errors: those of `precompute`."""
    share = _Share(**json.loads(sys.stdin.readline()))
    end_with_stdin()
    context = {"file": Path(share.file)} if share.file else None
    settings, log = Settings.model_validate(share.settings, context=context), Log("precompute", "json")
    _, stores = _storing(settings, share.length, share.own_dealer)

    def report(store: int, now: int) -> None:
        log.info(KEPT, place=store, number=now)

    stopped = _make(stores, settings.client.wait, share.count, report, lambda phase, done, total: None)
    if stopped is not None:
        raise stopped
    log.info(DONE)


def _storing(settings: Settings, length: int | None, own_dealer: bool) -> tuple[int, list[OpenStore]]:
    return resolve(find_served(settings.session.protocol).storing)(settings, length, own_dealer)


def _make(
    stores: Sequence[OpenStore], wait: float, count: int, report: Callable[[int, int], None], progress: Progress
) -> BlindformerError | None:
    """One session's part: `count` queries' correlations for each of `stores`, one after the other; `report` is told of
    which of them how many are kept. Why there are no more."""
    stopped = None
    for store, opened in enumerate(stores):

        def step(phase: str, done: int, total: int, store: int = store) -> None:
            if phase == "precompute":
                report(store, done)
            else:
                progress(phase, done, total)

        kept, error = _in_one_session(opened, wait, count, step)
        report(store, kept)
        stopped = stopped or error
    return stopped


def _in_one_session(
    opened: OpenStore, wait: float, count: int, progress: Progress
) -> tuple[int, BlindformerError | None]:
    """How many were kept, and why no more."""
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
            except (StoreError, PeerError) as error:
                return kept, error
    finally:
        if current is not None:
            current[0].close()
    return kept, None
