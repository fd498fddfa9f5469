"""Questions that leave as ciphertexts, over HTTPS, to a server that computes on them without being able to read.

The server keeps evaluation keys for each program, by a name that it gives them; the secret key never leaves this side.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...cores import cores
from ...models.artifacts import ClientLength, ClientPart, Question
from ...models.artifacts.client import sources_of
from ...models.encrypted import decode_real, real_values
from ...protocols.channel import Meter
from ...protocols.ckks.circuit import Ends
from ...protocols.ckks.facts import CircuitNeeds, facts_from
from ...protocols.ckks.frames import pack, unpack
from ...protocols.ckks.keys import ClientKeys
from ...protocols.ckks.parameters import CkksError
from ...protocols.errors import PeerDisagrees, PeerError, PeerGone, PeerTimeout
from ..certificates.authority import CertificateError, state_of
from ..certificates.contexts import client_context
from ..config import Settings
from ..reports.report import AnsweredQuery, encrypted_report
from ..session.compute_slots import SlotsBusy
from ..session.online import Progress, Timings, rss_mb
from .http import SERVER, Api, KeysGone, refusal
from .secret_keys import KeptKeys
from .transport import Reply, Transport


@dataclass
class Keyed:
    """Keys for one program, and their name at the server. `seconds`, `bytes`: what sending them took; 0 if kept."""

    keys: ClientKeys
    name: str
    seconds: float = 0.0
    bytes: int = 0
    doubted: bool = False
    """Whether to ask the server for them before they are used: it was lost, and may have forgotten them."""


@dataclass(kw_only=True)
class SealedReply(Reply):
    """Still encrypted, with the keys that open it."""

    part: ClientLength
    keys: ClientKeys
    sealed: Mapping[int, bytes]

    def __post_init__(self) -> None:
        self._opened: dict[str, Any] | None = None

    def outputs(self, place: int) -> dict[str, Tensor]:
        if self._opened is None:
            self._opened = self.keys.open_reply(self.sealed)
        rows = slice(place, place + 1) if self.part.texts > 1 else slice(None)
        return decode_real(self.part.program, {name: value[rows] for name, value in self._opened.items()})


class HttpsTransport(Transport):
    """Asks one server, in requests of several texts. Nothing is decrypted before the last request was answered."""

    at_once = False

    def __init__(
        self,
        settings: Settings,
        part: ClientPart,
        *,
        local: bool = False,
        keys: Path | None = None,
        progress: Progress | None = None,
        layer: Callable[[str], None] | None = None,
        any_ring: bool = False,
    ) -> None:
        """`keys`: a folder for secret keys. `layer`: called with the module that the server works on. Errors: CkksError
        for a folder that is not compiled for this, or (without `any_ring`) below 128 bits."""
        # There is one client of a local server, this one.
        options = ["--workers", "1", "--query-processes", str(cores()), *(["--any-ring"] if any_ring else [])]
        super().__init__(settings, part, options if local else None, progress)
        self.layer, self._folder = layer, keys
        self.keyed: dict[str, Keyed] = {}
        self._api: Api | None = None
        self._seen: object = None  # the state of the certificate's files when they were read
        self._facts = {one.program.hash(): _facts(one, part.folder, any_ring) for one in part.lengths.values()}

    def per_request(self, part: ClientLength) -> int:
        return part.texts

    def connect(self, part: ClientLength) -> None:
        facts, api = self._facts[part.program.hash()], self.api()
        keyed = self.keyed.get(facts.program)
        if keyed is not None and keyed.doubted:
            try:
                api.ask("GET", f"/v1/keys/{keyed.name}")
                keyed.doubted = False
            except KeysGone:
                keyed = None
        if keyed is None:
            self.keyed[facts.program] = self._kept_keys(part, facts, api) or self._new_keys(part, facts, api)

    def ask(self, questions: list[Question], more: bool) -> SealedReply:
        part = questions[0].part
        facts, api = self._facts[part.program.hash()], self.api()
        keyed = self.keyed[facts.program]
        started, before = time.perf_counter(), Meter(sent=api.sent, received=api.received)
        values = real_values(part.program, sources_of(questions))
        body = pack("request", facts.program, keyed.keys.sealed_request(values))
        answer: bytes | None = None
        for line in api.lines(f"/v1/keys/{keyed.name}/queries", body):
            if "error" in line:
                raise refusal(int(line.get("status", 500)), str(line["error"]))
            if isinstance(done := line.get("done"), int) and 0 < done <= len(facts.steps):
                self.tell("online", done, len(facts.steps))
                if self.layer:
                    self.layer(facts.steps[min(done, len(facts.steps) - 1)])
            if "answer" in line:
                answer = _unwrapped(line["answer"])
        if answer is None:
            raise PeerGone(SERVER, "ended without an answer", "ask again; see its log")
        timings = Timings(
            online_s=time.perf_counter() - started,
            rounds=1,
            online=Meter(sent=api.sent - before.sent, received=api.received - before.received),
            peak_rss_mb=rss_mb(),
        )
        query = AnsweredQuery(part.program, self.part.about["plan"], timings, {}, keyed.seconds, keyed.bytes)
        sealed = unpack("reply", facts.program, facts.reply_items(), answer)
        return SealedReply(encrypted_report(query), part=part, keys=keyed.keys, sealed=sealed)

    def lost(self, part: ClientLength, error: BaseException) -> bool:
        program = part.program.hash()
        if isinstance(error, KeysGone):
            self.keyed.pop(program, None)
            return True
        lost = isinstance(error, PeerGone | PeerTimeout)
        if lost and program in self.keyed:
            self.keyed[program].doubted = True
        return lost

    def close(self) -> None:
        """And let the server forget keys that are not kept."""
        if self._api is not None and self._folder is None:
            for keyed in self.keyed.values():
                with suppress(PeerError, SlotsBusy):
                    self._api.ask("DELETE", f"/v1/keys/{keyed.name}")
        self.keyed.clear()
        super().close()

    def api(self) -> Api:
        """The server, with the certificate as its files are now. Errors: PeerDisagrees if it serves something else."""
        if self._api is None:
            self.tell("connect", 0, 1)
        folder, address = self.certificates(), self.address(SERVER)
        if self._api is not None and self._api.address != address:  # a server of this machine that was started again
            self._api = None
        seen, self._seen = self._seen, state_of(folder, "client")
        if self._api is not None:
            if seen != self._seen:
                with suppress(CertificateError):  # the certificate of before may be good still
                    self._api.use(client_context(folder, "client"))
            return self._api
        api = Api(address, client_context(folder, "client"), self.settings.session.timeout)
        served = api.ask("GET", "/v1/models").get("models", [])
        with suppress(KeyError, TypeError, AttributeError):
            there = [facts_from(item["facts"], secure=False) for item in served]
            if all(facts in there for facts in self._facts.values()):
                self._api = api
                return api
        what = "serves another program or other parameters than this folder has"
        raise PeerDisagrees(SERVER, what, "get its client's folder")

    def _kept_keys(self, part: ClientLength, facts: CircuitNeeds, api: Api) -> Keyed | None:
        """Keys of an earlier client, if they are on this disk and the server has them still."""
        found = None if self._folder is None else KeptKeys(self._folder, facts, api.address).load()
        if found is None:
            return None
        secret, name = found
        with suppress(KeysGone):
            api.ask("GET", f"/v1/keys/{name}")
            return Keyed(ClientKeys(_ends(part), facts.parameters, secret), name)
        return None

    def _new_keys(self, part: ClientLength, facts: CircuitNeeds, api: Api) -> Keyed:
        """Make keys and send the server those that it computes with."""
        started, before = time.perf_counter(), api.sent
        keys = ClientKeys(_ends(part), facts.parameters)
        name = str(api.ask("POST", f"/v1/models/{facts.program}/keys").get("keys", ""))
        if not (len(name) == 32 and name.isalnum() and name.isascii()):
            raise PeerGone(SERVER, "gave keys no name", "check that it is a Blindformer server")
        api.ask("PUT", f"/v1/keys/{name}", pack("keys", facts.program, self._told(keys, facts)))
        if self._folder is not None:
            KeptKeys(self._folder, facts, api.address).store(keys.secret_bytes(), name)
        return Keyed(keys, name, time.perf_counter() - started, api.sent - before)

    def _told(self, keys: ClientKeys, facts: CircuitNeeds) -> Iterator[bytes]:
        total = 1 + len(facts.elements)
        for number, sealed in enumerate(keys.sealed_evaluation()):
            self.tell("keys", number, total)
            yield sealed
        self.tell("keys", total, total)


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
