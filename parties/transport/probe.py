"""A short conversation in place of a session, for `blindformer doctor`: is this the party, and how far away is it?

    asks     {"probe": {version, role, hash of the shared settings, hashes of its programs}}
    answers  the same about itself, which of these programs it has, and what its clock says
    asks     {"echo": n}  -> {"echo": n}                     round-trip time
             {"up": n}    , n frames -> {"up": n}            bandwidth there, n frames of FRAME_BYTES
             {"down": n}  -> n frames                        bandwidth back
             {"bye": true}

It starts where a hello would, after TLS, so only a party with a good certificate can ask. The answering side spends a
bounded number of bytes, messages and seconds on it, and tells nothing that a hello would not tell as well.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...protocols.channel import Channel
from ...protocols.errors import PeerProtocolError
from ...versions import spoken_version
from .handshake import Hex, Word

FRAME_BYTES = 65536
FRAMES_AT_ONCE = 256  # 16 MiB
FRAMES = 2048  # in one probe, both directions together: 128 MiB
MESSAGES = 128
PROBE_SECONDS = 60.0
_LIMIT = 16384
_ECHOES = 9
_LONG_ENOUGH = 0.3  # seconds of transfer after which a bandwidth is believed
_SAME_VERSION = "install the same version on both sides"


class PeerFacts(BaseModel):
    """What a party says about itself. `programs`: of the asking side, its own; of the other, which of these it has."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    blindformer: Word
    role: Word
    config: Hex = ""
    programs: list[Hex] = []
    time: float = Field(default=0.0, allow_inf_nan=False)
    """Seconds since 1970 at the answering side."""


@dataclass(frozen=True)
class Probed:
    """What was learnt. Seconds, and bits per second; `clock_s`: how far the peer's clock is ahead of ours."""

    facts: PeerFacts
    rtt_s: float
    up: float
    down: float
    clock_s: float


def my_facts(role: str, config: str = "", programs: Iterable[str] = ()) -> PeerFacts:
    """What this installation says of itself. `config`: Settings.shared_hash(). `programs`: hashes."""
    return PeerFacts(blindformer=spoken_version(), role=role, config=config, programs=list(programs))


def is_probe(message: dict[str, Any]) -> bool:
    return "probe" in message


def answer_probe(channel: Channel, message: dict[str, Any], mine: PeerFacts) -> None:
    """Answer one probe, whose first message was `message`, until the peer says goodbye. `mine.programs`: all we have.

    The caller closes the channel, and should end the process that runs this after PROBE_SECONDS.

    Errors: `PeerProtocolError` if the peer asks for more than it may; those of the channel.
    """
    theirs = _facts(channel, message)
    known = sorted(set(theirs.programs) & set(mine.programs))
    answer = mine.model_copy(update={"programs": known, "time": time.time()})
    channel.send_message({"probe": answer.model_dump()})
    end, frames = time.monotonic() + PROBE_SECONDS, FRAMES
    for _ in range(MESSAGES):
        request = channel.recv_message(_LIMIT)
        if request.get("bye"):
            return
        kind, count = _request(request)
        frames -= 0 if kind == "echo" else count
        if not kind or frames < 0 or time.monotonic() > end:
            break
        if kind == "down":
            for _ in range(count):
                channel.send(os.urandom(FRAME_BYTES))
            continue
        if kind == "up":
            for _ in range(count):
                channel.recv(FRAME_BYTES)
        channel.send_message({kind: count})
    raise PeerProtocolError(channel.peer, "asked a probe for more than it may", _SAME_VERSION)


def probe(channel: Channel, mine: PeerFacts, seconds: float = 5.0) -> Probed:
    """Ask the party behind a new channel. `seconds`: how long to measure bandwidth, each way, at most.

    Errors: `PeerProtocolError` if it does not answer probes; those of the channel.
    """
    start = time.time()
    channel.send_message({"probe": mine.model_dump()})
    facts = _facts(channel, channel.recv_message(_LIMIT))
    clock = facts.time - (start + time.time()) / 2
    trips = [_timed(channel, "echo", number) for number in range(1, _ECHOES + 1)]
    rtt = statistics.median(trips)
    up, down = (_bandwidth(channel, kind, rtt, seconds) for kind in ("up", "down"))
    channel.send_message({"bye": True})
    return Probed(facts, rtt, up, down, clock)


def _bandwidth(channel: Channel, kind: str, rtt: float, seconds: float) -> float:
    """Bits per second, by transfers that grow until one takes long enough to be believed."""
    count, spent = 4, 0.0
    while True:
        took = _timed(channel, kind, count)
        spent += took
        moving = max(took - rtt, 1e-6)
        if count == FRAMES_AT_ONCE or took >= _LONG_ENOUGH + rtt or spent + 4 * took > seconds:
            return 8 * count * FRAME_BYTES / moving
        count = min(4 * count, FRAMES_AT_ONCE)


def _timed(channel: Channel, kind: str, count: int) -> float:
    """Seconds that one request takes until its answer is complete."""
    start = time.perf_counter()
    channel.send_message({kind: count})
    if kind == "up":
        noise = os.urandom(FRAME_BYTES)
        for _ in range(count):
            channel.send(noise)
    if kind == "down":
        for _ in range(count):
            channel.recv(FRAME_BYTES)
    elif channel.recv_message(_LIMIT) != {kind: count}:
        raise PeerProtocolError(channel.peer, "answered a probe with something else", _SAME_VERSION)
    return time.perf_counter() - start


def _request(message: dict[str, Any]) -> tuple[str, int]:
    """(kind, count), or ("", 0) for what nobody may ask."""
    kind, count = next(iter(message.items()), ("", 0))
    good = kind in ("echo", "up", "down") and len(message) == 1 and type(count) is int and 0 < count <= FRAMES_AT_ONCE
    return (kind, count) if good else ("", 0)


def _facts(channel: Channel, message: dict[str, Any]) -> PeerFacts:
    try:
        return PeerFacts.model_validate(message.get("probe"))  # at most _LIMIT bytes, so the list is short
    except ValidationError:
        raise PeerProtocolError(channel.peer, "does not answer probes", _SAME_VERSION) from None
