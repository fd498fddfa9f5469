"""The log of a service: one line an event on stderr, JSON or text, with a fixed set of fields.

Seeds, keys, texts and tensors cannot get in: there is no field for them. A stranger can make a service write lines, so
events of strangers are limited in rate; a line says how many before it were left out.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO, TypedDict, Unpack

from ..transport.frames import printable

SESSION_SHOWN = 8  # hex digits of a session's id: enough to find it, not enough to claim it
BURST, PER_SECOND = 20.0, 2.0  # of each event that strangers can cause
STRANGERS = frozenset({"refused", "dropped", "busy", "limited", "no-room"})
Level = Literal["info", "warning", "error"]


class Fields(TypedDict, total=False):
    """All that a line may hold beside time, level, service and event."""

    session: str
    peer: str  # a role
    owner: str  # fingerprint of a certificate
    address: str
    program: str
    pid: int
    number: int
    place: int
    kind: str
    what: str
    seconds: float
    offline_s: float
    online_s: float
    bytes: int
    left_out: int
    sessions: int
    workers: int
    queue: int
    programs: list[str]
    weights: list[str]
    metrics: str
    adversary: str
    security_bits: int
    kernels: str
    helpers: str
    together: str
    limit: str
    person: str  # of the gateway
    model: str


class Log:
    """Writes events of `service` (server, dealer, helper)."""

    def __init__(
        self,
        service: str,
        form: Literal["text", "json"] = "text",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.service, self.form = service, form
        self._stream, self._clock = stream or sys.stderr, clock
        self._buckets: dict[str, _Bucket] = {}

    def info(self, event: str, **fields: Unpack[Fields]) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Unpack[Fields]) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Unpack[Fields]) -> None:
        self._write("error", event, fields)

    def _write(self, level: Level, event: str, fields: Fields) -> None:
        unknown = set(fields) - set(Fields.__annotations__)
        if unknown:
            raise ValueError(f"a log line has no field {sorted(unknown)}")
        if event in STRANGERS:
            left_out = self._buckets.setdefault(event, _Bucket()).take(self._clock())
            if left_out is None:
                return
            if left_out:
                fields["left_out"] = left_out
        line = _as_json if self.form == "json" else _as_text
        head = {"time": _stamp(self._clock()), "level": level, "service": self.service, "event": event}
        try:
            self._stream.write(line(head, {name: _shown(name, value) for name, value in fields.items()}) + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass  # a full disk or a closed terminal is no reason to stop serving


class _Bucket:
    """What an event may still write. `take`: how many lines were left out since the last one; None: leave it out."""

    def __init__(self) -> None:
        self.tokens, self.last, self.left_out = BURST, 0.0, 0

    def take(self, now: float) -> int | None:
        self.tokens = min(BURST, self.tokens + max(0.0, now - self.last) * PER_SECOND)
        self.last = now
        if self.tokens < 1:
            self.left_out += 1
            return None
        self.tokens -= 1
        left_out, self.left_out = self.left_out, 0
        return left_out


def _shown(name: str, value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if name in ("session", "owner", "program"):
        return value[:SESSION_SHOWN]
    if name == "programs":
        return [item[:SESSION_SHOWN] for item in value]
    return printable(value, 400) if isinstance(value, str) else value


def _stamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _as_json(head: dict[str, Any], fields: dict[str, Any]) -> str:
    return json.dumps({**head, **fields})  # in ASCII: programs read it, whatever the stream is encoded in


def _as_text(head: dict[str, Any], fields: dict[str, Any]) -> str:
    words = [f"{head['time']} {head['level']:<7} {head['service']} {head['event']}"]
    for name, value in fields.items():
        text = ",".join(value) if isinstance(value, list) else str(value)
        words.append(f"{name}={json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' =') else text}")
    return "  ".join(words)
