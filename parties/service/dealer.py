"""The dealer as a service. It needs certificates and nothing else: servers send it the programs they run."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...models.program import Program
from ...protocols.beaver.primitive import primitives
from ...protocols.channel import Meter
from ...protocols.errors import BlindformerError
from ..certificates.identity import Identity
from ..config import Settings
from ..session import DealerParty, receive_seed
from ..session.meeting import meet_as_dealer
from .child import Control
from .children import Seat
from .control import Answered, ChildReport, Introduced
from .front import greet, telling
from .limits import ServiceLimits
from .pairs import AskedSeeds, Pairs

ROLE = "dealer"
ROLES = ("client", "helper", "server")
PROGRAMS = 64  # files kept


class DealerService:
    """One dealer. `scratch`: a folder of this service alone."""

    helpers = "this is the dealer: it makes correlated randomness, and sees no input, no weight and no opened value"
    about = "any program that a server and its client agree on"
    programs: tuple[str, ...] = ()
    limit = ""

    def __init__(self, settings: Settings, limits: ServiceLimits, scratch: Path) -> None:
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        _load_ahead()
        self.settings, self.limits = settings, limits
        self.identity = Identity(settings.certificates.folder, ROLE)
        self.known = FilePrograms(scratch)
        self.pairs = Pairs()
        self.config = settings.shared_hash()
        self.facts = self.identity.facts(self.config)

    def work(self, sock: socket.socket, control: Control) -> None:
        timeout = self.settings.session.timeout
        control.party, control.keepalive = ROLE, timeout / 3
        greeted = greet(sock, control, self.identity, ROLES, self.facts)
        if greeted is None:
            return
        channel, first = greeted
        with telling(ROLE, lambda: [channel]):
            hello = meet_as_dealer(channel, timeout, first=first, config=self.config)
            control.introduce(channel.peer, channel.fingerprint, channel.serial, hello.session, hello.program)
            seeds = AskedSeeds(control)
            if channel.peer == "server":
                party = DealerParty(channel, hello, seeds, self.known, admission=control)
                dealt = _Dealt(channel.meter, control)
                # The server decides how long its client may be silent; it keeps this connection that long.
                party.serve(dealt.report, idle=2 * self.limits.idle)
            else:
                receive_seed(channel, hello, seeds)
            channel.close()

    def seat(self, role: str) -> Seat:
        return "session" if role == "server" else "visit"

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        return self.pairs.reply(report, peer)

    def gauges(self) -> Mapping[str, float]:
        return {"seeds": len(self.pairs)}


class FilePrograms:
    """`session.Programs` in files that all children share: a server sends a program once, not once a session.

    Programs are public. Each is checked against its hash, by which it is asked for, when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, hash: str) -> Program | None:
        try:
            program = Program.from_json((self.folder / f"{hash}.json").read_bytes())
        except (OSError, BlindformerError):
            return None
        return program if program.hash() == hash else None

    def put(self, program: Program) -> None:
        part = self.folder / f"{secrets.token_hex(8)}.part"
        with contextlib.suppress(OSError):  # a full disk: then it is sent again
            known = sorted(self.folder.glob("*.json"), key=os.path.getmtime)
            for old in known[: len(known) - PROGRAMS + 1]:
                old.unlink(missing_ok=True)
            part.write_text(program.to_json())
            part.replace(self.folder / f"{program.hash()}.json")
        part.unlink(missing_ok=True)


def _load_ahead() -> None:
    """Import what the first program would: a child would do it for itself alone, and its peer would wait."""
    primitives()
    _ = torch.zeros(1, device="meta") + torch.zeros(
        1, device="meta"
    )  # on which programs are checked; the first use imports 70 MB of torch


class _Dealt:
    """Reports each query with the bytes that went to the server since the one before."""

    def __init__(self, meter: Meter, control: Control) -> None:
        self._meter, self._control = meter, control
        self._sent = meter.sent

    def report(self, number: int, seconds: float) -> None:
        sent, self._sent = self._meter.sent - self._sent, self._meter.sent
        self._control.tell(Answered(number=number, offline_s=seconds, offline_bytes=float(sent)))
