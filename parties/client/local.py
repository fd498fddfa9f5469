"""Sessions with parties that are started on this machine, over mutual TLS 1.3 on loopback; and the reference, which
runs in this process. `find_local` gives a protocol's; dealer and server are gone when a session is over."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cores import cores
from ...models.artifacts import load_client, load_server, save
from ...models.compile import Compiled
from ...models.generation.rows import Pass, run_clear
from ...models.program.interpreter import interpret
from ...models.program.pricing import Network
from ...protocols.clear import ClearEngine
from ...protocols.devices import DeviceError, find_device
from ...protocols.errors import BlindformerError, PeerError
from ..launch import NO_DEALER, LocalOptions
from ..launch.processes import FAILED_SECONDS, STOP_SECONDS, LocalServices
from ..registry import ProtocolEntry, find, names, of_parties, resolve, runs_here
from ..reports.report import Report, clear_report
from ..session.online import Answer, OnPass, Progress, Timings
from ..session.parties import Parties, PartiesError, numbered
from ..session.two_party_client import ClientParty
from .session import ClientError, PartyAddresses, Reply, Session, client_settings
from .two_party import TwoPartySession, meet_parties


@contextmanager
def bounded(threads: int, cores: Sequence[int] = ()) -> Iterator[None]:
    """Torch's threads, and the cores of this thread and those that it starts, while this process is a party."""
    before = torch.get_num_threads()
    pinned = os.sched_getaffinity(0) if cores and hasattr(os, "sched_getaffinity") else set()
    torch.set_num_threads(threads)
    if pinned:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if pinned:
            os.sched_setaffinity(0, pinned)


class OwnServices(Session):
    """Before a protocol's session among a class's bases: the services run for this session, and end with it.

    Errors of all methods: LaunchError, which names the party that failed, and ends the session.
    """

    services: LocalServices
    local: LocalOptions
    threads, cores = 1, list[int]()
    open = False  # until the session itself says so

    def _start_services(
        self,
        source: Path | Callable[[Path], Path],
        timeout: float,
        threads: int,
        *,
        pin: bool = False,
        network: Network | None = None,
        any_ring: bool = False,
        server: Mapping[str, Any] | None = None,
        **session: Any,
    ) -> PartyAddresses:
        """Start them; where they are. `source`, `server`: as of LocalServices; `pin`, `network`: as of LocalParties;
        `session`: audits, device, topology."""
        imitated = None if network is None else (network.name, network.rtt, network.bandwidth)
        self.local = LocalOptions(threads=threads, network=imitated, any_ring=any_ring)
        cores_of_server, self.cores = ([0], [1]) if pin and cores() >= 2 else ([], [])
        self.threads = threads
        self.services = LocalServices(
            source, timeout, self.protocol, server, options=self.local, cores=cores_of_server, **session
        )
        given = {"certificates": self.services.certificates, "timeout": timeout, "protocol": self.protocol, **session}
        return PartyAddresses(client_settings(None, **self.services.addresses, **given))

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by role."""
        return self.services.processes

    @contextmanager
    def working(self) -> Iterator[None]:
        try:
            with bounded(self.threads, self.cores):
                yield
        except PeerError as error:
            cause = self.services.cause(error.party, f"{error.what}; {error.remedy}")
            self._end(FAILED_SECONDS)
            raise cause from None
        except BaseException:
            self._end(FAILED_SECONDS)
            raise

    def close(self) -> None:
        """End the session and the services."""
        self._end(STOP_SECONDS)

    def _end(self, seconds: float) -> None:
        super().close()  # type: ignore[safe-super]  # the protocol's
        self.services.close(seconds)


class LocalParties(OwnServices, TwoPartySession):
    """A session with a dealer and a server on this machine; this process is the client.

        with bf.LocalParties("compiled", length=32) as session:
            print(session.query(inputs).outputs)

    folder   a compiled folder, or a result of `compile`
    pin      the server on core 0 and this process on core 1, for measurements
    network  a network to imitate between the parties
    length   which of the folder's programs
    audits   fraction of runs in which the server checks this process
    dealer   "none": the two parties do without
    device   where each party computes

    Raises ArtifactError; LaunchError and CorrelationError end the session. `query` raises ProgramError, RangeError and
    AnswerOutOfRange.
    """

    def __init__(
        self,
        folder: Path | str | Compiled,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        pin: bool = False,
        network: Network | None = None,
        length: int | None = None,
        audits: float = 0.0,
        device: str = "cpu",
        dealer: str | None = None,
    ) -> None:
        """Start the services and set the session up."""
        if isinstance(folder, Compiled):
            part, source = None, partial(save, folder)
        else:
            part, source = load_client(folder), Path(folder)
            part.for_length(length)  # a length that is not there is said before anything is started
        if dealer not in (None, NO_DEALER):
            raise ClientError(f"dealer {dealer}: is started here, or left out; give {NO_DEALER}, or nothing")
        session = {"audits": audits, "device": device, "topology": "pair" if dealer else "dealer"}
        parties = self._start_services(source, timeout, threads, pin=pin, network=network, **session)
        with self.working():
            part = part or load_client(self.services.folder)
            mine, tell = part.for_length(length), progress or (lambda phase, done, total: None)
            met = meet_parties(parties.settings, parties, part, mine, tell, shaped=self.local.shaped)
        super().__init__(mine, part.about["plan"], *met, progress)

    @property
    def wire_overhead_bytes(self) -> int:
        assert isinstance(self.party, ClientParty)
        return self.party.server.meter.overhead


class ClearSession(Session):
    """The reference: what parties compute, wraps included, in this process, which hides nothing. It takes the options
    of other sessions, and has no use for them."""

    protocol = "clear"
    report = clear_report

    def __init__(self, folder: Path | str | Compiled, *, length: int | None = None, **options: Any) -> None:
        if isinstance(folder, Compiled):
            self.part, self.weights, self.plan = folder, folder.weights, folder.plan.name
        else:
            client, server = load_client(folder), load_server(folder)
            self.part, self.plan = client.for_length(length), client.about["plan"]
            self.weights = server.for_length(length).weights
        self.program = self.part.program

    def passes(self, on_pass: OnPass | None = None) -> Pass:
        run = run_clear(self.part.parts, self.weights)

        def timed(part: str, *given: Any) -> Mapping[str, Tensor]:
            started = time.perf_counter()
            outputs = run(part, *given)
            if on_pass:
                on_pass(part, Answer(dict(outputs), Timings(online_s=time.perf_counter() - started)))
            return outputs

        return timed

    def close(self) -> None:
        self.open = False

    def _ask(self, inputs: Mapping[str, Tensor], more: bool) -> Reply:
        started = time.perf_counter()
        engine = ClearEngine({**self.part.encode_inputs(inputs), **self.weights, **self.part.constants})
        outputs = interpret(self.program, engine).outputs
        return self._reply(Answer(outputs, Timings(online_s=time.perf_counter() - started)))


@dataclass(frozen=True)
class LocalProtocol:
    """A protocol of the registry, among these parties."""

    entry: ProtocolEntry
    parties: Parties

    def check_device(self, device: str) -> None:
        """Errors: DeviceError where parties cannot compute there."""
        if device != "cpu" and not self.entry.devices:
            others = " or ".join(names(lambda entry: entry.devices))
            raise DeviceError(f"device {device}: protocol {self.entry.name} computes on processors; use {others}")
        find_device(device)

    def open(self, compiled: Compiled | Path, *, device: str = "cpu", **options: Any) -> Session:
        """`device`: where each party computes; `options`: threads, timeout, progress, length, and those of a protocol's
        own."""
        self.check_device(device)
        if self.entry.devices:
            options["device"] = device
        if self.entry.parties is None:
            options["parties"] = self.parties
        return resolve(self.entry.local)(compiled, **options)

    @property
    def shares_queries(self) -> bool:
        """Whether several texts or images share a query at the price of one."""
        return resolve(self.entry.local).shares_queries

    def compile_for(self, count: int, make: Callable[[int], Compiled]) -> Compiled:
        """What `make(rows)` compiles, for as many of `count` inputs a query as are taken at the price of one.

        Errors: those of `make`, and ProgramError, TooDeep where the protocol cannot run it.
        """
        compiled = make(1)
        texts = resolve(self.entry.local).texts_of_query(compiled) if count > 1 else 1
        return compiled if min(count, texts) == 1 else make(min(count, texts))

    def costs(self, reports: list[Report], what: str) -> str:
        """In a line: what queries of one `what`, such as "a text", cost."""
        return resolve(self.entry.local).costs(reports, what)


def find_local(protocol: str, parties: Parties | int = 2) -> LocalProtocol:
    """Errors: BlindformerError for an unknown name, a number of parties that it cannot have, a missing library."""
    if protocol not in runs_here():
        raise BlindformerError(f"protocol {protocol}: no session runs on it; choose one of {', '.join(runs_here())}")
    entry = find(protocol)
    count = parties.size if isinstance(parties, Parties) else parties
    if entry.parties not in (None, count):
        others = " or ".join(of_parties())
        raise PartiesError(f"{count} parties: protocol {protocol} has {entry.parties}; use protocol {others}")
    if entry.check:
        resolve(entry.check)()
    return LocalProtocol(entry, parties if isinstance(parties, Parties) else numbered(count))
