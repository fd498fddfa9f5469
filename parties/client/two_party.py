"""Protocol beaver: this process is the data's owner in a session with a server and a dealer, or with two servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ...models.artifacts import ClientLength, ClientPart, adapter_place, load_client
from ...models.compile import Compiled
from ...models.generation.rows import Pass
from ...protocols.channel import Channel
from ...protocols.devices import find_device
from ...protocols.errors import PeerError
from ..certificates.tls_folder import client_context
from ..config import Settings, UseStore
from ..receipts.statement import Signer
from ..reports.report import two_party_report
from ..session.audits import client_kind
from ..session.helper_topology import ask_two_servers
from ..session.messages import LimitReached, PartRun
from ..session.online import OnPass, Progress, QueryingParty, passes
from ..session.pair_corrections import check_pair
from ..session.preprocessing_store import PreprocessingStore, StoreError
from ..session.rendezvous_two import agreed_program, my_hello, seed_dealer
from ..session.two_party_client import ClientParty
from ..session.weight_transfer import MaskedCache
from ..transport.handshake import abort, meet, new_session
from .precompute import OpenStore
from .session import LOST, ClientError, PartyAddresses, Reply, Session, telling


class TwoPartySession(Session):
    """`party`: this process's end, which has met the others (`meet_parties`). Several queries follow each other.

    A lost session gave no answer: its last round had not come. What the server learned of it is uniform, and a new
    session draws fresh masks.
    """

    protocol = "beaver"
    report = two_party_report

    def __init__(
        self,
        part: ClientLength | Compiled,
        plan: str,
        party: QueryingParty,
        setup_s: float,
        progress: Progress | None = None,
    ) -> None:
        self.part, self.plan, self.party, self.progress = part, plan, party, progress
        self.program, self.open = party.program, True
        self.setup_s, self.setup_bytes = setup_s, party.setup_bytes

    def passes(self, on_pass: OnPass | None = None) -> Pass:
        return passes(self.party, self.part.parts, on_pass, self.progress)

    def prepare(self, part_run: PartRun | None = None) -> None:
        """Preprocess the next query, unless a store does. A lost session is the next query's error."""
        if part_run is None and getattr(self.party, "store", None) is not None:
            return
        with suppress(PeerError):
            self.party.announce(part_run or PartRun())

    def lost(self, error: BaseException) -> bool:
        if isinstance(error, StoreError):  # the session lives on, and so do other correlations
            return not (isinstance(self.party, ClientParty) and self.party.use_store == "only")
        if isinstance(error, LimitReached):  # the session lives on; no other has more
            return False
        self.close()
        return isinstance(error, LOST)

    def close(self) -> None:
        was_open, self.open = self.open, False
        if was_open:
            with suppress(PeerError):
                self.party.close()

    def _ask(self, inputs: Mapping[str, Tensor], more: bool) -> Reply:
        sources = self.part.encode_inputs(inputs)  # wrong inputs are nobody else's matter
        with self.working():
            answer = self.party.query(sources, self.progress, more)
        return self._reply(answer)


def meet_parties(
    settings: Settings,
    parties: PartyAddresses,
    client: ClientPart,
    part: ClientLength,
    progress: Progress,
    *,
    cache: Path | None = None,
    store: PreprocessingStore | None = None,
    use_store: UseStore = "auto",
    shaped: Callable[[Channel], Channel] = lambda channel: channel,
) -> tuple[QueryingParty, float]:
    """Dial the others, and open a session: this side's end, and the seconds that it took. `cache`: a folder for masked
    weights. `store`, `use_store`: as of ClientParty. `shaped`: FOR TESTS, wraps the channel to the server
    (transport/shaping.py).

    Errors: PeerError, SlotsBusy; whoever was met by then has been told.
    """
    started = time.perf_counter()
    timeout, shared, waiting = settings.session.timeout, settings.shared_hash(), telling(progress)
    certificates, address = parties.reached()
    context, server = client_context(certificates, "client"), address("server")
    if settings.session.topology == "helper":
        helper = address("helper")
        owner = ask_two_servers(part.program, context, server, helper, timeout, config=shared, waiting=waiting)
        owner.signer = Signer(certificates, "client")
        return owner, time.perf_counter() - started
    program, device = agreed_program(part.program, settings.session), find_device(settings.client.device)
    mine = my_hello(program, "client", new_session(), config=shared, topology=settings.session.topology)
    leave_seed = None
    if settings.session.topology == "pair":
        check_pair(program, device)
    else:
        leave_seed = partial(seed_dealer, context, address("dealer"), mine, timeout)
    channel = meet(server, context, "server", mine, timeout)
    try:
        party = client_kind(program)(
            program,
            part.constants,
            shaped(channel),
            leave_seed,
            session=mine.session,
            cache=None if cache is None else MaskedCache(cache, client.folder),
            store=store,
            use_store=use_store,
            waiting=waiting,
            commitment=settings.client.commitment,
            device=device,
        )
        party.signer = Signer(certificates, "client")
        party.set_up(progress)
    except PeerError as error:
        abort([channel], error)
        raise
    except BaseException:
        channel.close()
        raise
    return party, time.perf_counter() - started


def open_session(
    settings: Settings,
    parties: PartyAddresses,
    client: ClientPart,
    part: ClientLength,
    progress: Progress,
    **options: Any,
) -> TwoPartySession:
    """With the parties of a deployment. `options`: those of `meet_parties`."""
    progress("connect", 0, 1)
    party, seconds = meet_parties(settings, parties, client, part, progress, **options)
    progress("connect", 1, 1)
    return TwoPartySession(part, client.about["plan"], party, seconds, progress)


def storing(settings: Settings, length: int | None, own_dealer: bool) -> tuple[int, list[OpenStore]]:
    """As `precompute` takes it: queries of one compiled length (None: the only one)."""
    if own_dealer:
        raise ClientError("dealer: a client deals by itself with protocol delegated alone; give host:port")
    if settings.session.topology == "helper":
        raise StoreError("store", "with a helper, correlations are live; leave topology helper out to make them ahead")
    part = load_client(adapter_place(settings.client.folder, settings.client.adapter))
    if part.in_passes:
        what = "conversations" if part.talks else "answers token by token"
        raise ClientError(f"{part.folder}: is compiled for {what}, whose correlations are made as they go on")
    chosen = part.for_length(length)

    def opened(progress: Progress) -> tuple[Session, Any]:
        assert settings.client.store is not None
        options: dict[str, Any] = {"cache": settings.client.cache, "store": PreprocessingStore(settings.client.store)}
        parties = PartyAddresses(settings)
        session = open_session(settings, parties, part, chosen, progress, use_store="off", **options)
        return session, cast(ClientParty, session.party).precompute

    return next(number for number, one in part.lengths.items() if one is chosen), [opened]
