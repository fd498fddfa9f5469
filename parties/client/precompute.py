"""Preprocessed correlations for a client's later queries: the offline phase alone, at a time when nobody waits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import cast

from ...models.artifacts import ClientLength, ClientPart, load_client
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..session.compute_slots import SlotsBusy
from ..session.online import Progress
from ..session.spool import Spool, SpoolError
from ..session.two_party_client import ClientParty
from .sessions import SessionTransport
from .transport import ClientError


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

    Errors: ConfigError, ArtifactError, PeerError; Busy and SpoolError if nothing could be kept.
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
        def told(phase: str, made: int, total: int) -> None:
            if phase == "precompute":
                done[place], made, total = made, sum(done.values()) - done[place] + made, count
            if progress is not None:
                progress(phase, made, total)

        return _in_one_session(settings, part, chosen, shares[place], told)

    with ThreadPoolExecutor(len(shares), thread_name_prefix="blindformer precompute") as pool:
        found = list(pool.map(make, range(len(shares))))
    kept, stopped = sum(made for made, _ in found), next((error for _, error in found if error is not None), None)
    if stopped is not None and not kept:
        raise stopped
    return Precomputed(number, kept, Spool(settings.client.spool).left(), time.perf_counter() - started, stopped)


def _in_one_session(
    settings: Settings, part: ClientPart, chosen: ClientLength, count: int, progress: Progress
) -> tuple[int, BlindformerError | None]:
    """How many were kept, and why no more. Errors: PeerError."""
    transport = SessionTransport(settings, part, cache=settings.client.cache, use_spool="off", progress=progress)
    kept, deadline = 0, time.monotonic() + settings.client.wait

    def told(before: int, phase: str, done: int, _: int) -> None:
        progress(phase, before + done, count)

    try:
        while kept < count:
            before = kept
            try:
                party = cast(ClientParty, transport.connect(chosen).party)
                try:
                    party.precompute(count - kept, partial(told, kept))
                finally:
                    kept = party.kept
            except SlotsBusy as busy:
                if kept > before:
                    deadline = time.monotonic() + settings.client.wait
                try:
                    transport.rest(busy, deadline)
                except SlotsBusy as error:
                    return kept, error
            except SpoolError as error:
                return kept, error
    finally:
        transport.close()
    return kept, None
