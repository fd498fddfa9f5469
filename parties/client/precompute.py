"""Preprocessed correlations for a client's later queries: the offline phase alone, at a time when nobody waits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from ...models.artifacts import ClientLength, ClientPart, load_client
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..session.client import ClientParty
from ..session.compute_slots import SlotsBusy
from ..session.online import Progress
from ..session.spool import Spool, SpoolError
from .session import ClientError, PartyAddresses
from .sessions import rest
from .two_party import open_session


@dataclass(frozen=True)
class Precomputed:
    """`kept`: queries' correlations that were made now. `left`: all that this side's spool holds. `stopped`: why there
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
) -> Precomputed:
    """Make correlations of `count` queries of one compiled length (None: the only one), with the parties of `settings`.
    `sessions`: so many at once, for a server and a dealer with cores to spare, or with replicas.

    A server that is busy is asked again for `settings.client.wait` seconds. What was kept is good whatever comes later.

    Errors: ConfigError, ArtifactError, PeerError; SlotsBusy and SpoolError if nothing could be kept.
    """
    if settings.client.spool is None:
        raise SpoolError("spool", "preprocessed correlations need a folder on this side; give --spool, or client.spool")
    if settings.session.topology != "dealer":
        raise SpoolError("spool", "correlations are made ahead with topology dealer alone; with a helper they are live")
    part = load_client(settings.client.folder)
    if part.talks:
        raise ClientError(f"{part.folder}: is compiled for conversations, whose correlations are made as they go on")
    chosen = part.for_length(length)
    number = next(number for number, one in part.lengths.items() if one is chosen)
    started = time.perf_counter()
    shares = [count // sessions + (place < count % sessions) for place in range(min(sessions, count))]
    done = dict.fromkeys(range(len(shares)), 0)

    def make(place: int) -> tuple[int, BlindformerError | None]:
        def report(phase: str, now: int, total: int) -> None:
            if phase == "precompute":
                done[place], now, total = now, sum(done.values()) - done[place] + now, count
            if progress is not None:
                progress(phase, now, total)

        return _in_one_session(settings, part, chosen, shares[place], report)

    with ThreadPoolExecutor(len(shares), thread_name_prefix="blindformer precompute") as pool:
        results = list(pool.map(make, range(len(shares))))
    kept, stopped = sum(kept for kept, _ in results), next((error for _, error in results if error is not None), None)
    if stopped is not None and not kept:
        raise stopped
    return Precomputed(number, kept, Spool(settings.client.spool).left(), time.perf_counter() - started, stopped)


def _in_one_session(
    settings: Settings, part: ClientPart, chosen: ClientLength, count: int, progress: Progress
) -> tuple[int, BlindformerError | None]:
    """How many were kept, and why no more. Errors: PeerError."""
    assert settings.client.spool is not None
    parties, ledger, session = PartyAddresses(settings), Spool(settings.client.spool), None
    options: dict[str, Any] = {"cache": settings.client.cache, "spool": ledger, "use_spool": "off"}
    kept, deadline = 0, time.monotonic() + settings.client.wait

    def report(before: int, phase: str, done: int, _: int) -> None:
        progress(phase, before + done, count)

    try:
        while kept < count:
            before = kept
            try:
                session = session or open_session(settings, parties, part, chosen, progress, **options)
                party = cast(ClientParty, session.party)
                try:
                    party.precompute(count - kept, partial(report, kept))
                finally:
                    kept = party.kept
            except SlotsBusy as busy:
                if kept > before:
                    deadline = time.monotonic() + settings.client.wait
                try:
                    rest(busy, deadline, progress)
                except SlotsBusy as error:
                    return kept, error
            except SpoolError as error:
                return kept, error
    finally:
        if session is not None:
            session.close()
    return kept, None
