"""Who calls the gateway, and how much: the owner, and persons with keys and limits of their own.

A file holds, by name, the SHA-256 of each key; the key itself is shown once, when it is made. It has 256 random bits,
so nobody guesses one, and its hash tells nothing: who reads the file learns names. Every hash is compared, in constant
time. A name holds letters, digits and . _ @ -, so that it can forge no line of the log.

Requests a minute are counted in memory, tokens a day on the disk (service/quota.py), over restarts. Tokens are known
when an answer ends: it counts then, also where its caller has left, so the last requests may go over the limit.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...files import locked, whole_file
from ..config import GatewayLimits, GatewaySection
from ..service.quota import Quota
from ..session.compute_slots import LimitReached, span
from .problems import LIMITED, ApiError, GatewayError

OWNER = "owner"  # who has the key of [gateway] key, and no limits
DAY, MINUTE = 86400.0, 60.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")


def read_keys(file: Path) -> dict[str, str]:
    """Hashes of keys by name; none if there is no file. Errors: GatewayError."""
    try:
        keys = json.loads(file.read_text(encoding="ascii"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not JSON"
        raise GatewayError(f"{file}: cannot be read ({reason}); mend it, or name another in [gateway] keys") from None
    if not isinstance(keys, dict) or not all(_NAME.fullmatch(n) and _HASH.fullmatch(str(h)) for n, h in keys.items()):
        raise GatewayError(f"{file}: is no file of keys; name another in [gateway] keys, or delete it")
    return keys


def add_key(file: Path, name: str) -> str:
    """A new key for this person. Errors: GatewayError."""
    if not _NAME.fullmatch(name) or name == OWNER:
        raise GatewayError(f"{name[:80]!r}: is no name; use letters, digits and . _ @ - (at most 64), and not {OWNER}")
    key = f"bf-{secrets.token_urlsafe(32)}"
    with _changed(file) as keys:
        if name in keys:
            raise GatewayError(f"{name}: has a key already; remove it first: blindformer keys remove {name}")
        keys[name] = _hash(key)
    return key


def remove_key(file: Path, name: str) -> None:
    """A running gateway refuses the key seconds later. Errors: GatewayError."""
    with _changed(file) as keys:
        if name not in keys:
            raise GatewayError(f"{name[:80]!r}: has no key in {file}; see: blindformer keys list")
        del keys[name]


@contextmanager
def _changed(file: Path) -> Iterator[dict[str, str]]:
    """The keys, which are written as the block leaves them. Others who change them wait. Errors: GatewayError."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(file.parent):
            keys = read_keys(file)
            yield keys
            with whole_file(file, 0o644, durable=True) as stream:  # the gateway may run as another user
                stream.write(json.dumps(keys, indent=1).encode() + b"\n")
    except OSError as error:
        raise GatewayError(f"{file}: cannot be written ({error.strerror}); name another in [gateway] keys") from None


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class People:
    """Who a key belongs to, and what that person may still ask."""

    def __init__(self, mine: GatewaySection, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`key`: the owner's. Errors: GatewayError, QuotaError."""
        self._mine, self._owner, self._clock = mine, _hash(key), clock
        self._admitting = threading.Lock()
        self._asked: dict[str, list[float]] = {}  # by name, when within the last minute
        limits = [mine, *mine.people.values()]
        self._tokens: Quota | None = None
        if any(one.tokens_per_day for one in limits):
            mine.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tokens = Quota(mine.state, 1, DAY)
        self._changed: object = None
        self._hashes: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file again if it has changed. Errors: GatewayError; who could call before still can."""
        try:
            about = self._mine.keys.stat()
            changed: object = (about.st_mtime_ns, about.st_ino, about.st_size)
        except OSError:
            changed = None
        if changed != self._changed:
            self._hashes = read_keys(self._mine.keys)
            self._changed = changed

    def find(self, key: str) -> str:
        """The name of whose key it is; empty: nobody's."""
        given, name = _hash(key), ""
        for person, hashed in [*self._hashes.items(), (OWNER, self._owner)]:
            if hmac.compare_digest(given, hashed):
                name = person
        return name

    def limits(self, name: str) -> GatewayLimits:
        """What a person may ask: as its own section says, else [gateway]."""
        if name == OWNER:
            return GatewayLimits()
        own = self._mine.people.get(name, self._mine)
        return GatewayLimits(
            requests_per_minute=own.requests_per_minute or self._mine.requests_per_minute,
            tokens_per_day=own.tokens_per_day or self._mine.tokens_per_day,
        )

    def admit(self, name: str) -> None:
        """Count a request. Errors: ApiError (429) beyond a limit, and nothing is counted."""
        with self._admitting:
            self._admit(name, self.limits(name), self._clock())

    def _admit(self, name: str, limits: GatewayLimits, now: float) -> None:
        if most := limits.tokens_per_day:
            assert self._tokens is not None
            try:
                self._tokens.check(name, 1, most)
            except LimitReached as error:
                raise _limited(f"{most:,} tokens in a day", error.retry_after) from None
        if most := limits.requests_per_minute:
            asked = self._asked[name] = [at for at in self._asked.get(name, []) if at > now - MINUTE]
            if len(asked) >= most:
                raise _limited(f"{most:,} requests in a minute", asked[0] + MINUTE - now)
            asked.append(now)

    def count(self, name: str, tokens: int) -> None:
        """An answer took so many. Errors: QuotaError."""
        if self._tokens is not None and self.limits(name).tokens_per_day:
            self._tokens.count(name, tokens)


def _limited(what: str, retry_after: float) -> ApiError:
    text = f"limit: your key may ask {what}; ask again in {span(max(retry_after, 1.0))}"
    return ApiError(429, text, kind=LIMITED, code="limit_reached", retry_after=retry_after)
