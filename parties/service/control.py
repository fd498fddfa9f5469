"""What a child and its supervisor say to each other: JSON lines over a pair of Unix sockets.

    child                                              supervisor
    {"introduced": {role, owner, serial, session, program}}   {"go": true} | {"busy": {seconds, why}} | {"stop": why}
    {"probing": {role, owner}}                         {"go": true} | {"busy": {seconds, why}}
    {"want": {number}}                                 {"queued": place}* {"go": true} | {"busy": {seconds, why}}
    {"release": {number, left}}
    {"limited": {what}}
    {"answered": {number, offline_s, offline_bytes, online_s, sent, received, audits}}
    {"keep": {session, program, seed}}                 {"kept": true} | {"refused": why}      of dealer.py
    {"take": {session, program, party}}                {"seed": hex} | {"refused": why}       of dealer.py
    {"storedkeys": {do, name}}                         {"name": hex} | {"good": true} | ...    of encrypted.py
    {"failed": {kind, what}}
                                                       {"stop": why}                          at any time

The child speaks with strangers and may have been taken over by one: a line that is too long, not JSON, or not one of
these ends that child, and nobody else. The socket is the child's lifeline, too: when the supervisor's end closes,
the child ends at once. Such a child also asks whether the dealer answers (PartyWatch).
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ...protocols.seeds import SEED_HEX
from ..transport.frames import printable
from ..transport.handshake import KNOCK_SECONDS

if TYPE_CHECKING:
    from .logs import Log

LINE_LIMIT = 4096
READ_AT_ONCE = 65536

Role = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
Session = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Serial = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
What = Annotated[str, StringConstraints(max_length=400)]
Number = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[float, Field(ge=0, lt=1e18, allow_inf_nan=False)]


class ChildReport(BaseModel):
    """What a child says. The subclasses below, by their names in lower case, are all there is."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Introduced(ChildReport):
    """The handshake and the hello are done. `owner`: the SHA-256 of the peer's certificate; `serial`: its number."""

    role: Role
    owner: Hash
    serial: Serial
    session: Session
    program: Hash


class Probing(ChildReport):
    """The peer wants no session: it measures (parties/transport/handshake.py)."""

    role: Role
    owner: Hash


class Want(ChildReport):
    """A query needs a worker."""

    number: Number


class Release(ChildReport):
    """A query needs its worker no more. `left`: preprocessed correlations that are left now, if that is known."""

    number: Number
    left: Number | None = None


class Limited(ChildReport):
    """A query was refused: its certificate has asked all that it may (quota.py)."""

    what: What


class Answered(ChildReport):
    """What a query took: seconds, and bytes of payload; `sent` and `received` in the online phase, in which a dealer
    takes no part. `audits`: 1 for an audit, which has no answer."""

    number: Number
    offline_s: Amount
    offline_bytes: Amount
    online_s: Amount | None = None
    sent: Amount = 0.0
    received: Amount = 0.0
    audits: Number = 0


class Keep(ChildReport):
    """The dealer has a party's seed, for the leader's connection of the same session."""

    session: Session
    program: Hash
    seed: Annotated[str, StringConstraints(pattern=SEED_HEX)]


class Take(ChildReport):
    """The dealer's connection with the leader wants another party's seed."""

    session: Session
    program: Hash
    party: Role


class StoredKeys(ChildReport):
    """Of a client's evaluation keys: room for new ones, whose name the answer has; they are whole; whether they are
    there; a query computes with them; they are to go. Errors end the child where the keys are not its peer's."""

    do: Literal["reserve", "whole", "find", "use", "drop"]
    name: Session | Literal[""] = ""


class Failed(ChildReport):
    """The connection ends, and why. `what` is fit for a log."""

    kind: Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,64}$")]
    what: What


REPORTS: dict[str, type[ChildReport]] = {cls.__name__.lower(): cls for cls in ChildReport.__subclasses__()}


class BrokenControl(Exception):
    """The other end said something that is not in the protocol."""


class Lines:
    """Bytes in, whole lines out. Errors: `BrokenControl` for one that is too long."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_LIMIT or any(len(line) > LINE_LIMIT for line in lines):
            raise BrokenControl(f"a line of more than {LINE_LIMIT} bytes")
        return lines


def parse(line: bytes) -> dict[str, Any]:
    """Errors: `BrokenControl` if it is not a JSON object of one member."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or len(message) != 1:
        raise BrokenControl("a line that is not a JSON object of one member")
    return message


def parse_report(line: bytes) -> ChildReport:
    """Errors: `BrokenControl` if it is not one of `REPORTS`."""
    ((name, body),) = parse(line).items()
    if name not in REPORTS:
        raise BrokenControl("a line of an unknown kind")
    try:
        return REPORTS[name].model_validate(body)
    except ValueError:
        raise BrokenControl(f"a wrong {name!r}") from None


def pack(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def pack_report(report: ChildReport) -> bytes:
    return pack({type(report).__name__.lower(): report.model_dump()})


class ChildLine:
    """The supervisor's end of one child's line. Blocks on nothing."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._lines = Lines()

    def read(self) -> list[ChildReport] | None:
        """What has come; None at the end. Errors: `BrokenControl`."""
        try:
            data = self.sock.recv(READ_AT_ONCE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        return [parse_report(line) for line in self._lines.feed(data)] if data else None

    def send(self, message: dict[str, Any]) -> None:
        """Errors: `BrokenControl` if the child does not read; one that is gone is noticed elsewhere."""
        data = pack(message)
        try:
            if self.sock.send(data) != len(data):
                raise BrokenControl("it does not read what it is told")
        except BlockingIOError:
            raise BrokenControl("it does not read what it is told") from None
        except OSError:
            pass

    def close(self) -> None:
        self.sock.close()


EVERY = 2.0  # seconds between two questions; twice without an answer, and the party is gone
Fork = Callable[[Callable[[Any], None]], tuple[int, socket.socket]]


class PartyWatch:
    """Whether the dealer answers, asked every few seconds by a process that is forked for it: nobody waits for its
    silence. It shows the server's certificate and says nothing of any session, so the dealer learns that the server
    runs.

    In a supervisor, whose children see `gone` change, too. `ask`: raises a PeerError if `party` is gone.
    """

    def __init__(self, party: str, ask: Callable[[], None]) -> None:
        self.party, self._ask = party, ask
        self._flag = mmap.mmap(-1, 1)  # shared with children
        self._pid, self._until, self._again, self._misses = 0, 0.0, 0.0, 0
        self._line: ChildLine | None = None

    @property
    def gone(self) -> bool:
        return self._flag[0] == 1

    def check(self) -> None:
        """In a child: ask again if the party was gone. Errors: PeerError if it still is."""
        if self.gone:
            self._ask()

    def turn(self, fork: Fork, log: Log) -> None:
        """Ask if it is time to, or see what came of the last question. Waits for nothing."""
        now = time.monotonic()
        if self._line is not None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if not ended and now < self._until:
                return
            self._note("" if ended and status == 0 else self._why(self._line), log)
            self.end()
            self._again = now + (0.0 if self._misses == 1 else EVERY)
        elif now >= self._again:
            with suppress(OSError):  # there is no room for a process: later, perhaps
                self._pid, sock = fork(lambda control: self._ask())
                self._line, self._until = ChildLine(sock), now + 2 * KNOCK_SECONDS
            self._again = now + EVERY

    def end(self) -> None:
        """Safe to call twice."""
        self.let_go()
        if self._pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
        self._pid = 0

    def let_go(self) -> None:
        """In another child, too: of the line."""
        if self._line is not None:
            self._line.close()
        self._line = None

    def _why(self, line: ChildLine) -> str:
        with suppress(BrokenControl, ValueError):
            for report in line.read() or ():
                if isinstance(report, Failed):
                    return report.what
        return f"{self.party}: did not answer in {KNOCK_SECONDS:g} seconds; see whether it runs"

    def _note(self, what: str, log: Log) -> None:
        self._misses = self._misses + 1 if what else 0
        if self._misses > 1 and not self.gone:
            self._flag[0] = 1
            log.error(f"{self.party}-gone", what=printable(what, 400))
        elif not what and self.gone:
            self._flag[0] = 0
            log.info(f"{self.party}-back", what=f"the {self.party} answers again")
