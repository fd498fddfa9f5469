"""Protocol ckks: queries that leave as ciphertexts, over HTTPS, to a server that computes on them without being able to
read. The server keeps evaluation keys for each program, by a name that it gives them; the secret key stays here."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ...cores import cores
from ...models.artifacts import ClientLength, ClientPart, load_client, save
from ...models.artifacts.writing import text_length
from ...models.compile import Compiled
from ...models.encrypted import circuit_for, decode_real, real_values
from ...protocols.channel import Meter
from ...protocols.ckks.circuit import Ends
from ...protocols.ckks.facts import CircuitNeeds, facts_from
from ...protocols.ckks.frames import pack, unpack
from ...protocols.ckks.keys import ClientKeys
from ...protocols.ckks.parameters import CkksError
from ...protocols.errors import BlindformerError, PeerDisagrees, PeerError, PeerGone, PeerTimeout
from ..certificates.tls_folder import CertificateError, client_context, state_of, write
from ..config import Address
from ..launch.processes import LocalServices
from ..reports.report import encrypted_report, requests_in_words
from ..session.compute_slots import SlotsBusy
from ..session.online import Answer, Progress, Timings, rss_mb
from .http import SERVER, Api, KeysGone, refusal
from .local import OwnServices, settings_of
from .session import ClientError, PartyAddresses, Reply, Session


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
        self._api: Api | None = None
        self._seen: object = None  # the state of the certificate's files when they were read

    def api(self) -> Api:
        """The server, with the certificate as its files are now. Errors: PeerDisagrees if it serves something else."""
        folder, address_of = self._parties.reached()
        address = address_of(SERVER)
        if self._api is not None and self._api.address != address:  # a server of this machine that was started again
            self._api = None
        seen, self._seen = self._seen, state_of(folder, "client")
        if self._api is not None:
            if seen != self._seen:
                with suppress(CertificateError):  # the certificate of before may be good still
                    self._api.use(client_context(folder, "client"))
            return self._api
        api = Api(address, client_context(folder, "client"), self._parties.settings.session.timeout)
        served = api.ask("GET", "/v1/models").get("models", [])
        with suppress(KeyError, TypeError, AttributeError):
            there = [facts_from(item["facts"], secure=False) for item in served]
            if all(facts in there for facts in self.facts.values()):
                self._api = api
                return api
        what = "serves another program or other parameters than this folder has"
        raise PeerDisagrees(SERVER, what, "get its client's folder")

    def keys_for(self, part: ClientLength, progress: Progress) -> Keyed:
        """Those of before, if the server has them still; else new ones, which are sent."""
        if self._api is None:
            progress("connect", 0, 1)
        facts, api = self.facts[part.program.hash()], self.api()
        kept = self.keyed.get(facts.program) or self._kept(part, facts, api)
        if kept is not None:
            self.keyed[facts.program] = kept  # a server that is busy, or away, has not forgotten them
            with suppress(KeysGone):
                api.ask("GET", f"/v1/keys/{kept.name}")
                return kept
        keyed = self.keyed[facts.program] = self._new(part, facts, api, progress)
        return keyed

    def close(self) -> None:
        """And let the server forget keys that are not kept."""
        if self._api is not None and self._folder is None:
            for keyed in self.keyed.values():
                with suppress(PeerError, SlotsBusy):
                    self._api.ask("DELETE", f"/v1/keys/{keyed.name}")
        self.keyed.clear()

    def _kept(self, part: ClientLength, facts: CircuitNeeds, api: Api) -> Keyed | None:
        """Keys of an earlier client, if they are on this disk."""
        kept = None if self._folder is None else KeptKeys(self._folder, facts, api.address).load()
        return None if kept is None else Keyed(ClientKeys(_ends(part), facts.parameters, kept[0]), kept[1])

    def _new(self, part: ClientLength, facts: CircuitNeeds, api: Api, progress: Progress) -> Keyed:
        """Make keys and send the server those that it computes with."""
        started, before = time.perf_counter(), api.sent
        keys = ClientKeys(_ends(part), facts.parameters)
        name = str(api.ask("POST", f"/v1/models/{facts.program}/keys").get("keys", ""))
        if not (len(name) == 32 and name.isalnum() and name.isascii()):
            raise PeerGone(SERVER, "gave keys no name", "check that it is a Blindformer server")
        api.ask("PUT", f"/v1/keys/{name}", pack("keys", facts.program, _sealed(keys, facts, progress)))
        if self._folder is not None:
            KeptKeys(self._folder, facts, api.address).store(keys.secret_bytes(), name)
        return Keyed(keys, name, time.perf_counter() - started, api.sent - before)


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
        facts, api, keyed = self.facts, self.server.api(), self.keyed
        started, before = time.perf_counter(), Meter(sent=api.sent, received=api.received)
        body = pack("request", facts.program, keyed.keys.sealed_request(values))
        reply: bytes | None = None
        for line in api.lines(f"/v1/keys/{keyed.name}/queries", body):
            if "error" in line:
                raise refusal(int(line.get("status", 500)), str(line["error"]))
            if isinstance(done := line.get("done"), int) and 0 < done <= len(facts.steps):
                self.progress("online", done, len(facts.steps))
                if self.server.layer:
                    self.server.layer(facts.steps[min(done, len(facts.steps) - 1)])
            if "answer" in line:
                reply = _unwrapped(line["answer"])
        if reply is None:
            raise PeerGone(SERVER, "ended without an answer", "ask again; see its log")
        timings = Timings(
            online_s=time.perf_counter() - started,
            rounds=1,
            online=Meter(sent=api.sent - before.sent, received=api.received - before.received),
            peak_rss_mb=rss_mb(),
        )
        return Answer({}, timings), unpack("reply", facts.program, facts.reply_items(), reply)


def words_of_local(any_ring: bool = False) -> list[str]:
    """For the command of a server of this machine, which has one client."""
    return ["--workers", "1", "--query-processes", str(cores()), *(["--any-ring"] if any_ring else [])]


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
        self.threads = threads
        self.services = LocalServices(source, timeout, self.protocol, words_of_local(any_ring))
        with self.working():
            part, settings = load_client(self.services.folder), settings_of(self.services, timeout, self.protocol)
            server = EncryptedServer(part, PartyAddresses(settings), None, any_ring)
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


def _unwrapped(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise PeerGone(SERVER, "sent an answer that is no base64", "check that it is a Blindformer server") from None
