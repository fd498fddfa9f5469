"""The dealer as a service. It needs certificates and nothing else: servers send it the programs they run.

A client's connection leaves a seed, and its server's has it used (session/dealing.py). Each of the two connections has
a process, so the seed goes through the supervisor, which keeps it until then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ...files import whole_file
from ...models.program.program import Program
from ...protocols.beaver.primitive import primitives
from ...protocols.channel import Channel
from ...protocols.devices import find_device
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..session.dealing import DealerParty
from ..session.preprocessed import GB
from ..session.rendezvous_two import MemorySeeds, SeedError, left_for, meet_as_dealer, receive_seed
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control
from .control import Answered, ChildReport, Introduced, Keep, Take
from .local_options import LocalOptions
from .service import COLLUDING, Service
from .supervisor import ConnectionKind

PROGRAMS = 64  # files kept


class DealerService(Service):
    """One dealer."""

    role = "dealer"
    helpers = "this is the dealer: it makes correlated randomness, and sees no input, no weight and no opened value"
    together = f"the dealer and any party that computes {COLLUDING}"
    roles = ("client", "helper", "server")
    about = "any program that a server and its client agree on"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        load_ahead()
        self.known = FilePrograms(scratch)
        self.seeds, self.device = PassedSeeds(), find_device(settings.dealer.device)

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        with self.aborting(channel):
            hello = self.greet(channel, first)
            self.introduce(channel, hello, control)
            seeds = AskedSeeds(control)
            if channel.peer == "server":
                self._deal(self.local.shaped(channel), hello, seeds, control)
            else:
                receive_seed(channel, hello, seeds)
            channel.close()

    def greet(self, channel: TlsChannel, first: dict[str, Any]) -> Hello:
        topology = self.settings.session.topology if self.config else ""  # without a file it serves both
        return meet_as_dealer(channel, self.timeout, topology=topology, config=self.config, first=first)

    def dealing(self, channel: Channel, hello: Hello, others: Callable[[], list[bytes]], **how: Any) -> Any:
        """The dealer's end of a session."""
        return DealerParty(channel, hello.program, others, self.known, device=self.device, **how)

    def _deal(self, channel: Channel, hello: Hello, seeds: AskedSeeds, control: Control) -> None:
        sent = channel.meter.sent

        def dealt(number: int, seconds: float) -> None:
            nonlocal sent
            before, sent = sent, channel.meter.sent
            control.send(Answered(number=number, offline_s=seconds, offline_bytes=float(sent - before)))

        how = {"memory": self.limits.memory_gb * GB, "session": hello.session, "signer": self.identity.signer}
        party = self.dealing(channel, hello, left_for(hello, seeds), admission=control, **how)
        # The server decides how long its client may be silent; it keeps this connection that long.
        party.serve(dealt, idle=2 * self.limits.idle)

    def kind(self, role: str) -> ConnectionKind:
        return "session" if role == "server" else "visit"

    def reply(self, report: ChildReport, peer: Introduced, child: int) -> Mapping[str, Any]:
        return self.seeds.reply(report, peer)

    def gauges(self) -> Mapping[str, float]:
        return {**super().gauges(), "seeds": len(self.seeds)}


class PassedSeeds(MemorySeeds):
    """In the supervisor."""

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        """The answer to `Keep` and `Take`. Errors: ValueError if this peer's process may not say that."""
        whose = {Keep: ("client", "helper"), Take: ("server",)}
        if not isinstance(report, Keep | Take) or peer.role not in whose[type(report)]:
            raise ValueError("a report that has no place here")
        if (report.session, report.program) != (peer.session, peer.program):
            raise ValueError("a report of another session")
        try:
            if isinstance(report, Take):
                return {"seed": self.take(report.session, report.program).hex()}
            self.put(report.session, report.program, bytes.fromhex(report.seed), peer.owner)
            return {"kept": True}
        except SeedError as error:
            return {"refused": str(error)}


class AskedSeeds:
    """In a child: `session.Seeds`, kept by the supervisor."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def put(self, session: str, program: str, seed: bytes) -> None:
        self._ask(Keep(session=session, program=program, seed=seed.hex()), "kept")

    def take(self, session: str, program: str) -> bytes:
        return bytes.fromhex(self._ask(Take(session=session, program=program), "seed"))

    def _ask(self, report: ChildReport, wanted: str) -> Any:
        answer = self._control.ask(report)
        if wanted not in answer:
            raise SeedError(str(answer["refused"]))
        return answer[wanted]


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
        with contextlib.suppress(OSError):  # a full disk: then it is sent again
            known = sorted(self.folder.glob("*.json"), key=os.path.getmtime)
            for old in known[: len(known) - PROGRAMS + 1]:
                old.unlink(missing_ok=True)
            with whole_file(self.folder / f"{program.hash()}.json") as stream:
                stream.write(program.to_json().encode())


def load_ahead() -> None:
    """Import what the first program would: a child would do it for itself alone, and its peer would wait."""
    primitives()
    zero = torch.zeros(1, device="meta")  # on which programs are checked; the first use imports 70 MB of torch
    _ = zero + zero
