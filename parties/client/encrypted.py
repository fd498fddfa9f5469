"""`EncryptedClient`: questions that leave as ciphertexts, to a server that computes on them without being able to read.

client = bf.EncryptedClient("server.example:7443", folder="compiled/client", certificates="certs")
print(client("nobody reads this"))
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...models.artifacts import ClientLength, Question, load_client
from ...models.artifacts.client import sources_of
from ...models.compile import AnswerOutOfRange
from ...models.encrypted import decode_real, real_values
from ...protocols.channel import Meter
from ...protocols.ckks.facts import CircuitNeeds, facts_from
from ...protocols.ckks.frames import pack, unpack
from ...protocols.ckks.parameters import CkksError
from ...protocols.ckks.sealed import SealedError
from ...protocols.errors import BlindformerError, PeerDisagrees, PeerError, PeerGone, PeerTimeout
from ..certificates.authority import state_of
from ..certificates.development import CertificateError, client_context
from ..config import load_settings
from ..local.services import LOCAL, LocalServices
from ..reports.report import Report, encrypted_report, requests_in_words
from ..service.limits import cores
from ..session import Progress, Timings, rss_mb
from ..session.compute_slots import SlotsBusy
from .base import Asking, ClientError, Result
from .http import SERVER, Api, KeysGone, refusal
from .secret_keys import KeptKeys

REOPEN_SECONDS = 1.0


@dataclass
class Keyed:
    """Keys for one program, and their name at the server. `seconds`, `bytes`: what sending them took; 0 if kept."""

    keys: Any
    name: str
    seconds: float = 0.0
    bytes: int = 0


@dataclass
class Reply:
    """A request's answer, still encrypted, with the keys that open it. `retried`: as `Result.retried`."""

    keys: Any
    sealed: Mapping[int, bytes]
    report: Report
    retried: str = ""

    def open(self) -> dict[str, Any]:
        """What it decrypts to (models.encrypted.decode_real). Errors: SealedError."""
        return self.keys.open_reply(self.sealed)


class EncryptedClient(Asking):
    """The texts' owner. Keys are made when they are needed, and forgotten by both sides at `close`; or use `with`.

    server         "host:port"; or "local": a server on this machine, as a process of its own
    folder         what compile wrote with a plan of sums and products: DIR/client, or DIR (which "local" needs)
    certificates   the folder with ca.pem, client.pem and client.key
    config         a blindformer.toml; what is given here goes over it
    length         tokens to pad texts to (default: the least compiled length that fits)
    timeout        seconds that the server may be silent
    wait           seconds to go on asking a server that is busy, or that comes back
    keys           a folder to keep secret keys in, so that evaluation keys travel once (default: new ones each time)
    progress       called with (phase, done, total)
    layer          called with the name of the model's module that the server works on, as it gets on

    Several texts share a request, as many as the program takes.

    Errors: ConfigError, ArtifactError, CkksError; of queries: InputError, PeerError, Busy, LimitReached,
    AnswerOutOfRange.
    """

    protocol = "ckks"

    def __init__(
        self,
        server: str | None = None,
        *,
        folder: str | Path | None = None,
        certificates: str | Path | None = None,
        config: str | Path | None = None,
        length: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        keys: str | Path | None = None,
        progress: Progress | None = None,
        layer: Callable[[str], None] | None = None,
        any_ring: bool = False,
    ) -> None:
        """`any_ring`: FOR TESTS ALONE: parameters below 128 bits, too."""
        if find_spec("tenseal") is None:
            raise CkksError("protocol ckks: tenseal is missing; install blindformer[he]")
        local = server == LOCAL
        self.settings = load_settings(
            None if config is None else Path(config),
            **{
                "session.protocol": self.protocol,
                "parties.server.address": None if local else server,
                "session.timeout": None if timeout is None else float(timeout),
                "certificates.folder": None if certificates is None else Path(certificates),
                "client.folder": None if folder is None else Path(folder),
                "client.wait": None if wait is None else float(wait),
            },
        )
        if local and (certificates or keys):
            raise ClientError('"local" starts a server itself, with new keys: leave certificates and keys out')
        self.part = load_client(self.settings.client.folder)
        self.length, self.progress, self.layer, self.any_ring = length, progress, layer, any_ring
        if length is not None:
            self.part.for_length(length)
        for item in self.part.lengths.values():
            self._facts(item)
        self._key_folder = None if keys is None else Path(keys).expanduser()
        self._start_local, self._local = local, None
        self._api: Api | None = None
        self._keyed: dict[str, Keyed] = {}
        self._closed = False

    def _facts(self, part: ClientLength) -> CircuitNeeds:
        if part.circuit is None:
            raise CkksError(
                f"{self.part.folder}: is not compiled for encrypted queries; compile a model that was distilled with "
                "plan he"
            )
        return facts_from(part.circuit.facts.to_json(), secure=not self.any_ring)

    @property
    def who(self) -> str:
        degree = max(part.circuit.facts.parameters.degree for part in self.part.lengths.values() if part.circuit)
        return f"one server, which computes on ciphertexts   CKKS, N = {degree}, 128 bits   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return requests_in_words(reports)

    # --- asking ------------------------------------------------------------------------------------------------------
    def stream(self, items: Iterable[Any], *, top_k: int | None = None) -> Iterator[tuple[int, Result]]:
        """(index of the item, its result), grouped by length, once everything has been asked.

        All items are encoded before the first is asked, and no reply is decrypted before the last request was answered:
        what decrypts badly, and what is done about it, cannot show in what the server sees of these requests. An item
        that does not fit, and an answer that decrypts outside its range, is its own result's error; a server that stays
        busy that of all results of its request; an error that the next request would meet ends the requests, and is
        raised after the results that came before it.
        """
        chosen = list(items)
        questions, refused = self._encode_all(chosen)
        yield from refused
        done, replies, broken = 0, [], None
        for together in _requests(questions):
            if self.progress:
                self.progress("query", done, len(questions))
            try:
                replies.append((together, self.ask([questions[number] for number in together])))
            except SlotsBusy as busy:
                replies.append((together, busy))
            except BlindformerError as error:
                broken = error
                break
            done += len(together)
        for together, reply in replies:
            asked = [Result(chosen[number], length=questions[number].length) for number in together]
            self._read(reply, [questions[number] for number in together], asked, top_k)
            yield from zip(together, asked, strict=True)
        if broken is not None:
            raise broken
        if self.progress:
            self.progress("query", len(questions), len(questions))

    def close(self) -> None:
        """Let the server forget keys that are not kept, and end a local one. Safe to call twice."""
        self._closed = True
        if self._api is not None and self._key_folder is None:
            for keyed in self._keyed.values():
                with suppress(PeerError, SlotsBusy):
                    self._api.ask("DELETE", f"/v1/keys/{keyed.name}")
        self._keyed.clear()
        local, self._local = self._local, None
        if local is not None:
            local.close()

    # --- one request -------------------------------------------------------------------------------------------------
    def _read(
        self, reply: Reply | SlotsBusy, questions: list[Question], results: list[Result], top_k: int | None
    ) -> None:
        """Fill in what a reply decrypts to, or why there is nothing."""
        part = questions[0].part
        try:
            if isinstance(reply, SlotsBusy):
                raise reply
            decrypted = reply.open()
        except (SlotsBusy, SealedError) as error:
            for result in results:
                result.error = error
            return
        for place, (question, result) in enumerate(zip(questions, results, strict=True)):
            result.report, result.retried = reply.report, reply.retried
            mine = {n: value[place : place + 1] for n, value in decrypted.items()} if part.texts > 1 else decrypted
            try:
                result.outputs = decode_real(part.program, mine)
                result.value = self.part.read(question, result.outputs, top_k)
            except AnswerOutOfRange as error:  # never asked again by itself: that tells the server how it decrypts
                result.error = error

    def ask(self, questions: list[Question]) -> Reply:
        """The reply for all of these, in one request: at most two attempts, but for a server that is busy. A request
        that is sent again is encrypted anew."""
        if self._closed:
            raise ClientError("this client is closed; make a new one")
        deadline, retried = time.monotonic() + self.settings.client.wait, ""
        while True:
            try:
                return replace(self._once(questions), retried=retried)
            except SlotsBusy as busy:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if self.progress:
                    self.progress("busy", 0, 1)
                time.sleep(min(left, busy.retry_after * (1 + secrets.randbelow(200) / 1000)))
            except (KeysGone, PeerGone, PeerTimeout) as error:
                if retried:
                    raise
                retried = str(error)
                if isinstance(error, KeysGone):
                    self._keyed.pop(questions[0].part.program.hash(), None)
                else:
                    time.sleep(min(REOPEN_SECONDS, max(0.0, deadline - time.monotonic())))

    def _once(self, questions: list[Question]) -> Reply:
        part = questions[0].part
        facts, api = self._facts(part), self._server()
        keyed = self._keys(part, facts, api)
        started, before = time.perf_counter(), api.sent + api.received
        values = real_values(part, sources_of(questions))
        body = pack("request", facts.program, keyed.keys.sealed_request(values))
        answer: bytes | None = None
        for line in api.lines(f"/v1/keys/{keyed.name}/queries", body):
            if "error" in line:
                raise refusal(int(line.get("status", 500)), str(line["error"]))
            if isinstance(done := line.get("done"), int) and 0 < done <= len(facts.steps):
                if self.progress:
                    self.progress("online", done, len(facts.steps))
                if self.layer:
                    self.layer(facts.steps[min(done, len(facts.steps) - 1)])
            if "answer" in line:
                answer = _unwrapped(line["answer"])
        if answer is None:
            raise PeerGone(SERVER, "ended without an answer", "ask again; see its log")
        sealed = unpack("reply", facts.program, facts.reply_items(), answer)
        timings = Timings(
            online_s=time.perf_counter() - started,
            rounds=1,
            online=Meter(sent=api.sent + api.received - before),
            peak_rss_mb=rss_mb(),
        )
        report = encrypted_report(part.program, self.part.about["plan"], timings, {}, keyed.seconds, keyed.bytes)
        return Reply(keyed.keys, sealed, report)

    # --- the server, and keys ----------------------------------------------------------------------------------------
    def _server(self) -> Api:
        """Errors: PeerDisagrees for one that serves something else."""
        settings, timeout = self.settings, self.settings.session.timeout
        if self._api is not None:
            seen, self._seen = self._seen, state_of(self._folder, "client")
            if seen != self._seen:
                with suppress(CertificateError):  # the certificate of before may be good still
                    self._api.use(client_context(self._folder, "client"))
            return self._api
        if self.progress:
            self.progress("connect", 0, 1)
        if self._start_local:
            more = ["--workers", "1", "--query-processes", str(cores())]  # there is one client, this one
            more += ["--any-ring"] if self.any_ring else []
            self._local = LocalServices(settings.client.folder, timeout, self.protocol, more)
        self._folder = self._local.certificates if self._local else settings.certificates.folder
        self._seen = state_of(self._folder, "client")
        address = self._local.addresses[SERVER] if self._local else settings.address(SERVER)
        api = Api(address, client_context(self._folder, "client"), timeout)
        served = api.ask("GET", "/v1/models").get("models", [])
        with suppress(KeyError, TypeError, AttributeError):
            there = [facts_from(item["facts"], secure=False) for item in served]
            if all(self._facts(part) in there for part in self.part.lengths.values()):
                self._api = api
                return api
        raise PeerDisagrees(
            SERVER, "serves another program or other parameters than this folder has", "get its client's folder"
        )

    def _keys(self, part: ClientLength, facts: CircuitNeeds, api: Api) -> Keyed:
        """Keys that the server has, of earlier or made and sent now."""
        if facts.program in self._keyed:
            return self._keyed[facts.program]
        from ...protocols.ckks.keys import ClientKeys

        assert part.circuit is not None
        assert part.circuit.ends is not None
        ends = part.circuit.ends
        kept = None if self._key_folder is None else KeptKeys(self._key_folder, facts, api.address)
        secret, name = (kept.load() if kept else None) or (None, "")
        if secret is not None:
            with suppress(KeysGone):
                api.ask("GET", f"/v1/keys/{name}")
                self._keyed[facts.program] = Keyed(ClientKeys(ends, facts.parameters, secret), name)
                return self._keyed[facts.program]
        started, before = time.perf_counter(), api.sent
        keys = ClientKeys(ends, facts.parameters)
        name = str(api.ask("POST", f"/v1/models/{facts.program}/keys").get("keys", ""))
        if not (len(name) == 32 and name.isalnum() and name.isascii()):
            raise PeerGone(SERVER, "gave keys no name", "check that it is a Blindformer server")
        api.ask("PUT", f"/v1/keys/{name}", pack("keys", facts.program, self._told(keys, facts)))
        if kept is not None:
            kept.store(keys.secret_bytes(), name)
        self._keyed[facts.program] = Keyed(keys, name, time.perf_counter() - started, api.sent - before)
        return self._keyed[facts.program]

    def _told(self, keys: Any, facts: CircuitNeeds) -> Iterator[bytes]:
        total = 1 + len(facts.elements)
        for number, sealed in enumerate(keys.sealed_evaluation()):
            if self.progress:
                self.progress("keys", number, total)
            yield sealed
        if self.progress:
            self.progress("keys", total, total)


def _requests(questions: Mapping[int, Question]) -> Iterator[list[int]]:
    """Indices of the questions that go together: of one length, as many as its program takes."""
    for length in dict.fromkeys(question.length for question in questions.values()):
        numbers = [n for n, question in questions.items() if question.length == length]
        texts = questions[numbers[0]].part.texts
        yield from (numbers[start : start + texts] for start in range(0, len(numbers), texts))


def _unwrapped(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise PeerGone(SERVER, "sent an answer that is no base64", "check that it is a Blindformer server") from None
