"""Server and dealer of protocol beaver as services: what they load, and what a child does with one connection.

The dealer needs certificates and nothing else: servers send it the programs they run. A client's connection leaves a
seed, and its server's has it used (session/dealing.py). Each of the two connections has a process, so the seed goes
through the supervisor, which keeps it until then.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...files import whole_file
from ...models.artifacts import load_server, load_with_adapters
from ...models.program.program import Program
from ...protocols.beaver.primitive import primitives
from ...protocols.channel import Channel
from ...protocols.devices import find_device
from ...protocols.errors import BlindformerError, PeerDeviated, PeerRefused
from ..config import Settings
from ..launch import LocalOptions
from ..session.dealing import DealerParty
from ..session.helper_topology import OwnerShares
from ..session.masked_weights import Served, load_secret, serve_parts
from ..session.online import most_revealed
from ..session.pair_corrections import check_pair
from ..session.preprocessed import GB
from ..session.rendezvous_two import (
    MemorySeeds,
    SeedError,
    agreed_program,
    left_for,
    meet_as_dealer,
    my_hello,
    part_of,
    receive_seed,
)
from ..session.two_party_server import ServerParty
from ..transport.frames import send_error
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel
from .child import Control, abort_on_error
from .control import Answered, ChildReport, Introduced, Keep, Take
from .helper import Rendezvous, serve_owner
from .quota import deviations_of, quota_in_words, quota_of
from .service import COLLUDING, TOGETHER, Service, adapters_in_words
from .supervisor import ConnectionKind

RESERVE_SECONDS = 1.0  # of a query's time in a worker, to give the worker back
HELPERS = {
    "dealer": "an offline dealer, which sees no input, no weight and no opened value",
    "helper": "an offline dealer, and a helper in the client's seat",
    "pair": "no dealer: each client makes the correlated randomness with the server",
}


class ServerService(Service):
    """One server with its programs, one for each length.

    Errors: as `Service`, and those of a key and of the folder of counts.
    """

    role = "server"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        mine = settings.server
        self.helped = settings.session.topology == "helper"
        if self.helped:  # all sessions are the helper's: it sees to it that its clients share them
            self.limits = self.limits.model_copy(update={"share": 1.0})
        adapted = load_with_adapters(load_server, mine.folder, "server", mine.adapters)
        part, parts = adapted[""], [item for part in adapted.values() for item in part.values()]
        # With a helper, or with audits, it is the same model (models/program/two_server.py).
        parts = [replace(item, program=agreed_program(item.program, settings.session)) for item in parts]
        self.served = serve_parts(parts, load_secret(part.secret_file), find_device(mine.device))
        topology = settings.session.topology
        mine_of = partial(my_hello, role=self.role, config=self.config, topology=topology)
        self.hellos = {hash: mine_of(one.program) for hash, one in self.served.items()}
        self.dealt = topology != "pair"
        if self.helped:
            self.roles, self.rendezvous = ("client", "helper"), Rendezvous(scratch)
        for served in self.served.values():
            served.prepare()
        self.commitments = sorted({served.masked.catalogue.commitment for served in self.served.values()})
        if self.dealt:
            self.watch_dealer()
        else:
            for served in self.served.values():
                check_pair(served.program, served.device)
        self.deviations = deviations_of(settings)
        self.quota = quota_of(mine, max(most_revealed(item.program) for item in parts))
        self.open_store(mine)
        self.helpers, self.together, self.limit = HELPERS[topology], TOGETHER[topology], quota_in_words(self.quota)
        if rate := settings.session.audits:
            self.adversary = (
                f"{self.adversary}; a client that changes messages is found with probability {rate:g} a run"
            )
        lengths = ", ".join(map(str, sorted(part.lengths)))
        self.about = (
            f"{part.model.get('name', 'model')}, plan {part.plan.name}, lengths {lengths}{adapters_in_words(adapted)}"
        )

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        with self.aborting(channel):
            hello = self.greet(channel, first)
            served = self.served[hello.program]
            part = part_of(channel, served.program)
            self._check_name(channel)
            if not self.able:
                self.check_dealer()
            self.introduce(channel, hello, control)
        (self._relay if part == "owner" else self._session)(channel, served, hello, control)

    def kind(self, role: str) -> ConnectionKind:
        return "relay" if self.helped and role == "client" else "session"

    def _session(self, channel: TlsChannel, served: Served, hello: Hello, control: Control) -> None:
        owners, outside = [], None
        if self.helped:
            with self.aborting(channel):
                waiting = {"waiting": "owner"}
                alive = partial(channel.send_message, waiting)
                owners = [self.rendezvous.meet(hello.session, channel.peer, self.timeout, alive=alive)]
                outside = OwnerShares(owners[0], served.program)
        party = ServerParty(
            served,
            self.local.shaped(channel),
            partial(self.dial_dealer, hello) if self.dealt else None,
            session=hello.session,
            client_id=channel.certificate.fingerprint,
            admission=control,
            signer=self.identity.signer,
            store=self.store,
            outside=outside,
            # A helper asks for owners, whose certificates count where their shares come in.
            count=None if self.helped else self.counting(channel, control),
            check_peer=partial(self._check_name, channel),
            check_dealer=self.check_dealer,
            seconds=self.limits.query_seconds - min(RESERVE_SECONDS, self.limits.query_seconds / 10),
        )
        with abort_on_error(self.role, lambda: [*party.abandon(), *owners]), self._noting(channel):
            party.set_up()
            party.serve(control.answered, idle=self.limits.idle)
            party.close()

    def _check_name(self, channel: TlsChannel) -> None:
        """Errors: PeerRefused for a client that has deviated; it has been told."""
        if self.deviations is not None:
            try:
                self.deviations.check(channel.certificate.name)
            except PeerRefused as refusal:
                send_error(channel, refusal)
                raise

    @contextmanager
    def _noting(self, channel: TlsChannel) -> Iterator[None]:
        """A deviation is on the disk before its client is told."""
        try:
            yield
        except PeerDeviated:
            if self.deviations is not None:
                self.deviations.note(channel.certificate.name)
            raise

    def _relay(self, channel: TlsChannel, served: Served, hello: Hello, control: Control) -> None:
        with self.aborting(channel):
            count = self.counting(channel, control)
            serve_owner(channel, served.program, self.rendezvous, hello.session, self.timeout, self.limits.idle, count)
            channel.close()


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
