"""Clients of models that never see the question: `Client` asks in sessions, `EncryptedClient` with ciphertexts.

client = bf.Client("server.example:7443", dealer="dealer.example:7444", folder="compiled/client")
result = client.query("nobody reads this")
print(result.value, result.report)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.artifacts import ClientLength, adapter_place, load_client
from ...models.artifacts.layout import ADAPTERS, find_part
from ...models.loading.truncation import Truncation
from ...protocols.ckks.parameters import CkksError
from ...protocols.devices import CPU, find_device
from ..config import Role, UseStore
from ..launch import LOCAL, NO_DEALER, LocalOptions
from ..registry import open_client
from ..reports.report import Report, phases_in_words, requests_in_words, who_learned_what
from ..session.online import Progress
from ..session.pair_corrections import check_pair
from ..session.preprocessing_store import PreprocessingStore
from ..session.rendezvous_two import agreed_program
from .base import BaseClient
from .local import LocalProtocol
from .session import ClientError, PartyAddresses, Session, client_settings
from .two_party import open_session

File = str | Path
WHO = {
    "dealer": "two parties and an offline dealer",
    "helper": "two servers that must not collude and an offline dealer",
    "pair": "two parties and no dealer",
}
DIALLED: dict[str, tuple[Role, ...]] = {
    "dealer": ("server", "dealer"),
    "helper": ("server", "helper"),
    "pair": ("server",),
}


class Client(BaseClient):
    """A client for private sessions, with a dealer or a second server. Use it with `with`, or call `close`.

        with bf.Client("server.example:7443", dealer="dealer.example:7444", folder="compiled/client") as client:
            print(client("nobody reads this"))

    server         "host:port"; or "local": a dealer and a server run on this machine
    dealer         "host:port"; or "none": this client and the server do without one, at far more work ahead
    helper         "host:port" of the second server, with topology "helper"
    folder         the compiled DIR/client; "local" needs DIR
    adapter        name of an adapter in the folder (default: the base)
    certificates   folder with ca.pem, client.pem and client.key
    config         a blindformer.toml; arguments override it
    topology       "dealer"; "helper": a second server does the client's part; "pair": no dealer
    audits         fraction of runs in which the server checks this client, as the server has it (default: none)
    commitment     the weight commitment that the server must have (default: any)
    device         where this client computes, and with "local" all parties: "cpu" (default), "cuda" or "cuda:1"
    length         padded length in tokens (default: the shortest that fits)
    truncate       longer texts: "off": refuse; "end" or True: cut the end; "start": cut the beginning; "windows": query
                   overlapping parts and merge their answers
    timeout        seconds that a party may be silent
    threads        of each party that "local" starts (default: 1)
    wait           seconds to retry a server that is busy or unreachable
    cache          folder for masked weights, so that they are sent once (default: the configuration's; "local": none)
    store          folder of the preprocessing store; `use_store`: "auto" (default), "only" or "off"
    progress       called with (phase, done, total)
    beside         a client of the same deployment, whose local services and tensors this one shares

    After a lost session, a query is repeated once with fresh correlated randomness; `Result.retried` gives the reason.

    Raises ConfigError, ArtifactError; queries raise InputError, PeerError, SlotsBusy, LimitReached, StoreError and
    AnswerOutOfRange.
    """

    protocol, makes_room = "beaver", True

    def __init__(
        self,
        server: str | None = None,
        *,
        dealer: str | None = None,
        helper: str | None = None,
        folder: File | None = None,
        adapter: str | None = None,
        certificates: File | None = None,
        config: File | None = None,
        topology: str | None = None,
        audits: float | None = None,
        commitment: str | None = None,
        device: str | None = None,
        length: int | None = None,
        truncate: Truncation | bool = "off",
        timeout: float | None = None,
        threads: int | None = None,
        wait: float | None = None,
        cache: File | None = None,
        store: File | None = None,
        use_store: UseStore | None = None,
        progress: Progress | None = None,
        beside: Client | None = None,
    ) -> None:
        local = server == LOCAL
        settings = client_settings(
            config, protocol=self.protocol, server=None if local else server, dealer=dealer, helper=helper,
            topology=topology, audits=audits, folder=folder, certificates=certificates, timeout=timeout, wait=wait,
            commitment=commitment, device=device, cache=cache, store=store, use_store=use_store, adapter=adapter,
        )  # fmt: skip
        session = settings.session
        if find_device(settings.client.device) != CPU and session.topology == "helper":
            raise ClientError("device: a client of topology helper only splits its data; leave it out (--device)")
        given = helper or certificates or dealer not in (None, NO_DEALER)
        if local and (session.topology == "helper" or session.audits or given):
            what = "starts a dealer and a server itself: leave addresses, certificates and audits out"
            raise ClientError(f'"local" {what}')
        if settings.client.commitment and session.topology == "helper":
            what = "the helper has the masked weights, not this side, which can compare nothing"
            raise ClientError(f"commitment: {what}; leave it out")
        if threads is not None and not local:
            raise ClientError('threads: are of parties that "local" starts, and others have their own; leave it out')
        _check_addresses(settings.session.topology, dealer, helper)
        if settings.client.use_store == "only" and settings.client.store is None:
            raise ClientError('use_store="only" needs a folder of correlations: give store')
        kept = None if local and cache is None else settings.client.cache
        ledger = None if settings.client.store is None else PreprocessingStore(settings.client.store)
        self.ends_parties = beside is None
        self.tensors = dict[str, Tensor]() if beside is None else beside.tensors  # by digest
        place = adapter_place(settings.client.folder, settings.client.adapter)
        part = load_client(place, session.topology != "helper", self.tensors)
        for one in part.lengths.values():  # what cannot be is refused before anybody is dialled
            if session.audits:
                agreed_program(one.program, session)
            if session.topology == "pair":
                check_pair(one.program, find_device(settings.client.device))
        options = LocalOptions(threads=threads or 1)
        parties = PartyAddresses(settings, {} if local else None, options) if beside is None else beside.parties
        opened = partial(
            open_session, settings, parties, part, cache=kept, store=ledger, use_store=settings.client.use_store
        )
        super().__init__(settings, part, parties, opened, length=length, truncate=truncate, progress=progress)

    @property
    def who(self) -> str:
        who = WHO[self.settings.session.topology]
        audits = f", audits {rate:g}" if (rate := self.settings.session.audits) else ""
        return f"{who}, semi-honest{audits}, 128 bits   TLS 1.3"

    def knock(self) -> None:
        self.parties.knock(*DIALLED[self.settings.session.topology])

    def who_learned(self) -> dict[str, str]:
        program = next(iter(self.part.lengths.values())).program
        return who_learned_what(
            agreed_program(program, self.settings.session), dealer=self.settings.session.topology != "pair"
        )

    def costs(self, reports: list[Report]) -> str:
        return f"{'on average: ' if len(reports) > 1 else ''}{phases_in_words(reports)}"


def _check_addresses(topology: str, dealer: str | None, helper: str | None) -> None:
    """Errors: ClientError if the only address that is given beside the server's is dialled in the other topology."""
    dialled, other = (helper, dealer) if topology == "helper" else (dealer, helper)
    if other and not dialled:
        given = "dealer" if topology == "helper" else "helper"
        what = f"{given}: a client of topology {topology} dials none"
        raise ClientError(f"{what}; give topology {given}, or the address of the {topology}")


def check_tenseal() -> None:
    """Errors: CkksError if it is missing."""
    if find_spec("tenseal") is None:
        raise CkksError("protocol ckks: tenseal is missing; run: pip install 'blindformer[he]'")


class EncryptedClient(BaseClient):
    """A client for encrypted queries (CKKS). Keys last until `close`, unless `keys` stores them.

        with bf.EncryptedClient("server.example:7443", folder="compiled/client", certificates="certs") as client:
            print(client("nobody reads this"))

    server    "host:port"; or "local": a server on this machine
    folder    the compiled DIR/client, of plan "he"; "local" needs DIR
    keys      folder for secret keys, so that evaluation keys are sent once (default: new keys each time)
    layer     called with the name of the module that the server computes

    The other arguments are those of `Client`. Texts share a request if the program has room. A lost request is
    encrypted again and repeated once. Replies are decrypted after the last one arrived.

    Raises ConfigError, ArtifactError, CkksError; queries raise InputError, PeerError, SlotsBusy, LimitReached and
    AnswerOutOfRange.
    """

    protocol, at_once, makes_room = "ckks", False, True

    def __init__(
        self,
        server: str | None = None,
        *,
        folder: File | None = None,
        certificates: File | None = None,
        config: File | None = None,
        length: int | None = None,
        truncate: Truncation | bool = "off",
        timeout: float | None = None,
        threads: int | None = None,
        wait: float | None = None,
        keys: File | None = None,
        progress: Progress | None = None,
        layer: Callable[[str], None] | None = None,
        any_ring: bool = False,
    ) -> None:
        """`any_ring`: FOR TESTS ALONE: parameters below 128 bits, too."""
        check_tenseal()
        from .encrypted import EncryptedServer, EncryptedSession, settings_of_local

        local = server == LOCAL
        settings = client_settings(
            config, protocol=self.protocol, server=None if local else server, folder=folder,
            certificates=certificates, timeout=timeout, wait=wait,
        )  # fmt: skip
        if local and (certificates or keys):
            raise ClientError('"local" starts a server itself, with new keys: leave certificates and keys out')
        kept = None if keys is None else Path(keys).expanduser()
        part = load_client(settings.client.folder)
        parties = PartyAddresses(
            settings, settings_of_local() if local else None, LocalOptions(threads=threads or 1, any_ring=any_ring)
        )
        self.server = EncryptedServer(part, parties, kept, any_ring)
        self.server.layer = layer
        opened = partial(EncryptedSession, self.server)
        super().__init__(settings, part, parties, opened, length=length, truncate=truncate, progress=progress)
        self.sessions.lane = lambda: nullcontext("")  # requests do not wait for each other

    def close(self) -> None:
        if not self.sessions.closed:
            self.server.close()
            self.sessions.close()
        super().close()

    @property
    def who(self) -> str:
        degree = max(part.circuit.facts.parameters.degree for part in self.part.lengths.values() if part.circuit)
        return f"one server, which computes on ciphertexts   CKKS, N = {degree}, 128 bits   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return requests_in_words(reports)


class LocalClient(BaseClient):
    """Asks parties that are started here, of a protocol that has no services; or use `with`.

    folder     what compile wrote: DIR, with the parts of both sides
    adapter    which of the adapters in the folder is asked (default: the base)
    length     tokens to pad texts to (default: the least compiled length that fits)
    truncate   a longer text: "off": it is refused; "end": its end is cut off (True), "start": its beginning;
               "windows": all of it is asked, in parts that overlap, and one answer is made of all
    timeout    seconds that a party may be silent
    threads    of each party
    device     where each computes
    progress   called with (phase, done, total)

    Errors: ArtifactError, LaunchError; of queries: InputError, AnswerOutOfRange.
    """

    def __init__(
        self,
        local: LocalProtocol,
        folder: File,
        *,
        adapter: str = "",
        length: int | None = None,
        truncate: Truncation | bool = "off",
        timeout: float = 120,
        threads: int = 1,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        local.check_device(device)
        self.protocol, self._local = local.entry.name, local
        part = load_client(adapter_place(folder, adapter), computing=False)  # each party reads its own part
        settings, whole = client_settings(None), find_part(folder, "client").parent
        whole = whole / ADAPTERS / adapter if adapter else whole
        find_part(adapter_place(folder, adapter), "server")  # it is read when a session is opened
        lengths = {one.program.hash(): number for number, one in part.lengths.items()}

        def opened(one: ClientLength, progress: Progress) -> Session:
            how: dict[str, Any] = {"timeout": timeout, "threads": threads, "progress": progress, "device": device}
            return local.open(whole, length=lengths[one.program.hash()], **how)

        parties = PartyAddresses(settings, local={})  # the session starts its own
        super().__init__(settings, part, parties, opened, length=length, truncate=truncate, progress=progress)

    @property
    def who(self) -> str:
        entry = self._local.entry
        who = entry.who.format(parties=self._local.parties.size)
        return who if entry.reference else f"{who}   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return self._local.costs(reports, "a text" if self.part.task.medium is None else self.part.task.medium.one)


def open_here(local: LocalProtocol, folder: File, server: str = LOCAL, **options: Any) -> BaseClient:
    """A client of a protocol's parties on this machine, or of services elsewhere (`server`). `options`: its own."""
    if local.entry.served:
        return open_client(local.entry.name, server, folder=folder, **options)
    return LocalClient(local, folder, **options)
