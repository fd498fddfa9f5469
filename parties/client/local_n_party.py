"""N parties and their dealer on this machine, over mutual TLS 1.3 on loopback: sessions of a model, and `run_parties`.

In a session the parties are `blindformer serve --party`, each a process, with one settings file (party_runner.py):
CrypTen's state belongs to a process, and the data may have several owners. Their dealer is `blindformer dealer`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.artifacts import load_client, save
from ...models.compile import Compiled
from ...models.generation.rows import Pass
from ...protocols.channel import Meter
from ...protocols.crypten import PROTOCOL
from ...protocols.crypten.versions import check_versions
from ...protocols.errors import BlindformerError
from ...protocols.operations.reveal import RevealedRows, rows_of
from ..certificates.issuing import make_certificates
from ..certificates.tls_folder import server_context
from ..launch import LocalOptions
from ..launch.fork_server import shared
from ..launch.processes import BUSY, ONE_CLIENT, START_SECONDS, LaunchError, PartyProcesses, as_toml
from ..reports.report import parties_report
from ..session.online import Answer, OnPass, Progress, Timings, part_run
from ..session.parties import DEALER, Parties, numbered
from ..session.tensors import TensorSession, meet
from ..transport.tls import listen
from .session import Reply, Session

LOOK_SECONDS = 0.1  # while a party says nothing, between looks at whether all are there


@dataclass
class PartiesAnswer(Answer):
    """`timings`: of all parties together; `by_party`: of each."""

    by_party: dict[str, Timings] = field(default_factory=dict)


class NPartyProcesses(PartyProcesses):
    """Certificates for N parties and their dealer, whose service runs. Errors of all methods: LaunchError.

    sections   of a settings file: what all of them share
    """

    def __init__(self, parties: Parties, timeout: float, device: str = "cpu") -> None:
        super().__init__()
        try:
            self.certificates = self.scratch / "certificates"
            make_certificates(self.certificates, roles=(DEALER, *parties.names), days=1)
            self.sections: dict[str, dict[str, Any]] = {
                "session": {"protocol": PROTOCOL.name, "timeout": float(timeout)},
                "certificates": {"folder": self.certificates},
            }
            for name in parties.names:
                owns = [item for item, owner in parties.owners.items() if owner == name]
                owns += ["data"] * (name == parties.data)
                self.sections[f"crypten.parties.{name}"] = {"owns": owns, "answers": name == parties.recipient}
            words = LocalOptions(scratch=str(self.scratch), lifeline=True).words()
            self._serve(DEALER, ["dealer", *words], self.sections | {DEALER: {**ONE_CLIENT, "device": device}})
        except BaseException:
            self.close(0)
            raise


class LocalNParty(NPartyProcesses, Session):
    """A session of local processes. The party that asks is the first one that owns data.

    Errors of all methods: LaunchError, which ends the session; and of `query` alone ProgramError, RangeError (wrong
    inputs) and AnswerOutOfRange. CryptenError at once, if CrypTen is not there.
    """

    protocol = "crypten"
    report = parties_report
    parties: Parties

    def __init__(
        self,
        folder: Path | str | Compiled,
        parties: Parties,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        length: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Start the processes and set the session up. `length`: which of the folder's programs, if it has several;
        `device`: where each party computes."""
        check_versions()
        forks = shared()
        forks.load("blindformer.protocols.crypten.session")  # all parties share what it imports
        self.open, self._links = False, dict[str, Connection]()
        self.parties, self.timeout, self.progress = parties, timeout, progress
        super().__init__(parties, timeout, device)
        try:
            folder = save(folder, self.scratch / "compiled") if isinstance(folder, Compiled) else Path(folder)
            client = load_client(folder)
            self.part, self.plan = client.for_length(length), client.about["plan"]
            self.program = self.part.program
            with ExitStack() as opened:
                listening = {name: opened.enter_context(self._listen(name)) for name in parties.names[:-1]}
                sockets = {name: listener.fileno() for name, listener in listening.items()}
                file = self.scratch / "blindformer.toml"
                file.write_text(self._settings(folder.absolute(), length, sockets, device, threads))
                for name in parties.names:
                    ours, theirs = socket.socketpair()
                    self._links[name] = Connection(ours.detach())
                    link = opened.enter_context(theirs).fileno()
                    inherited = [link, *([sockets[name]] if name in sockets else [])]
                    words = ["serve", "--party", name, "--config", str(file), *LocalOptions(link=link).words()]
                    self._start(name, words, inherited)
            for name in parties.names:
                seconds, size = self._hear_from(name, 2 * max(timeout, START_SECONDS))
                self.setup_s, self.setup_bytes = max(self.setup_s, seconds), max(self.setup_bytes, size)
            self.open = True
        except BaseException:
            self.close(0)
            raise

    def passes(self, on_pass: OnPass | None = None) -> Pass:
        """Passes are queries of the session; N parties reveal all rows."""

        def run(
            part: str, inputs: Mapping[str, Tensor], following: object, revealed: RevealedRows
        ) -> Mapping[str, Tensor]:
            self.check_open()
            try:
                answer = self._ask(inputs, part=part).answer
                answer = replace(answer, outputs=self.part.parts[part].decode(answer.outputs))
            except BaseException:
                self.close()  # else its state would not be what the conversation takes it for
                raise
            if on_pass:
                on_pass(part, answer)
            return {name: rows_of(value, revealed) for name, value in answer.outputs.items()}

        return run

    def _ask(self, inputs: Mapping[str, Tensor], more: bool = False, part: str = "") -> Reply:
        """Every data owner is given its own values, and no others. (`more` is not used here.) `part`: which pass of a
        conversation it is."""
        parties = self.parties
        asker, recipient = parties.names[parties.asker], parties.names[parties.recipient_rank]
        # What is wrong with them is found before anybody is told of them.
        values, run = (self.part.parts[part] if part else self.part).encode_inputs(inputs), None
        if part:
            run = part_run(self.program, part, int(inputs["rows"]))
        sources = parties.sources(self.program.part(part))
        try:
            if self.progress:
                self.progress("offline", 0, 1)
            for rank in {parties.asker, *sources.values()}:
                mine = {name: value.numpy() for name, value in values.items() if sources[name] == rank}
                with suppress(OSError):  # the death of a party is reported where it is listened to
                    self._links[parties.names[rank]].send((mine, run))
            order = [asker, *(name for name in parties.names if name != asker)]
            answers = {name: self._hear_from(name, 2 * self.timeout) for name in order}
        except BaseException:
            self.close(0)
            raise
        timings: dict[str, Timings] = {name: each for name, (_, each, _) in answers.items()}
        others = {f"{name}_peak_rss_mb": each.peak_rss_mb for name, each in timings.items()}
        others["dealer_peak_rss_mb"] = max(peak for _, _, peak in answers.values())
        outputs = {name: torch.from_numpy(value) for name, value in answers[recipient][0].items()}
        return self._reply(PartiesAnswer(outputs, _together(list(timings.values())), others, timings))

    def close(self, seconds: float = 1.0) -> None:
        self.open = False
        super().close(seconds)
        while self._links:
            self._links.popitem()[1].close()

    def _settings(self, folder: Path, length: int | None, sockets: Mapping[str, int], device: str, threads: int) -> str:
        """The deployment's blindformer.toml."""
        sections = self.sections | {
            PROTOCOL.name: {"wait": START_SECONDS, **({"length": length} if length else {})},
            "parties.dealer": {"address": str(self.addresses[DEALER])},
        }
        for name in self.parties.names:
            own: dict[str, Any] = {"folder": str(folder), "device": device, "threads": threads}
            if name in sockets:
                own |= {"address": str(self.addresses[name]), "listen": f"fd:{sockets[name]}"}
            sections[f"crypten.parties.{name}"] = sections[f"crypten.parties.{name}"] | own
        return as_toml(sections)

    def _hear_from(self, name: str, seconds: float) -> list[Any]:
        """What a party says next, after any progress. Errors: LaunchError; one that ends early ends all others."""
        link, end = self._links[name], time.monotonic() + seconds
        try:
            while True:
                while not link.poll(LOOK_SECONDS):
                    dead = [role for role, running in self._running.items() if running.ended]
                    if dead and not link.poll():
                        raise self.cause(dead[0], "")
                    if time.monotonic() > end:
                        raise LaunchError(name, f"gave no sign of life for {seconds:g} seconds", BUSY)
                kind, *values = link.recv()
                if kind != "progress":
                    return values
                if self.progress:
                    self.progress(*values)
        except (EOFError, OSError):
            raise self.cause(name, "") from None


def _together(timings: list[Timings]) -> Timings:
    """Of all parties: the slowest one's seconds, and all messages, each counted once, as sent."""
    online = Meter(
        sent=sum(each.online.sent for each in timings), overhead=sum(each.online.overhead for each in timings)
    )
    return Timings(
        offline_s=max(each.offline_s for each in timings),
        online_s=max(each.online_s for each in timings),
        rounds=timings[0].rounds,
        online=online,
        offline_bytes=sum(each.offline_bytes for each in timings),
        peak_rss_mb=max(each.peak_rss_mb for each in timings),
    )


def run_parties(
    function: Callable[[TensorSession], Any],
    parties: int = 2,
    folder: str | Path | None = None,
    *,
    timeout: float = 120,
) -> list[Any]:
    """`function(session)` at every party, each a process of this machine over mutual TLS, beside a dealer; the results
    by rank.

    `function` is found by its name in its module, so guard the script with `if __name__ == "__main__"`.
    Errors: LaunchError, naming the party that failed; CryptenError if CrypTen is not there.
    """
    check_versions()
    chosen, spawn = numbered(parties), get_context("spawn")
    dealing = NPartyProcesses(chosen, timeout)
    ends, processes = {}, {}
    try:
        for name in chosen.names:
            ends[name], theirs = spawn.Pipe()
            # daemon: none outlives this process
            arguments = (name, function, dealing.certificates, folder, timeout, theirs)
            processes[name] = spawn.Process(target=_party, args=arguments, daemon=True, name=name)
            processes[name].start()
        addresses = {name: _hear(ends[name], name, START_SECONDS + timeout) for name in chosen.names}
        for end in ends.values():
            end.send({**addresses, DEALER: str(dealing.addresses[DEALER])})
        return [_hear(ends[name], name, None) for name in chosen.names]
    finally:
        for process in processes.values():
            process.kill()
            process.join()
        dealing.close(0)


def _party(name: str, function: Any, certificates: Path, folder: Any, timeout: float, parent: Any) -> None:
    """One process: says where it listens, hears where the others do, and sends its result."""
    import torch

    torch.set_num_threads(1)
    try:
        listener = listen("127.0.0.1", 0, server_context(certificates, name), timeout=timeout)
        parent.send(("done", "{}:{}".format(*listener.address)))
        addresses = parent.recv()
        options = {"timeout": timeout, "wait": timeout, "listener": listener}
        if name == [other for other in addresses if other != DEALER][-1]:
            listener.close()  # nobody comes after the last
            options["listener"] = None
        with meet(name, addresses, certificates, folder, **options) as session:
            result = function(session)
        parent.send(("done", result))
        with suppress(EOFError):
            parent.recv()  # torch hands tensors over by this process, so it stays until it is ended
    except BlindformerError as error:
        parent.send(("failed", str(error)))
    except Exception as error:
        parent.send(("failed", f"{type(error).__name__}: {error}"))


def _hear(end: Any, name: str, seconds: float | None) -> Any:
    """What a process says next. Errors: LaunchError."""
    try:
        if not end.poll(seconds):
            raise LaunchError(name, f"did not start in {seconds:g} seconds", "see whether the machine is busy")
        kind, result = end.recv()
    except (EOFError, ConnectionResetError):
        raise LaunchError(name, "ended without a word") from None
    if kind == "failed":
        raise LaunchError(name, result)
    return result
