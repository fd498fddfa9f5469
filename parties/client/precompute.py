"""Correlations made ahead for a client's later queries: the offline phase alone, at a time when nobody waits."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import cast

from ...models.artifacts import load_client
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..session.client import ClientParty
from ..session.compute_slots import SlotsBusy
from ..session.online import Progress
from ..session.spool import SpoolError
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
    settings: Settings, count: int, length: int | None = None, progress: Progress | None = None
) -> Precomputed:
    """Make correlations of `count` queries of one compiled length (None: the only one), with the parties of `settings`.

    A server that is busy is asked again for `settings.client.wait` seconds. What was kept is good whatever comes later.

    Errors: ConfigError, ArtifactError, PeerError; Busy and SpoolError if nothing could be kept.
    """
    if settings.client.spool is None:
        raise SpoolError("spool", "correlations made ahead need a folder on this side; give --spool, or client.spool")
    if settings.session.topology != "dealer":
        raise SpoolError("spool", "correlations are made ahead with topology dealer alone; with a helper they are live")
    part = load_client(settings.client.folder)
    if part.talks:
        raise ClientError(f"{part.folder}: is compiled for conversations, whose correlations are made as they go on")
    chosen = part.for_length(length)
    number = next(number for number, one in part.lengths.items() if one is chosen)
    started = time.perf_counter()
    sessions = SessionTransport(settings, part, cache=settings.client.cache, use_spool="off", progress=progress)
    assert sessions.spool is not None
    kept, stopped = 0, None

    def told(before: int, phase: str, done: int, _: int) -> None:
        sessions.tell(phase, before + done, count)

    deadline = time.monotonic() + settings.client.wait
    try:
        while kept < count and stopped is None:
            before = kept
            try:
                party = cast(ClientParty, sessions.connect(chosen).party)
                try:
                    party.precompute(count - kept, partial(told, kept))
                finally:
                    kept = party.kept
            except SlotsBusy as busy:
                if kept > before:
                    deadline = time.monotonic() + settings.client.wait
                try:
                    sessions.rest(busy, deadline)
                except SlotsBusy as error:
                    stopped = error
            except SpoolError as error:
                stopped = error
        if stopped is not None and not kept:
            raise stopped
    finally:
        sessions.close()
    return Precomputed(number, kept, sessions.spool.left(), time.perf_counter() - started, stopped)
