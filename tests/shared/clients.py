"""Clients as processes of their own, forked from one that has torch loaded already, so that each starts in an instant.

A client speaks to the services as `blindformer query` does. It tells what happens to it through a pipe: one dict an
event, with `at`, its monotonic clock, which is the same for all processes of a machine.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from blindformer.models.artifacts import load_client
from blindformer.models.compile import AnswerOutOfRange, decode_outputs
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.config import UseStore
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.online import Progress
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.parties.session.rendezvous_two import my_hello, seed_dealer
from blindformer.parties.session.two_party_client import ClientParty
from blindformer.parties.transport.handshake import meet, new_session
from blindformer.protocols.errors import BlindformerError

from .processes import PROCESSES
from .site import BenchQuery, Site, read_questions, right

torch.set_num_threads(1)

Work = Callable[["Asker", Connection], None]


class Asker:
    """In a client's process: what it asks with, and how it tells."""

    def __init__(self, site: Site, pipe: Connection, certificate: str) -> None:
        self.site, self._pipe = site, pipe
        self.part = load_client(site.compiled).for_length()
        self._context = client_context(site.certificates, "client", certificate)
        self.session = ""  # the last one that was begun
        self.asked = 0

    @cached_property
    def questions(self) -> list[BenchQuery]:
        return read_questions(self.site.questions)

    def say(self, event: str, **fields: Any) -> None:
        self._pipe.send({"event": event, "at": time.monotonic(), **fields})

    @contextmanager
    def connect(
        self, *, store: PreprocessingStore | None = None, use_store: UseStore = "auto"
    ) -> Iterator[ClientParty]:
        """A session, introduced and not set up. Errors: BlindformerError."""
        site, program = self.site, self.part.program
        session = self.session = new_session()
        mine = my_hello(program, "client", session, topology="dealer" if site.dealer else "pair")
        channel = meet(site.server, self._context, "server", mine, site.timeout)
        leave = partial(seed_dealer, self._context, site.dealer, mine, site.timeout) if site.dealer else None
        party = ClientParty(
            program,
            self.part.constants,
            channel,
            leave,
            session=session,
            store=store,
            use_store=use_store,
        )
        try:
            yield party
        finally:
            party.close()

    def ask(self, party: ClientParty, progress: Progress | None = None, more: bool = False) -> bool:
        """The next question in turn; whether its answer is right. Errors: BlindformerError."""
        question: BenchQuery = self.questions[self.asked % len(self.questions)]
        self.asked += 1
        answer = party.query(question.sources, progress, more)
        try:
            return right(question, decode_outputs(self.part.program, answer.outputs))
        except AnswerOutOfRange:
            return False


class ClientProcess:
    """A client at work, seen from outside. `events`: all that it has told so far."""

    def __init__(self, site: Site, work: Work, certificate: str = "client") -> None:
        """`work`: a function of a module, or a partial of one; it may receive from the pipe that it is given."""
        self._pipe, its = PROCESSES.Pipe()
        self.events: list[dict[str, Any]] = []
        self.process: BaseProcess = PROCESSES.Process(target=_run, args=(site, work, its, certificate), daemon=True)
        self.process.start()
        its.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def ending(self) -> dict[str, Any] | None:
        """Its last event: `end`, `error` (typed: kind, what) or `bug`. None while it works, or if it was killed."""
        last = self.events[-1] if self.events else None
        return last if last is not None and last["event"] in ("end", "error", "bug") else None

    def listen(self, seconds: float) -> dict[str, Any] | None:
        """The next event; None at the end, or if none comes in time."""
        try:
            if not self._pipe.poll(seconds):
                return None
            event = self._pipe.recv()
        except (EOFError, OSError):
            return None
        self.events.append(event)
        return event

    def wait_for(self, event: str, seconds: float) -> dict[str, Any] | None:
        """The next event of this name; None if the client ends before, or it does not come in time."""
        end = time.monotonic() + seconds
        while (message := self.listen(max(0.0, end - time.monotonic()))) is not None:
            if message["event"] == event:
                return message
        return None

    def tell(self, message: Any) -> None:
        self._pipe.send(message)

    def finish(self, seconds: float) -> bool:
        """Hear it out. Whether its process ended in time."""
        end = time.monotonic() + seconds
        while self.listen(max(0.0, end - time.monotonic())) is not None:
            pass
        self.process.join(max(0.1, end - time.monotonic()))
        return self.process.exitcode is not None

    def kill(self) -> None:
        self.process.kill()

    def close(self) -> None:
        if self.process.exitcode is None:
            self.process.kill()
        self.process.join()
        self._pipe.close()


def keep_asking(asker: Asker, pipe: Connection, pause: float = 0.0) -> None:
    """One session, one query after the other, each with the next one's correlations made meanwhile. It begins when it
    is told until when (by the monotonic clock), and may be told something else later. `pause`: seconds between two."""
    with asker.connect() as party:
        party.set_up()
        asker.ask(party, more=True)  # a warm-up: the first query meets cold caches
        asker.say("ready")
        end: float = pipe.recv()
        while True:
            if pipe.poll():
                end = pipe.recv()
            began = time.monotonic()
            more = began < end
            try:
                right = asker.ask(party, more=more)
            except SlotsBusy as busy:
                asker.say("busy")
                time.sleep(busy.retry_after)
                continue
            asker.say("answered", right=right, seconds=time.monotonic() - began)
            if not more:
                return
            time.sleep(pause)


def _run(site: Site, work: Work, pipe: Connection, certificate: str) -> None:
    asker = Asker(site, pipe, certificate)
    try:
        work(asker, pipe)
        asker.say("end")
    except BlindformerError as error:
        asker.say("error", kind=type(error).__name__, what=str(error))
    except BaseException:
        asker.say("bug", what=traceback.format_exc())
    finally:
        pipe.close()
