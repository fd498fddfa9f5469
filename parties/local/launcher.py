"""The three parties as three processes of this machine, over mutual TLS 1.3 on loopback.

`run_local(folder, inputs)` runs some queries and returns; `LocalParties` keeps the session open between queries. Either
way the processes are gone when it is over, whatever happened: a worker also ends by itself when its stdin closes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ...models.artifacts import save
from ...models.compile import AnswerOutOfRange, Compiled
from ...models.pricing import Network
from ...models.program import ProgramError
from ...protocols.channel import Meter
from ...protocols.errors import BlindformerError
from ...protocols.ring import RangeError
from ..certificates.issuing import make_certificates
from ..session.timings import Timings
from .processes import START_SECONDS, LaunchError, Processes, Progress

ROLES = ("dealer", "server", "client")
# What can be wrong with one query alone. The client's process names them; anything else is a BlindformerError.
QUERY_ERRORS = {error.__name__: error for error in (AnswerOutOfRange, ProgramError, RangeError)}


@dataclass
class LocalAnswer:
    """One query: decoded outputs by name, the client's timings, and what the others reported (ClientParty.query)."""

    outputs: dict[str, Tensor]
    timings: Timings
    others: dict[str, float]


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

    Errors: as LocalParties; all processes are gone by then.
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


class LocalParties(Processes):
    """A session of three local processes, open until `close`. Use it as a context manager.

    `processes`: pids by role. `seen`: with `audit`, whether what the server has opened looks uniform (witness.py), of
    all queries after `close`. Errors of all methods: LaunchError, which ends the session; and of `query` those of
    `QUERY_ERRORS`, which end that query alone.
    """

    def __init__(
        self,
        folder: Path | str | Compiled,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        pin: bool = False,
        audit: bool = False,
        network: Network | None = None,
        length: int | None = None,
        certificates: Path | str | None = None,
        parts: Mapping[str, Path | str] | None = None,
    ) -> None:
        """Start the processes and set the session up. `audit` fills `seen`, at some cost of memory at the server.

        `network`: what to imitate between the parties. `length`: which of the folder's programs, if there are several.
        `certificates` (default: made for this session alone) and `parts` (a folder by role, in place of `folder`) are
        there for tests of parties that do not fit together.
        """
        super().__init__(progress)
        self.timeout = timeout
        self.setup_s, self.setup_bytes, self.wire_overhead_bytes = 0.0, 0, 0
        self.seen: dict[str, Any] | None = None
        self._queries = 0
        try:
            if isinstance(folder, Compiled):
                folder = save(folder, self._scratch / "compiled")
            if certificates is None:
                certificates = self._scratch / "certificates"
                make_certificates(certificates, days=1)
            cores = {"server": 0, "client": 1} if pin and _cores() >= 2 else {}
            config: dict[str, Any] = {
                "certificates": str(certificates),
                "scratch": str(self._scratch),
                "timeout": timeout,
                "threads": threads,
                "audit": audit,
                "length": length,
                "network": None if network is None else (network.name, network.rtt, network.bandwidth),
            }
            for role in ROLES:
                config["folder"] = str(Path((parts or {}).get(role, folder)).absolute())
                self._start(role, {**config, "core": cores.get(role)})
                if role != "client":
                    port = self._wait(role, ("port",), max(timeout, START_SECONDS))["port"]
                    config[role] = ("127.0.0.1", port)
            ready = self._wait("client", ("ready",), max(2 * timeout, START_SECONDS))["ready"]
            self.setup_s, self.setup_bytes = ready["setup_s"], ready["setup_bytes"]
        except BaseException:
            self._end()
            raise

    def query(self, inputs: Mapping[str, Tensor], more: bool = False) -> LocalAnswer:
        """Run one query. `more`: another one follows, so its correlations are made meanwhile."""
        if not self.open:
            raise LaunchError("client", "the session is closed", "open a new one")
        into = self._scratch / f"inputs-{self._queries}.safetensors"
        out = self._scratch / f"outputs-{self._queries}.safetensors"
        self._queries += 1
        try:
            if self.progress:
                self.progress("offline", 0, 1)
            save_file({name: value.contiguous().clone() for name, value in inputs.items()}, into)
            self._workers["client"].tell(inputs=str(into), outputs=str(out), more=more)
            report = self._wait("client", ("answer", "failed"), 2 * self.timeout)
            if "answer" in report:
                outputs = load_file(out)
                out.unlink()
        except BaseException:
            self._end()
            raise
        if "failed" in report:
            failed = report["failed"]
            raise QUERY_ERRORS.get(failed["kind"], BlindformerError)(failed["what"])
        answer = report["answer"]
        timings = answer["timings"]
        self.wire_overhead_bytes = answer["wire_overhead_bytes"]
        return LocalAnswer(outputs, Timings(**{**timings, "online": Meter(**timings["online"])}), answer["others"])

    def close(self) -> None:
        """Say goodbye, wait a little, and end whoever is still there. Safe to call twice."""
        self._part("client")

    def __enter__(self) -> LocalParties:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.close()
        else:
            self._end()

    def _heard(self, role: str, report: dict[str, Any]) -> None:
        self.seen = report.get("seen", self.seen)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
