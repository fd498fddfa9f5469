"""Protocol delegated: this process runs a public model, and a server computes its linear layers on noise."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from ...models.delegated import is_delegated
from ...models.delegated.folder import load_part, save_delegated
from ...models.delegated.part import DelegatedPart
from ...models.delegated.rows import DelegatedRows
from ...models.delegated.running import Carrier, PaddedCarrier
from ...models.delegated.sequences import GroupCalls, read_memory
from ...models.generation.conversation import Conversation
from ...models.loading.truncation import Truncation
from ...models.lowering.structure import tensors_of
from ..certificates.tls_folder import client_context
from ..config import Settings, UseStore
from ..launch import LOCAL, LocalOptions
from ..receipts.receipt import VouchedSession
from ..receipts.statement import Signer
from ..reports.report import BUT_HEAD, MB, AnsweredQuery, Report, phases_in_words
from ..session.delegated_client import DelegatingClient
from ..session.delegation import ADVERSARY, PROTOCOL, PublicWeights
from ..session.messages import LimitReached
from ..session.online import Answer, OnPass, Progress, added
from ..session.preprocessing_store import PreprocessingStore, StoreError
from ..session.rendezvous_two import seed_dealer
from ..transport.handshake import make_hello, meet, new_session
from .base import BaseClient
from .local import OwnServices
from .precompute import OpenStore
from .session import LOST, ClientError, PartyAddresses, Reply, Session, client_settings, telling
from .sessions import HeadSessions, Sessions
from .two_party import open_session

WHO = "one server and an offline dealer that do not collude, answers checked"
OWN_WHO = "one server, and a dealer of this client's own, answers checked"


def who_learned(model: str, own_dealer: bool, received: str = "uniform numbers") -> dict[str, str]:
    """By party. `model`: its hash; `received`: what the server was sent."""
    dealer = "was told a seed and how many rows each layer had; learns nothing about the text or the answer"
    if own_dealer:
        dealer = "was this client: nobody else has the masks"
    return {
        "server": f"received {received}, and how many rows each layer had; learns nothing about the text or the answer",
        "dealer": dealer,
        "client": "holds the text, runs the model with the server's products, and checked each of them; it alone "
        "learns the answer",
        "released to the client": "all of the model: it is public",
        "public": "the model and its weights; how many rows each pass has, and when it comes",
        "proven": f"the products were those of model {model[:16]}",
    }


def delegated_report(query: AnsweredQuery) -> Report:
    """Bytes are the client's, both ways."""
    timings, others = query.timings, query.others
    received = f"{timings.online.sent / MB:.1f} MB of uniform numbers"
    learned = who_learned(query.program.hash(), bool(others.get("own_dealer")), received)
    return query.report(
        "delegated",
        learned,
        online_bytes=timings.online.sent + timings.online.received,
        sent_bytes=timings.online.sent,
        sent_head=timings.sent_head,
        peak_rss_mb={
            "client": timings.peak_rss_mb,
            **{role: others.get(f"{role}_peak_rss_mb", 0.0) for role in ("server", "dealer")},
        },
    )


class ServedSession(Session):
    """A session with server and dealer. One pass, or several, answer a query; a lost session gave no answer."""

    protocol = "delegated"
    report = delegated_report

    def __init__(
        self, part: DelegatedPart, party: DelegatingClient, setup_s: float, heads: HeadSessions | None = None
    ) -> None:
        """`heads`: those of a model with a private head."""
        self.part, self.party, self.setup_s, self.heads = part, party, setup_s, heads
        self.program: Any = part.model.manifest
        self._spent: list[Answer] = []
        self.on_pass: OnPass = lambda name, answer: None
        party.on_pass = self._note

    @property
    def open(self) -> bool:  # type: ignore[override]
        return self.party.open and (self.heads is None or self.heads.open)

    def all_vouched(self) -> list[VouchedSession]:
        return super().all_vouched() + ([] if self.heads is None else self.heads.vouched())

    def _stated(self) -> dict[str, Any]:
        released, adversary = "all of the model: it is public", ADVERSARY
        if self.heads is not None:
            released, adversary = BUT_HEAD, f"{ADVERSARY}; of its private head semi-honest ones"
        shown = {"released": [released], "revealed": ["all of its outputs"]}
        return {"model": self.program.model, "adversary": adversary, **shown}

    @property
    def wire_overhead_bytes(self) -> int:
        return self.party.server.meter.overhead

    @property
    def texts(self) -> int:
        return 1

    @property
    def carrier(self) -> Carrier:
        return PaddedCarrier(self.party) if self.part.pad else self.party

    @property
    def plan(self) -> str:  # type: ignore[override]
        return self.part.model.manifest.plan

    def report_of_passes(self) -> Report:
        """What the passes since the last report took together."""
        spent, self._spent = self._spent, []
        return self.report_of(added(spent))

    def _note(self, name: str, answer: Answer) -> None:
        self._spent.append(answer)
        self.on_pass(name, answer)

    def _ask(self, inputs: Mapping[str, Tensor], more: bool) -> Reply:
        self._spent.clear()
        runner, heads = self.part.runner, self.heads
        run = partial(runner.run, self.carrier, runner.module, **inputs)
        runner.steps(runner.module, (), inputs)  # rehearsed before, so that no head is asked about noise
        with self.working():
            output = run() if heads is None else heads.run(run)
        outputs = {name: value.float() for name, value in tensors_of(output).items()}
        answer = added(self._spent)
        answer.outputs = outputs
        reply = Reply(self.report_of(answer), answer, lambda rows: {n: value[rows] for n, value in outputs.items()})
        return reply if heads is None else heads.completed(reply)

    def lost(self, error: BaseException) -> bool:
        if isinstance(error, LimitReached | StoreError):  # the session lives on; no other has more
            return False
        self.close()
        return isinstance(error, LOST)

    def close(self) -> None:
        self.party.close()
        if self.heads is not None:
            self.heads.close()


def heads_of(
    settings: Settings, parties: PartyAddresses, part: DelegatedPart, progress: Progress, **options: Any
) -> HeadSessions | None:
    """The sessions of the part's private head, with the same parties. `options`: of `open_session`."""
    if part.head is None:
        return None
    opened = partial(open_session, settings, parties, part.head.part, **options)
    return HeadSessions(part.head, lambda one: opened(one, progress))


def open_served(
    settings: Settings, parties: PartyAddresses, part: DelegatedPart, _: object, progress: Progress, **options: Any
) -> ServedSession:
    """With the parties of a deployment. `options`: those of `meet_parties`. Errors: PeerError."""
    progress("connect", 0, 1)
    heads = heads_of(settings, parties, part, progress, cache=settings.client.cache)
    session = ServedSession(part, *meet_parties(settings, parties, part, progress, **options), heads)
    progress("connect", 1, 1)
    return session


def meet_parties(
    settings: Settings,
    parties: PartyAddresses,
    part: DelegatedPart,
    progress: Progress,
    shaped: Callable[[Any], Any] = lambda channel: channel,
    own_dealer: bool = False,
    **options: Any,
) -> tuple[DelegatingClient, float]:
    """Dial server and dealer: this side's end, and the seconds that it took. `shaped`: FOR TESTS, as of beaver's.
    `own_dealer`: this side makes corrections itself; `options`: `store`, `use_store` of DelegatingClient."""
    started = time.perf_counter()
    groups = part.groups  # a pass over the weights, once a process, before anybody waits
    certificates, address = parties.reached()
    context, timeout = client_context(certificates, "client"), settings.session.timeout
    manifest, session, shared = part.model.manifest, new_session(), settings.shared_hash()
    mine = make_hello("client", PROTOCOL, manifest.digest, session, shared, ring=manifest.ring)
    channel = meet(address("server"), context, "server", mine, timeout)

    try:
        seed = partial(seed_dealer, context, address("dealer"), mine, timeout)
        options |= {"session": session, "dealt_by": str(address("dealer")), "waiting": telling(progress)}
        own = PublicWeights(manifest, part.model.integers) if own_dealer else None
        party = DelegatingClient(manifest, groups, shaped(channel), seed, own=own, **options)
        party.signer = Signer(certificates, "client")
        party.set_up()
    except BaseException:
        channel.close()
        raise
    return party, time.perf_counter() - started


class DelegatedSession(OwnServices, ServedSession):
    """A session with a dealer and a server on this machine. `part`: DIR that holds all parts; or a loaded model's part,
    whose integers are written for the two.

    Errors: ArtifactError; LaunchError, which ends the session.
    """

    open = ServedSession.open

    def __init__(
        self,
        part: DelegatedPart | Path | str,
        *,
        threads: int = 1,
        timeout: float = 120,
        progress: Progress | None = None,
        pin: bool = False,
        network: Any = None,
    ) -> None:
        """`pin`, `network`: as of LocalParties."""
        if not isinstance(part, DelegatedPart):
            part = load_part(part)
        source: Any = partial(write_parts, part)
        if is_delegated(part.folder):  # DIR/client, which may come with a head
            source = part.folder.parent
        parties = self._start_services(source, timeout, threads, pin=pin, network=network)
        tell = progress or (lambda phase, done, total: None)
        with self.working():
            party, seconds = meet_parties(parties.settings, parties, part, tell, self.local.shaped)
        heads = heads_of(parties.settings, parties, part, tell, shaped=self.local.shaped)
        ServedSession.__init__(self, part, party, seconds, heads)

    def _end(self, seconds: float) -> None:
        if hasattr(self, "party"):
            ServedSession.close(self)
        self.services.close(seconds)


def storing(settings: Settings, length: int | None, own_dealer: bool) -> tuple[int, list[OpenStore]]:
    """As `precompute` takes it: passes of texts of a length, or of so many tokens of a conversation. Each session
    stores those of one sequence."""
    part, store = part_of_client(settings), bound_store(settings)

    def opened(sequence: GroupCalls, progress: Progress) -> tuple[Session, Any]:
        options = {"store": store, "own_dealer": own_dealer}
        session = open_served(settings, PartyAddresses(settings), part, None, progress, **options)
        return session, partial(session.party.precompute, sequence)

    number = length or int(part.talks)
    return number, [partial(opened, sequence) for sequence in part.sequences(length)]


def part_of_client(settings: Settings) -> DelegatedPart:
    """Errors: ArtifactError, LoadError, DelegationError."""
    mine = settings.client
    part = load_part(mine.folder, mine.adapter, read_memory(mine.memory))
    part.pad = mine.pad
    return part


def bound_store(settings: Settings) -> PreprocessingStore | None:
    """Whose masks are good in its own folder alone, for the server may lie about its own."""
    return None if settings.client.store is None else PreprocessingStore(settings.client.store, bound=True)


def write_parts(part: DelegatedPart, folder: Path) -> Path:
    """What server and dealer hold."""
    nowhere: Any = None
    return save_delegated(nowhere, part, folder, ("server", "dealer"))


class DelegatedPasses:
    """The passes of one conversation, each in a session of its own, which is replaced when it is lost: keys and values
    are the client's, so nothing is read again."""

    def __init__(self, sessions: Sessions, part: DelegatedPart, on_pass: OnPass | None) -> None:
        if part.chat is None:
            raise ClientError(f"{part.folder}: answers whole texts, and does not talk")
        self.sessions, self.part, self.on_pass = sessions, part, on_pass
        self._name, self._any = f" {secrets.token_hex(8)}", part.for_length()
        rows: Any = DelegatedRows(part.runner, self._attempt, part.room, self._prepare, part.pad)  # as KVState
        self.conversation = Conversation(part.chat, rows)
        sessions.ask_with_retry(self._session, lambda: None, self._lost)

    def report_of(self, answers: Sequence[Answer]) -> Report:
        return self._session().report_of(added(answers))

    def _session(self) -> ServedSession:
        session: Any = self.sessions.get(self._any, self._name)
        session.on_pass = self.on_pass or (lambda name, answer: None)
        return session

    def _attempt(self, run: Callable[[Carrier], Any]) -> Any:
        result, retried = self.sessions.ask_with_retry(self._session, lambda: run(self._session().carrier), self._lost)
        self.conversation.retried = retried or self.conversation.retried
        return result

    def _prepare(self) -> None:
        self._session().party.prepare()

    def _lost(self, error: BaseException) -> bool:
        return self.sessions.lost(self._any, error, self._name)


class DelegatedClient(BaseClient):
    """A client for a public model whose linear layers a server computes on masked values.

        with bf.DelegatedClient("server.example:7443", dealer="dealer.example:7444", folder="public/client") as client:
            print(client("nobody reads this"))

    server         "host:port"; or "local": a dealer and a server on this machine
    dealer         "host:port"; or "local": this process, as `blindformer precompute --dealer local` does; needs `store`
    folder         DIR/client of `compile --weights public`; "local" needs DIR
    part           in place of a folder: a loaded model's part (models.delegated.part)
    adapter        folder of your own LoRA adapter; it stays in this process
    length         padded length in tokens (default: the shortest of 32, 64, 128 ... that fits)
    pad            hide sizes: rows of a pass are padded to a power of two, a conversation's passes to a multiple of 16
    client_memory  memory for layers that are computed here, such as "200MB"; saves rounds and bytes (default: none)
    store          folder of stored masks; `use_store`: "auto" (default), "only" or "off"

    The other arguments are those of `Client`. After a lost session, a query is repeated once with fresh masks.

    Raises ConfigError, ArtifactError, LoadError; queries raise InputError, PeerError, SlotsBusy and LimitReached.
    """

    protocol, makes_room = "delegated", True

    def __init__(
        self,
        server: str | None = None,
        *,
        dealer: str | None = None,
        folder: str | Path | None = None,
        part: DelegatedPart | None = None,
        adapter: str | Path | None = None,
        certificates: str | Path | None = None,
        config: str | Path | None = None,
        length: int | None = None,
        pad: bool | None = None,
        client_memory: str | None = None,
        truncate: Truncation | bool = "off",
        timeout: float | None = None,
        threads: int | None = None,
        wait: float | None = None,
        store: str | Path | None = None,
        use_store: UseStore | None = None,
        progress: Progress | None = None,
    ) -> None:
        local, self._own = server == LOCAL, dealer == LOCAL
        written = TemporaryDirectory(prefix="blindformer-") if local and part is not None else None
        if written is not None and part is not None:
            folder = write_parts(part, Path(written.name) / "delegated")
        settings = client_settings(
            config, protocol=self.protocol, server=None if local else server, dealer=None if self._own else dealer,
            folder=folder, certificates=certificates, timeout=timeout, wait=wait, store=store, adapter=adapter, pad=pad,
            client_memory=client_memory, use_store="only" if self._own else use_store,
        )  # fmt: skip
        if settings.client.use_store == "only" and settings.client.store is None:
            raise ClientError("store: masks that are made ahead, and no others, need a folder of them; give store")
        if local and (dealer or certificates):
            raise ClientError('"local" starts a dealer and a server itself: leave addresses and certificates out')
        if part is not None and (adapter or client_memory):
            raise ClientError("adapter, client_memory: are of a folder's model; make the part with them")
        part = part or part_of_client(settings)
        part.pad = settings.client.pad
        if part.head is not None and self._own:
            raise ClientError("dealer: a private head needs one that is not this side; give host:port")
        parties = PartyAddresses(settings, {} if local else None, LocalOptions(threads=threads or 1))
        kept = {"store": bound_store(settings), "use_store": settings.client.use_store, "own_dealer": self._own}
        opened = partial(open_served, settings, parties, part, **kept)
        super().__init__(settings, part, parties, opened, length=length, truncate=truncate, progress=progress)
        self.sessions.passes = DelegatedPasses
        if written is not None:
            self.on_close.callback(written.cleanup)

    def knock(self) -> None:
        self.parties.knock("server", *(() if self._own else ("dealer",)))

    def who_learned(self) -> dict[str, str]:
        return who_learned(next(iter(self.part.lengths.values())).program.hash(), self._own)

    @property
    def who(self) -> str:
        head = "" if self.part.head is None else "; its private head semi-honest"  # type: ignore[attr-defined]
        return f"{OWN_WHO if self._own else WHO}{head}   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return f"{'on average: ' if len(reports) > 1 else ''}{phases_in_words(reports)}"
