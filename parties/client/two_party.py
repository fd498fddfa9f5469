"""Protocol beaver: this process is the data's owner in a session with a server and a dealer, or with two servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.artifacts import ClientLength, ClientPart
from ...models.compile import Compiled
from ...models.generation.rows import Pass
from ...protocols.channel import Channel
from ...protocols.errors import PeerError
from ..certificates.contexts import client_context
from ..config import Settings
from ..reports.report import two_party_report
from ..session.cache import MaskedCache
from ..session.client import ClientParty, UseSpool
from ..session.compute_slots import LimitReached
from ..session.helper.owner import OwnerParty, ask_two_servers
from ..session.meeting import meet, my_hello, new_session, seed_dealer, tell
from ..session.messages import PartRun
from ..session.online import Progress
from ..session.passes import OnPass, passes
from ..session.spool import Spool, SpoolError
from .session import LOST, PartyAddresses, Reply, Session


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
        party: ClientParty | OwnerParty,
        setup_s: float,
        progress: Progress | None = None,
    ) -> None:
        self.part, self.plan, self.party, self.progress = part, plan, party, progress
        self.program, self.open = party.program, True
        self.setup_s, self.setup_bytes = setup_s, party.setup_bytes

    def passes(self, on_pass: OnPass | None = None) -> Pass:
        return passes(self.party, self.part.parts, on_pass, self.progress)

    def prepare(self, part_run: PartRun | None = None) -> None:
        """Live correlations; those of a spool are there, so nothing is made for a query that may take them. A session
        that is lost is the next query's matter."""
        if part_run is None and getattr(self.party, "spool", None) is not None:
            return
        with suppress(PeerError):
            self.party.announce(part_run or PartRun())

    def lost(self, error: BaseException) -> bool:
        if isinstance(error, SpoolError):  # the session lives on, and so do other correlations
            return not (isinstance(self.party, ClientParty) and self.party.use_spool == "only")
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
    spool: Spool | None = None,
    use_spool: UseSpool = "auto",
    shaped: Callable[[Channel], Channel] = lambda channel: channel,
) -> tuple[ClientParty | OwnerParty, float]:
    """Dial the others, and open a session: this side's end, and the seconds that it took. `cache`: a folder for masked
    weights. `spool`, `use_spool`: as of ClientParty. `shaped`: FOR TESTS, wraps the channel to the server
    (transport/shaping.py).

    Errors: PeerError, SlotsBusy; whoever was met by then has been told.
    """

    def waiting(message: dict) -> None:
        if isinstance(place := message.get("queued"), int):
            progress("queue", 0, place + 1)

    started = time.perf_counter()
    timeout, shared = settings.session.timeout, settings.shared_hash()
    context, server = client_context(parties.certificates(), "client"), parties.address("server")
    if settings.session.topology == "helper":
        helper = parties.address("helper")
        owner = ask_two_servers(part.program, context, server, helper, timeout, config=shared, waiting=waiting)
        return owner, time.perf_counter() - started
    mine = my_hello(part.program, "client", new_session(), config=shared)
    channel = meet(server, context, "server", mine, timeout)
    try:
        party = ClientParty(
            part.program,
            part.constants,
            shaped(channel),
            partial(seed_dealer, context, parties.address("dealer"), mine, timeout),
            session=mine.session,
            cache=None if cache is None else MaskedCache(cache, client.folder),
            spool=spool,
            use_spool=use_spool,
            waiting=waiting,
        )
        party.set_up(progress)
    except PeerError as error:
        tell([channel], error)
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
