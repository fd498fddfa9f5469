"""Dealers as services: of two parties, and of N.

A dealer needs certificates and nothing else: the leader of a session (of two parties the server, of N the model's
owner) sends it the program. The other parties' connections each leave a seed, and the leader's has them used
(session/dealing.py). Each connection has a process, so the seeds go through the supervisor, which keeps them until
then.
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
from ...protocols.crypten import PROTOCOL as N_PARTY
from ...protocols.devices import find_device
from ...protocols.errors import BlindformerError
from ..config import Settings
from ..launch import LocalOptions
from ..session.dealing import DealerParty
from ..session.parties import parties_of
from ..session.preprocessed import GB
from ..session.rendezvous_two import MemorySeeds, SeedError, left_for, meet_as_dealer, receive_seed
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control
from .control import Answered, ChildReport, Introduced, Keep, Take
from .service import COLLUDING, Service
from .supervisor import ConnectionKind

PROGRAMS = 64  # files kept


class DealerService(Service):
    """One dealer of two parties.

    leader   the role that leads sessions
    others   the other parties, in order of rank, by each role that their certificates may have
    """

    role = "dealer"
    leader = "server"
    others: Mapping[str, str] = {"client": "client", "helper": "client"}
    helpers = "this is the dealer: it makes correlated randomness, and sees no input, no weight and no opened value"
    together = f"the dealer and any party that computes {COLLUDING}"
    about = "any program that a server and its client agree on"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        load_ahead()
        self.known = FilePrograms(scratch)
        self.roles = (*self.others, self.leader)
        self.seeds, self.device = PassedSeeds(self.leader, self.others), find_device(settings.dealer.device)

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        with self.aborting(channel):
            hello = self.greet(channel, first)
            self.introduce(channel, hello, control)
            seeds = AskedSeeds(control)
            if channel.peer == self.leader:
                self._deal(self.local.shaped(channel), hello, seeds, control)
            else:
                receive_seed(channel, hello, seeds, self.others[channel.peer])
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
        others = left_for(hello, seeds, dict.fromkeys(self.others.values()))
        party = self.dealing(channel, hello, others, admission=control, **how)
        # The leader decides how long who asks it may be silent; it keeps this connection that long.
        party.serve(dealt, idle=2 * self.limits.idle)

    def kind(self, role: str) -> ConnectionKind:
        return "session" if role == self.leader else "visit"

    def reply(self, report: ChildReport, peer: Introduced, child: int) -> Mapping[str, Any]:
        return self.seeds.reply(report, peer)

    def gauges(self) -> Mapping[str, float]:
        return {**super().gauges(), "seeds": len(self.seeds)}


class NPartyDealerService(DealerService):
    """The dealer of the parties that [crypten.parties] names. Errors: PartiesError, too."""

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        self.parties = parties_of(settings)
        self.leader, *others = self.parties.names
        self.others = {name: name for name in others}
        self.about = f"any program that {', '.join(self.parties.names)} agree on"
        super().__init__(settings, scratch, local)
        self.config = self.parties.hash()

    def greet(self, channel: TlsChannel, first: dict[str, Any]) -> Hello:
        return meet_as_dealer(channel, self.timeout, protocol=N_PARTY.name, config=self.config, first=first)

    def dealing(self, channel: Channel, hello: Hello, others: Callable[[], list[bytes]], **how: Any) -> Any:
        return super().dealing(channel, hello, others, owners=self.parties.sources, **how)


class PassedSeeds(MemorySeeds):
    """In the supervisor. `leader`, `others`: as of the service."""

    def __init__(self, leader: str, others: Mapping[str, str], **how: Any) -> None:
        super().__init__(**how)
        self._leader, self._others = leader, others

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        """The answer to `Keep` and `Take`. Errors: ValueError if this peer's process may not say that."""
        keeps = isinstance(report, Keep) and peer.role in self._others
        if not keeps and not (isinstance(report, Take) and peer.role == self._leader):
            raise ValueError("a report that has no place here")
        assert isinstance(report, Keep | Take)
        if (report.session, report.program) != (peer.session, peer.program):
            raise ValueError("a report of another session")
        try:
            if isinstance(report, Take):
                return {"seed": self.take(report.session, report.program, report.party).hex()}
            party = self._others[peer.role]
            self.put(report.session, report.program, bytes.fromhex(report.seed), party, peer.owner)
            return {"kept": True}
        except SeedError as error:
            return {"refused": str(error)}


class AskedSeeds:
    """In a child: `session.Seeds`, kept by the supervisor."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def put(self, session: str, program: str, seed: bytes, party: str = "client") -> None:
        self._ask(Keep(session=session, program=program, seed=seed.hex()), "kept", party)

    def take(self, session: str, program: str, party: str = "client") -> bytes:
        return bytes.fromhex(self._ask(Take(session=session, program=program, party=party), "seed", party))

    def _ask(self, report: ChildReport, wanted: str, party: str) -> Any:
        answer = self._control.ask(report)
        if wanted not in answer:
            raise SeedError(party, str(answer["refused"]))
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

    def __setitem__(self, hash: str, program: Program) -> None:
        with contextlib.suppress(OSError):  # a full disk: then it is sent again
            known = sorted(self.folder.glob("*.json"), key=os.path.getmtime)
            for old in known[: len(known) - PROGRAMS + 1]:
                old.unlink(missing_ok=True)
            with whole_file(self.folder / f"{hash}.json") as stream:
                stream.write(program.to_json().encode())


def load_ahead() -> None:
    """Import what the first program would: a child would do it for itself alone, and its peer would wait."""
    primitives()
    zero = torch.zeros(1, device="meta")  # on which programs are checked; the first use imports 70 MB of torch
    _ = zero + zero
