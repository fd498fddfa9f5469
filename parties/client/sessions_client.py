"""`Client`: questions to a model that never sees them, three lines whether its parties are far away or on this machine.

client = bf.Client("server.example:7443", dealer="dealer.example:7444", folder="compiled/client")
result = client.query("nobody reads this")
print(result.value, result.report)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...models.artifacts import ClientPart, Question, load_client
from ...models.compile import AnswerOutOfRange, decode_outputs
from ...protocols.errors import PeerGone, PeerTimeout
from ..config import load_settings
from ..local.services import LOCAL
from ..reports.report import Report, phases_in_words, two_party_report
from ..session import Answer, Progress, UseSpool
from ..session.compute_slots import SlotsBusy
from ..session.spool import SpoolError
from .base import Asking, ClientError, Result
from .sessions import OpenSession, Sessions

LOST = (PeerGone, PeerTimeout)  # the session is lost, and nothing says that another would be, too


class Client(Asking):
    """The data's owner. Sessions are opened when they are needed and kept until `close`; or use `with`.

    server         "host:port"; or "local": dealer and server run on this machine, as two processes of their own
    dealer         "host:port"
    folder         what compile wrote: DIR/client, or DIR (which "local" needs, for the server's part)
    certificates   the folder with ca.pem, client.pem and client.key
    config         a blindformer.toml; what is given here goes over it
    topology       "dealer"; or "helper": a second server does the client's part, and this side only splits its data
    length         tokens to pad texts to (default: the least compiled length that fits)
    timeout        seconds that a party may be silent
    wait           seconds to go on asking a server that is busy, or that comes back after a session was lost
    cache          a folder for masked weights, so that they travel once (default: the configuration's; "local": none)
    spool          a folder of correlations made ahead; `use_spool`: "auto", "only" those, or "off"
    progress       called with (phase, done, total)

    A query goes out once. If its session is lost it is asked again, once, in a new session with fresh correlations, and
    `Result.retried` says so; a server that is busy has not taken it yet and is asked again for `wait` seconds.

    Errors: ConfigError, ArtifactError; of queries: InputError, PeerError, Busy, LimitReached, SpoolError,
    AnswerOutOfRange.
    """

    protocol = "beaver"

    def __init__(
        self,
        server: str | None = None,
        *,
        dealer: str | None = None,
        helper: str | None = None,
        folder: str | Path | None = None,
        certificates: str | Path | None = None,
        config: str | Path | None = None,
        topology: str | None = None,
        length: int | None = None,
        timeout: float | None = None,
        wait: float | None = None,
        cache: str | Path | None = None,
        spool: str | Path | None = None,
        use_spool: UseSpool = "auto",
        progress: Progress | None = None,
    ) -> None:
        local = server == LOCAL
        self.settings = load_settings(
            _path(config),
            **{
                "parties.server.address": None if local else server,
                "parties.dealer.address": dealer,
                "parties.helper.address": helper,
                "session.protocol": self.protocol,
                "session.topology": topology,
                "session.timeout": None if timeout is None else float(timeout),
                "certificates.folder": _path(certificates),
                "client.folder": _path(folder),
                "client.cache": _path(cache),
                "client.spool": _path(spool),
                "client.wait": None if wait is None else float(wait),
            },
        )
        if local and (self.settings.session.topology != "dealer" or dealer or helper or certificates):
            raise ClientError('"local" starts a dealer and a server itself: leave addresses and certificates out')
        self.part: ClientPart = load_client(self.settings.client.folder)
        self.length, self.progress = length, progress
        if length is not None:
            self.part.for_length(length)
        if use_spool == "only" and self.settings.client.spool is None:
            raise ClientError('use_spool="only" needs a folder of correlations: give spool')
        self._sessions: Sessions | None = Sessions(  # None: closed
            self.settings,
            local=local,
            cache=self.settings.client.cache if not local or cache is not None else None,
            use_spool=use_spool,
            progress=progress,
        )
        self._turn = threading.Lock()  # sessions answer one query at a time

    def stream(self, items: Iterable[Any], *, top_k: int | None = None) -> Iterator[tuple[int, Result]]:
        """(index of the item, its result), each as soon as it is there: grouped by length, not in order.

        All items are read and encoded before the first is asked. One that does not fit, an answer that cannot be
        trusted, or a server that stays busy, is its own result's error; an error that the next question would meet,
        too, is raised. Who stops reading stops asking, which the servers see: read on after an answer out of range.
        """
        chosen = list(items)
        questions, refused = self._encode_all(chosen)
        yield from refused
        lengths = dict.fromkeys(question.length for question in questions.values())
        order = [n for length in lengths for n, question in questions.items() if question.length == length]
        for place, number in enumerate(order):
            following = questions[order[place + 1]] if place + 1 < len(order) else None
            more = following is not None and following.length == questions[number].length
            if self.progress:
                self.progress("query", place, len(order))
            yield number, self._ask(chosen[number], questions[number], more, top_k)
        if self.progress:
            self.progress("query", len(order), len(order))

    def close(self) -> None:
        """End the sessions, and the local processes if there are any. Safe to call twice."""
        sessions, self._sessions = self._sessions, None
        if sessions is not None:
            sessions.close()

    @property
    def who(self) -> str:
        alone = self.settings.session.topology == "dealer"
        who = "two parties" if alone else "two servers that must not collude"
        return f"{who} and an offline dealer, semi-honest, 128 bits   TLS 1.3"

    def costs(self, reports: list[Report]) -> str:
        return f"{'on average: ' if len(reports) > 1 else ''}{phases_in_words(reports)}"

    # --- one question ------------------------------------------------------------------------------------------------
    def _ask(self, item: Any, question: Question, more: bool, top_k: int | None) -> Result:
        result = Result(item, length=question.length)
        try:
            with self._turn:
                opened, answer = self._answer(question, more, result)
            result.report = two_party_report(
                opened.party.program,
                self.part.about["plan"],
                answer.timings,
                answer.others,
                opened.setup_s,
                opened.party.setup_bytes,
            )
            result.outputs = decode_outputs(question.part.program, answer.outputs)
            result.value = self.part.read(question, result.outputs, top_k)
        except (SlotsBusy, AnswerOutOfRange) as error:
            result.error = error
        return result

    def _answer(self, question: Question, more: bool, result: Result) -> tuple[OpenSession, Answer]:
        """At most two attempts, of which the second is in a new session (or on other correlations).

        A lost session gave no answer: its last round had not come. What the server learned of it is uniform, and the
        new session draws fresh masks.
        """
        sessions = self._sessions
        if sessions is None:
            raise ClientError("this client is closed; make a new one")
        sources = question.sources()
        deadline = time.monotonic() + self.settings.client.wait
        while True:
            opened = sessions.open(question, deadline, patient=bool(result.retried))
            try:
                return opened, opened.party.query(sources, self.progress, more)
            except SlotsBusy as busy:
                sessions.rest(busy, deadline)
            except SpoolError as error:  # the session lives on, and so do other correlations
                if result.retried or sessions.use_spool == "only":
                    raise
                result.retried = str(error)
            except LOST as error:
                sessions.drop(question)
                if result.retried:
                    raise
                result.retried = str(error)
            except BaseException:
                sessions.drop(question)
                raise


__all__ = ["LOCAL", "Client", "ClientError", "Result"]


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
