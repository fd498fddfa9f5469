"""The three parties on this machine, over mutual TLS 1.3 on loopback: the calling process is the client.

`run_local(folder, inputs)` runs some queries and returns; `LocalParties` keeps the session open between queries. Either
way dealer and server (services.py) are gone when it is over, whatever happened.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...cores import cores
from ...models.artifacts import load_client, save
from ...models.compile import Compiled, decode_outputs
from ...models.program.pricing import Network
from ...protocols.errors import PeerError
from ..launch.processes import FAILED_SECONDS, STOP_SECONDS, LaunchError, LocalServices
from ..service.local_options import LocalOptions
from ..session.online import Answer, Progress, Timings
from ..session.two_party_client import ClientParty
from .client import client_settings
from .session import LocalSession
from .sessions import SessionTransport


@dataclass
class LocalRun:
    """What `run_local` returns: one item per query in each list. `setup_bytes`: the masked weights, once per session.

    `wire_overhead_bytes`: framing and TLS around the payload, on the client's connections, over the whole session.
    """

    outputs: list[dict[str, Tensor]] = field(default_factory=list)
    timings: list[Timings] = field(default_factory=list)
    others: list[dict[str, float]] = field(default_factory=list)
    setup_s: float = 0.0
    setup_bytes: int = 0
    wire_overhead_bytes: int = 0


def run_local(
    folder: Path | str | Compiled,
    inputs: Sequence[Mapping[str, Tensor]] | Mapping[str, Tensor],
    *,
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
    pin: bool = False,
    pipeline: bool = False,
    network: Network | None = None,
    length: int | None = None,
) -> LocalRun:
    """Run one query per item of `inputs` (tensors by name, as compiled) on a compiled folder, or on a `Compiled`.

    threads    torch threads of each party
    timeout    seconds that any party may be silent towards another that waits for it
    progress   called with (phase, done, total) as the client reports
    pin        server on core 0 and client on core 1, where there are two: for measurements
    pipeline   make the next query's correlations while one runs
    network    the network to imitate between the parties
    length     which of the folder's programs, if there are several

    Errors: as LocalParties; the parties' processes are gone by then.
    """
    inputs = [inputs] if isinstance(inputs, Mapping) else inputs
    options: dict[str, Any] = {"threads": threads, "timeout": timeout, "progress": progress, "pin": pin}
    with LocalParties(folder, **options, network=network, length=length) as parties:
        run = LocalRun(setup_s=parties.setup_s, setup_bytes=parties.setup_bytes)
        for number, item in enumerate(inputs):
            if progress:
                progress("query", number, len(inputs))
            answer = parties.query(item, more=pipeline and number + 1 < len(inputs))
            run.outputs.append(answer.outputs)
            run.timings.append(answer.timings)
            run.others.append(answer.others)
        if progress:
            progress("query", len(inputs), len(inputs))
        run.wire_overhead_bytes = parties.wire_overhead_bytes
    return run


class LocalParties(LocalSession):
    """A session with a dealer and a server on this machine.

    `processes`: their pids by role.

    Errors: ArtifactError; LaunchError and CorrelationError, which end the session; of `query` alone ProgramError and
    RangeError (wrong inputs) and AnswerOutOfRange.
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
        certificates: Path | None = None,
    ) -> None:
        """Start the services and set the session up.

        `network`: what to imitate between the parties. `length`: which of the folder's programs, if there are several.
        `certificates`: FOR TESTS, in place of new ones.
        """
        self.progress = progress
        imitated = None if network is None else (network.name, network.rtt, network.bandwidth)
        options = LocalOptions(threads=threads, network=imitated)
        server, client = ([0], [1]) if pin and cores() >= 2 else ([], [])
        self._bounded = partial(bounded, threads, client)
        if isinstance(folder, Compiled):
            part, made = None, partial(save, folder)
        else:
            part, made = load_client(folder), Path(folder)
            part.for_length(length)
        self._services = LocalServices(made, timeout, options=options, certificates=certificates, cores=server)
        part = part or load_client(self._services.folder)
        self._part = part.for_length(length)
        self._sessions = SessionTransport(
            client_settings(
                None, **self._services.addresses, certificates=self._services.certificates, timeout=timeout
            ),
            part,
            progress=progress,
            shaped=options.shaped,
        )
        with self._ending(), self._bounded():
            opened = self._sessions.connect(self._part)
        self._party, self.open = opened.party, True
        self.setup_s, self.setup_bytes = opened.setup_s, opened.party.setup_bytes

    @property
    def processes(self) -> dict[str, int]:
        return self._services.processes

    @property
    def wire_overhead_bytes(self) -> int:
        assert isinstance(self._party, ClientParty)
        return self._party.server.meter.overhead

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> Answer:
        if not self.open:
            raise LaunchError("client", "the session is closed", "open a new one")
        sources = self._part.encode_inputs(inputs)
        with self._ending(), self._bounded():
            answer = self._party.query(sources, self.progress, more)
        return replace(answer, outputs=decode_outputs(self._part.program, answer.outputs))

    def close(self) -> None:
        """Say goodbye, and end the services."""
        self._end(STOP_SECONDS)

    def _end(self, seconds: float) -> None:
        self.open = False
        self._sessions.close()
        self._services.close(seconds)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Whatever goes wrong inside ends the session. Errors: LaunchError for one of a peer."""
        try:
            yield
        except PeerError as error:
            cause = self._services.cause(error.party, f"{error.what}; {error.remedy}")
            self._end(FAILED_SECONDS)
            raise cause from None
        except BaseException:
            self._end(FAILED_SECONDS)
            raise


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
