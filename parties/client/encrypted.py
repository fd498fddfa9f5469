"""Protocol ckks: queries that leave as ciphertexts, to a server that computes on them without being able to read.

The server keeps evaluation keys for each program, by a name that it gives them; the secret key stays here.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any

from torch import Tensor

from ...cores import cores
from ...models.artifacts import ClientLength, ClientPart, load_client, save
from ...models.artifacts.writing import text_length
from ...models.compile import Compiled
from ...models.encrypted import circuit_for, decode_real, real_values
from ...protocols.ckks.circuit import Ends
from ...protocols.ckks.facts import CircuitNeeds, facts_from
from ...protocols.ckks.keys import ClientKeys
from ...protocols.ckks.parameters import CkksError
from ...protocols.errors import BlindformerError, PeerError, PeerGone, PeerTimeout
from ..certificates.tls_folder import client_context, write
from ..config import Address
from ..reports.report import encrypted_report, requests_in_words
from ..session.encrypted_queries import PROTOCOL, SERVER, EncryptingClient, KeysGone
from ..session.messages import LimitReached, SlotsBusy
from ..session.online import Answer, Progress
from ..transport.handshake import make_hello, meet, new_session
from .local import OwnServices
from .session import ClientError, PartyAddresses, Reply, Session, telling


class KeyFileError(BlindformerError):
    """A key on disk that cannot be used."""


class KeptKeys:
    """In `folder`, for one program at one server: the secret key, and the name of its evaluation keys there."""

    def __init__(self, folder: Path, facts: CircuitNeeds, address: Address) -> None:
        what = f"{facts.program} {facts.parameters} {address}"
        self._folder = folder
        self._secret = folder / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.secret"
        self._name = self._secret.with_suffix(".name")

    def load(self) -> tuple[bytes, str] | None:
        """The secret key and the name, if both are there. Errors: KeyFileError."""
        try:
            if os.name == "posix" and self._secret.stat().st_mode & 0o077:
                raise KeyFileError(f"{self._secret} can be read by other users; delete it, and new keys are made")
            secret, name = self._secret.read_bytes(), self._name.read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return (secret, name) if re.fullmatch("[0-9a-f]{32}", name) else None

    def store(self, secret: bytes, name: str) -> None:
        """Errors: KeyFileError."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for file, content in ((self._secret, secret), (self._name, name.encode())):
                write(file, content, mode=0o600)
        except OSError as error:
            raise KeyFileError(
                f"{self._folder}: cannot keep keys there ({error.strerror}); choose another folder"
            ) from None


@dataclass
class Keyed:
    """Keys for one program, and their name at the server. `seconds`, `bytes`: what sending them took; 0 if kept."""

    keys: ClientKeys
    name: str
    seconds: float = 0.0
    bytes: int = 0


class EncryptedServer:
    """The server of a client, where it is now, and the keys that it was sent, by program. `any_ring`: FOR TESTS ALONE:
    parameters below 128 bits, too. Errors: CkksError for a folder that is not compiled for this."""

    layer: Callable[[str], None] | None = None
    """Called with the name of the model's module that the server works on."""

    def __init__(self, part: ClientPart, parties: PartyAddresses, folder: Path | None, any_ring: bool = False) -> None:
        """`folder`: for secret keys; None: keys are this client's alone, and forgotten by both sides at `close`."""
        self.part, self.keyed = part, dict[str, Keyed]()
        self.facts = {one.program.hash(): _facts(one, part.folder, any_ring) for one in part.lengths.values()}
        self._parties, self._folder = parties, folder
        self._idle: dict[str, list[EncryptingClient]] = {}  # open connections by program, each with nothing to do
        self._busy = Counter[str]()  # how many are in use
        self._given_back = Condition()

    @contextmanager
    def connection(self, facts: CircuitNeeds, progress: Progress) -> Iterator[EncryptingClient]:
        """One to the server, for one request: requests beside each other have one each, as far as there are places.
        After an error that may have spoilt it, it is closed. Errors: PeerError, SlotsBusy."""
        client = self._take(facts, progress)
        good = False
        try:
            yield client
            good = True
        except (SlotsBusy, LimitReached, KeysGone):
            good = True
            raise
        finally:
            with self._given_back:
                self._busy[facts.program] -= 1
                kept = good and self._idle.get(facts.program) == []  # one: others may need the places
                if kept:
                    self._idle[facts.program].append(client)
                self._given_back.notify()
            if not kept:
                (client if good else client.channel).close()

    def hang_up(self, program: str) -> None:
        """Close connections; those in use are closed after it."""
        with self._given_back:
            idle = self._idle.pop(program, [])
        for client in idle:
            client.close()

    def keys_for(self, part: ClientLength, progress: Progress) -> Keyed:
        """Those of before, if the server has them still; else new ones, which are sent."""
        facts = self.facts[part.program.hash()]
        self._idle.setdefault(facts.program, [])
        progress("connect", 0, 1)
        with self.connection(facts, progress) as client:
            kept = self.keyed.get(facts.program) or self._kept(part, facts)
            if kept is not None:
                self.keyed[facts.program] = kept  # a server that is busy, or away, has not forgotten them
                if client.has(kept.name):
                    return kept
            keyed = self.keyed[facts.program] = self._new(part, facts, client, progress)
            return keyed

    def close(self) -> None:
        """And let the server forget keys that are not kept."""
        idle = [client for clients in self._idle.values() for client in clients]
        if idle and self._folder is None:
            with suppress(PeerError):
                for keyed in self.keyed.values():
                    idle[0].forget(keyed.name)
        for program in list(self._idle):
            self.hang_up(program)
        self.keyed.clear()

    def _take(self, facts: CircuitNeeds, progress: Progress) -> EncryptingClient:
        program = facts.program
        while True:
            with self._given_back:
                idle = self._idle.get(program)
                self._busy[program] += 1
                if idle:
                    return idle.pop()
            try:
                return self._dial(facts, progress)
            except BaseException as error:
                with self._given_back:
                    self._busy[program] -= 1
                    if not (isinstance(error, SlotsBusy) and self._busy[program]):
                        raise
                    self._given_back.wait(error.retry_after)  # for the end of another request

    def _dial(self, facts: CircuitNeeds, progress: Progress) -> EncryptingClient:
        """With the certificate as its files are now. Errors: PeerDisagrees if the server has another circuit."""
        (certificates, address), settings = self._parties.reached(), self._parties.settings
        mine = make_hello("client", PROTOCOL, facts.hash(), new_session(), settings.shared_hash())
        timeout = settings.session.timeout
        channel = meet(address(SERVER), client_context(certificates, "client"), SERVER, mine, timeout)
        client = EncryptingClient(channel, facts, telling(progress))
        try:
            client.set_up()
        except BaseException:
            channel.close()
            raise
        return client

    def _kept(self, part: ClientLength, facts: CircuitNeeds) -> Keyed | None:
        """Keys of an earlier client, if they are on this disk."""
        kept = None if self._folder is None else self._files(self._folder, facts).load()
        return None if kept is None else Keyed(ClientKeys(_ends(part), facts.parameters, kept[0]), kept[1])

    def _new(self, part: ClientLength, facts: CircuitNeeds, client: EncryptingClient, progress: Progress) -> Keyed:
        """Make keys and send the server those that it computes with."""
        started, before = time.perf_counter(), client.channel.meter.sent
        keys = ClientKeys(_ends(part), facts.parameters)
        name = client.upload(_sealed(keys, facts, progress))
        if self._folder is not None:
            self._files(self._folder, facts).store(keys.secret_bytes(), name)
        return Keyed(keys, name, time.perf_counter() - started, client.channel.meter.sent - before)

    def _files(self, folder: Path, facts: CircuitNeeds) -> KeptKeys:
        return KeptKeys(folder, facts, self._parties.reached()[1](SERVER))


def _sealed(keys: ClientKeys, facts: CircuitNeeds, progress: Progress) -> Iterator[bytes]:
    total = 1 + len(facts.elements)
    for number, sealed in enumerate(keys.sealed_evaluation()):
        progress("keys", number, total)
        yield sealed
    progress("keys", total, total)


class EncryptedSession(Session):
    """Requests of one program under the client's keys, which a new session finds again. Nothing is decrypted before a
    reply is read."""

    protocol = "ckks"
    report = encrypted_report
    costs = requests_in_words
    shares_queries = True

    def __init__(self, server: EncryptedServer, part: ClientLength, progress: Progress) -> None:
        self.server, self.part, self.progress = server, part, progress
        self.program, self.plan = part.program, server.part.about["plan"]
        self.facts, self.keyed = server.facts[part.program.hash()], server.keys_for(part, progress)
        self.setup_s, self.setup_bytes, self.open = self.keyed.seconds, self.keyed.bytes, True

    @classmethod
    def texts_of_query(cls, compiled: Compiled) -> int:
        circuit, _ = circuit_for(compiled)
        return circuit.packing.room

    def lost(self, error: BaseException) -> bool:
        if isinstance(error, KeysGone):
            self.server.keyed.pop(self.facts.program, None)
        if isinstance(error, KeysGone | PeerGone | PeerTimeout):
            self.close()
            return True
        if isinstance(error, ClientError):  # another thread's loss closed it before this one asked
            return not self.open
        return super().lost(error)

    def close(self) -> None:
        self.open = False
        self.server.hang_up(self.facts.program)

    def _ask(self, inputs: Mapping[str, Tensor], more: bool) -> Reply:
        taken = {name: inputs[name] for name in self.program.inputs if name in inputs}
        values = real_values(self.part.program, self.part.encode_inputs(taken))
        with self.working():
            answer, sealed = self._request(values)
        opened: dict[str, Any] = {}

        def read(rows: slice) -> dict[str, Tensor]:
            if not opened:
                opened.update(self.keyed.keys.open_reply(sealed))
            return decode_real(
                self.program, {name: value[rows] if value.ndim else value for name, value in opened.items()}
            )

        return self._reply(answer, read)

    def _request(self, values: Any) -> tuple[Answer, Mapping[int, bytes]]:
        facts, keyed = self.facts, self.keyed

        def step(done: int) -> None:
            self.progress("online", done, len(facts.steps))
            if self.server.layer:
                self.server.layer(facts.steps[min(done, len(facts.steps) - 1)])

        with self.server.connection(facts, self.progress) as client:
            sealed, timings = client.ask(keyed.name, keyed.keys.sealed_request(values), step)
        return Answer({}, timings), sealed


def settings_of_local() -> dict[str, int]:
    """Of [server], of a server of this machine, which has one client."""
    return {"workers": 1, "query_processes": cores()}


class LocalEncrypted(OwnServices, EncryptedSession):
    """A session with a server on this machine, which is asked from one thread."""

    def __init__(
        self,
        folder: Path | str | Compiled,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        length: int | None = None,
        any_ring: bool = False,
    ) -> None:
        """`any_ring`: FOR TESTS ALONE: parameters below 128 bits, too."""
        if isinstance(folder, Compiled):
            source = partial(save, folder, circuits={text_length(folder.program): circuit_for(folder)})
        else:
            source = Path(folder)
        parties = self._start_services(source, timeout, threads, any_ring=any_ring, server=settings_of_local())
        with self.working():
            part = load_client(self.services.folder)
            server = EncryptedServer(part, parties, None, any_ring)
            super().__init__(server, part.for_length(length), progress or (lambda phase, done, total: None))


def _facts(part: ClientLength, folder: Path, any_ring: bool) -> CircuitNeeds:
    if part.circuit is None:
        remedy = "compile a model that was distilled with plan he"
        raise CkksError(f"{folder}: is not compiled for encrypted queries; {remedy}")
    return facts_from(part.circuit.facts.to_json(), secure=not any_ring)


def _ends(part: ClientLength) -> Ends:
    assert part.circuit is not None
    assert part.circuit.ends is not None
    return part.circuit.ends
