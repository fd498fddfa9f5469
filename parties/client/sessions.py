"""Questions in sessions with the other parties: one session for each program that is asked, kept until `close`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from ...models.artifacts import ClientLength, ClientPart, Question, sources_of
from ...models.compile import decode_outputs
from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerGone, PeerTimeout
from ..certificates.contexts import client_context
from ..config import Settings
from ..reports.report import AnsweredQuery, two_party_report
from ..session.compute_slots import LimitReached
from ..session.helper_topology import ask_two_servers
from ..session.messages import PartRun
from ..session.online import Answer, Progress
from ..session.part_runs import QueryingParty
from ..session.rendezvous_two import abort, meet, my_hello, new_session, seed_dealer
from ..session.spool import Spool, SpoolError
from ..session.two_party_client import ClientParty, UseSpool
from ..session.weight_transfer import MaskedCache
from .transport import Reply, Transport

LOST = (PeerGone, PeerTimeout)  # the session is lost, and nothing says that another would be, too


@dataclass
class OpenSession:
    """The data owner's end of it, and the seconds that it took to meet the others and to get the masked weights."""

    party: QueryingParty
    setup_s: float


@dataclass(kw_only=True)
class SessionReply(Reply):
    """Ring integers, put together from shares here."""

    part: ClientLength
    answer: Answer

    def outputs(self, place: int) -> dict[str, Tensor]:
        rows = slice(place, place + 1) if self.part.texts > 1 else slice(None)
        return decode_outputs(self.part.program, {name: value[rows] for name, value in self.answer.outputs.items()})


class SessionTransport(Transport):
    """Opens, keeps and drops sessions. They answer one query at a time.

    A lost session gave no answer: its last round had not come. What the server learned of it is uniform, and a new
    session draws fresh masks.
    """

    def __init__(
        self,
        settings: Settings,
        part: ClientPart,
        *,
        local: bool = False,
        cache: Path | None = None,
        use_spool: UseSpool = "auto",
        progress: Progress | None = None,
        shaped: Callable[[Channel], Channel] = lambda channel: channel,
    ) -> None:
        """`shaped`: FOR TESTS, wraps the channel to the server (transport/shaping.py)."""
        super().__init__(settings, part, () if local else None, progress)
        self.turn, self._shaped = threading.Lock(), shaped
        self.cache = cache
        self.use_spool: UseSpool = use_spool
        self.spool = None if settings.client.spool is None else Spool(settings.client.spool)
        self._open: dict[str, OpenSession] = {}

    def per_request(self, part: ClientLength) -> int:
        return part.texts

    def connect(self, part: ClientLength, name: str = "") -> OpenSession:
        """`name`: of a conversation, whose session keeps its state and nobody else's."""
        key = part.program.hash() + name
        if key not in self._open:
            self.tell("connect", 0, 1)
            self._open[key] = self._meet(part)
            self.tell("connect", 1, 1)
        return self._open[key]

    def is_open(self, part: ClientLength, name: str) -> bool:
        return part.program.hash() + name in self._open

    def ask(self, questions: list[Question], more: bool) -> SessionReply:
        part = questions[0].part
        opened = self.connect(part)
        answer = opened.party.query(sources_of(questions), self.progress, more)
        query = AnsweredQuery(
            opened.party.program,
            self.part.about["plan"],
            answer.timings,
            answer.others,
            opened.setup_s,
            opened.party.setup_bytes,
        )
        return SessionReply(two_party_report(query), part=part, answer=answer)

    def lost(self, part: ClientLength, error: BaseException, name: str = "") -> bool:
        if isinstance(error, SpoolError):  # the session lives on, and so do other correlations
            return self.use_spool != "only"
        if isinstance(error, LimitReached):  # the session lives on; no other has more
            return False
        self._end(part.program.hash() + name)
        return isinstance(error, LOST)

    def prepare(self, part: ClientLength) -> None:
        """Live correlations, in a session that is open; those of a spool are there."""
        if self.spool is None:
            with self.turn:
                self.announce(part, PartRun())

    def announce(self, part: ClientLength, part_run: PartRun, name: str = "") -> None:
        """What the next query most likely runs. A session that is lost is the next query's matter."""
        if self.is_open(part, name):
            with suppress(PeerError):
                self.connect(part, name).party.announce(part_run)

    def make_room(self) -> bool:
        """Close a session with another program: a server bounds how many one client may have. None of a conversation,
        whose state would be lost."""
        if not self._open or self.part.talks:
            return False
        self._end(next(reversed(self._open)))
        return True

    def close(self) -> None:
        for key in list(self._open):
            self._end(key)
        super().close()

    def _end(self, key: str) -> None:
        opened = self._open.pop(key, None)
        if opened is not None:
            with suppress(PeerError):
                opened.party.close()

    def _meet(self, part: ClientLength) -> OpenSession:
        started = time.perf_counter()
        timeout, shared = self.settings.session.timeout, self.settings.shared_hash()
        context, server = client_context(self.certificates(), "client"), self.address("server")
        if self.settings.session.topology == "helper":
            helper, waiting = self.address("helper"), self._waiting
            owner = ask_two_servers(part.program, context, server, helper, timeout, config=shared, waiting=waiting)
            return OpenSession(owner, time.perf_counter() - started)
        mine = my_hello(part.program, "client", new_session(), config=shared)
        channel = meet(server, context, "server", mine, timeout)
        try:
            party = ClientParty(
                part.program,
                part.constants,
                self._shaped(channel),
                partial(seed_dealer, context, self.address("dealer"), mine, timeout),
                session=mine.session,
                cache=None if self.cache is None else MaskedCache(self.cache, self.part.folder),
                spool=self.spool,
                use_spool=self.use_spool,
                waiting=self._waiting,
            )
            party.set_up(self.progress)
        except PeerError as error:
            abort([channel], error)
            raise
        except BaseException:
            channel.close()
            raise
        return OpenSession(party, time.perf_counter() - started)

    def _waiting(self, message: dict) -> None:
        if isinstance(place := message.get("queued"), int):
            self.tell("queue", 0, place + 1)
