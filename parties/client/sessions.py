"""The sessions of one client, by program: opened when they are asked, kept, and replaced when they are lost; and the
conversations with a language model, and the private head of a public one, each in a session of its own."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from queue import LifoQueue, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from torch import Tensor

from ...models.artifacts import ClientLength, Question
from ...models.compile import AnswerOutOfRange
from ...models.delegated.head import PrivateHead
from ...protocols.errors import PeerDropped, PeerError, PeerGone
from ..receipts.receipt import VouchedSession
from ..reports.report import Report, with_head
from ..session.messages import SlotsBusy
from ..session.online import Answer, OnPass, Progress, added, part_run
from .session import ClientError, Reply, Session

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.artifacts import ClientPart
    from ...models.generation.conversation import Completion, Conversation
    from ...models.generation.rows import Pass

T = TypeVar("T")
Open = Callable[[ClientLength, Progress], Session]
Stopped = Callable[[], bool]
REOPEN_SECONDS = 1.0  # between attempts to reach parties that questions were lost to
DEALER_SECONDS = 5.0  # of them, while the dealer is what cannot be reached: whoever asks is told of it soon
CLOSING_SECONDS, CLOSING_PAUSE = 3.0, 0.25  # that a server may take to close a session, and between attempts meanwhile


class Sessions:
    """`open` opens one, for a length and with a `progress` to call. `wait`: seconds to go on asking a server that is
    busy, or that comes back.

    makes_room  a session with another program is closed for a server that is busy: it bounds how many a client may have
    lane        taken while questions are asked, errors and waiting included. Each lane has sessions of its own
    progress    called with (phase, done, total)
    """

    def __init__(self, open: Open, wait: float, progress: Progress | None = None, makes_room: bool = False) -> None:
        self._open, self.wait, self.progress, self.makes_room = open, wait, progress, makes_room
        self.lane: Callable[[], AbstractContextManager[str]] = self._take_lane
        self.passes: Callable[[Sessions, Any, OnPass | None], ConversationPasses] = Passes
        self.closed = False
        self._by_key: dict[tuple[str, str], Session] = {}  # by program, and name of its lane or conversation
        self._opening, self._vouching = threading.RLock(), threading.Lock()
        self._lanes, self._all = LifoQueue[str](), 0  # of those that are free the one that was used last has a session
        self.widen(1)

    def widen(self, lanes: int) -> None:
        """Let so many threads ask at once."""
        for number in range(self._all, lanes):
            self._lanes.put(f" {number}" if number else "")
        self._all = max(self._all, lanes)

    @contextmanager
    def _take_lane(self) -> Iterator[str]:
        name = self._lanes.get()
        try:
            yield name
        finally:
            self._lanes.put(name)

    def get(self, part: ClientLength, name: str = "") -> Session:
        """The open session of a program, or a new one. `name`: of the conversation whose state it keeps. Errors:
        PeerError, SlotsBusy, LaunchError."""
        with self._opening:
            session = self.opened(part, name)
            if session is None:
                session = self._by_key[part.program.hash(), name] = self._open(part, self.report_progress)
        return session

    def opened(self, part: ClientLength, name: str = "") -> Session | None:
        session = self._by_key.get((part.program.hash(), name))
        return session if session is not None and session.open else None

    def vouched(self) -> list[VouchedSession]:
        """Of the sessions that are open and were asked. Those that were lost are not vouched for by anybody."""
        with self._vouching, ExitStack() as lanes:
            for _ in range(self._all):
                lanes.enter_context(self.lane())
            each = [one for session in self._by_key.values() if session.open for one in session.all_vouched()]
            return [one for one in each if one.facts.queries] or each

    def lost(self, part: ClientLength, error: BaseException, name: str = "") -> bool:
        """Close what an error has spoilt. Whether another attempt may succeed."""
        session = self._by_key.get((part.program.hash(), name))
        return session is not None and session.lost(error)

    def ask_with_retry(
        self,
        connect: Callable[[], object],
        ask: Callable[[], T],
        lost: Callable[[BaseException], bool],
        lane: str = "",
    ) -> tuple[T, str]:
        """Connect and ask; retry once after a lost session, and until `wait` expires while a server is busy, which has
        not taken what was asked. Returns (result, reason for the retry). `lost`: closes what an error has spoilt, and
        says whether another attempt may succeed. `lane`: whose other sessions may be closed.

        A server that is busy with a session of this client, closed to make room, is asked again until it has closed it.

        Between two attempts, one that cannot be reached may be coming back: it is tried until `wait` expires. So is one
        that has kept this side waiting before it hung up, as a crowded service does.
        """
        if self.closed:
            raise ClientError("this client is closed; make a new one")
        began_at = time.monotonic()
        deadline, retried, closing_until = began_at + self.wait, "", 0.0
        while True:
            connected, began = False, time.monotonic()
            try:
                connect()
                connected = True
                return ask(), retried
            except SlotsBusy as busy:
                if not connected and self._make_room(lane):
                    closing_until = time.monotonic() + CLOSING_SECONDS
                elif not connected and time.monotonic() < closing_until:  # the place is still being given back
                    time.sleep(CLOSING_PAUSE)
                else:
                    rest(busy, deadline, self.report_progress)
            except BaseException as error:
                again = lost(error) and connected
                last = min(deadline, began_at + DEALER_SECONDS) if names_dealer(error) else deadline
                in_time = time.monotonic() + REOPEN_SECONDS <= last
                crowded = isinstance(error, PeerDropped) and time.monotonic() - began > REOPEN_SECONDS
                if (retried or crowded) and not connected and isinstance(error, PeerGone) and in_time:
                    time.sleep(REOPEN_SECONDS * (1 + secrets.randbelow(1000) / 1000))
                elif retried or not again:
                    raise
                else:
                    retried = str(error)

    def conversation(self, part: ClientPart, on_pass: OnPass | None = None) -> Conversation:
        """A conversation in a session of its own, and in another one when that is lost. `on_pass`: called after each
        pass. Errors: ClientError for a model that answers whole texts, and those of a session."""
        return self.passes(self, part, on_pass).conversation

    def report_progress(self, phase: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(phase, done, total)

    def close(self) -> None:
        self.closed = True
        while self._by_key:
            self._by_key.popitem()[1].close()

    def _make_room(self, lane: str) -> bool:
        """Close a session of another length in this lane. Whether there was any."""
        key = next((key for key in reversed(self._by_key) if key[1] == lane), None) if self.makes_room else None
        if key is not None:
            self._by_key.pop(key).close()
        return key is not None


def names_dealer(error: BaseException) -> bool:
    """Whether this side, or the server, says that the dealer cannot be reached."""
    return isinstance(error, PeerError) and (error.party == "dealer" or "said: dealer: " in error.what)


def rest(busy: SlotsBusy, deadline: float, progress: Progress) -> None:
    """Sleep as long as a busy server asks for, and a little more, or less if the deadline is near.

    Errors: the same SlotsBusy when the deadline is here.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise busy
    spread = 1 + secrets.randbelow(200) / 1000  # many that were told the same must not come back at the same moment
    progress("busy", 0, 1)
    time.sleep(min(left, busy.retry_after * spread))


class ConversationPasses(Protocol):
    """Runs the passes of one conversation, in sessions that are replaced when they are lost."""

    conversation: Conversation

    def report_of(self, answers: Sequence[Answer]) -> Report:
        """What these passes cost together."""
        ...


class Passes:
    """Runs the passes of one conversation. The state is the session's: where a session is lost, what was said is read
    again in a new one, from the client's own tokens and under fresh masks. Nothing of the lost one is used again."""

    def __init__(self, sessions: Sessions, part: ClientPart, on_pass: OnPass | None) -> None:
        from ...models.generation.conversation import Conversation
        from ...models.generation.rows import KVState

        if part.chat is None:
            raise ClientError(f"{part.folder}: answers whole texts; compile the model with --chat to talk to it")
        self.sessions, self.on_pass = sessions, on_pass
        self.part, self.name = part.for_length(), f" {uuid4()}"
        tensors = {name: value for one in self.part.parts.values() for name, value in one.tensors.items()}
        rows = KVState(self.part.program, self.run, part.chat.prefix, self._prepare)
        self.conversation = Conversation(part.chat, rows, tensors[part.chat.head] if part.chat.head else None)
        self._session: Session | None = None
        self._run: Pass
        self._behind = self._reading = False  # of a new session, whose state is to be filled; that this is being done
        sessions.ask_with_retry(self._connect, lambda: None, self._lost)

    def run(self, *given: Any) -> Mapping[str, Tensor]:
        """One pass. Errors: those of a session; the conversation goes on with the next pass."""
        if self._reading:  # a session that is lost now is the outer attempt's
            return self.sessions.ask_with_retry(lambda: None, lambda: self._run(*given), lambda error: False)[0]
        outputs, retried = self.sessions.ask_with_retry(self._connect, lambda: self._run(*given), self._lost)
        self.conversation.retried = retried or self.conversation.retried
        return outputs

    def _connect(self) -> None:
        rows = self.conversation.rows
        if self._session is None or not self._session.open:
            self._session = self.sessions.get(self.part, self.name)
            self._run, self._behind = self._session.passes(self.on_pass), rows.rows > 0 or rows.source_read
        if self._behind:
            self.sessions.report_progress("again", 0, 1)
            self._reading = True
            try:
                rows.read_again()
            finally:
                self._reading = False
            self._behind = False

    def report_of(self, answers: Sequence[Answer]) -> Report:
        """What these passes cost together."""
        assert self._session is not None
        return self._session.report_of(added(answers))

    def _prepare(self, part: str, rows: int) -> None:
        """Of a session that is lost nothing is prepared: the next pass finds out, and opens another."""
        if not self._behind and self._session is not None and self._session.open:
            self._session.prepare(part_run(self.part.program, part, rows))

    def _lost(self, error: BaseException) -> bool:
        return self.sessions.lost(self.part, error, self.name)


class Writer:
    """Answers of an encoder-decoder model, one after the other, in a session that is kept."""

    def __init__(self, sessions: Sessions, part: ClientPart, on_pass: OnPass | None = None) -> None:
        """`on_pass`: called after each pass."""
        self._spent: list[Answer] = []
        self._stopped: Stopped | None = None

        def note(name: str, answer: Answer) -> None:
            self._spent.append(answer)
            sessions.report_progress("answer", len(self._spent), max(len(self._spent), self._room))
            if on_pass is not None:
                on_pass(name, answer)
            if self._stopped is not None and self._stopped():
                self._passes.conversation.stop()

        self._room = 0
        self._part, self._passes = part, sessions.passes(sessions, part, note)
        self._room = self._passes.conversation.rows.slots

    def write(self, question: Question, stopped: Stopped | None = None, **options: Any) -> tuple[Completion, Report]:
        """What the model writes about a text, or one piece of a recording after the other, and the cost. `stopped`:
        asked after each pass whether nobody waits for it any more."""
        from ...models.generation.conversation import joined

        self._spent.clear()
        self._stopped = stopped
        replies: list[Completion] = []
        source = self._part.source_of(question.length)
        for one in (question, *question.more):
            replies.append(self._passes.conversation.write(source, one.inputs, **options))
            if replies[-1].finish == "interrupted":
                break
        return joined(replies), self._passes.report_of(self._spent)

    def prepare(self) -> None:
        """Between two questions: the parties make now what the next one needs."""
        self._passes.conversation.prepare()


def answer_to(conversation: Conversation, messages: Sequence[dict[str, str]], **options: Any) -> Completion:
    """The answer to the last of these messages, which may be those of another conversation. Errors: ClientError."""
    if not messages or messages[-1].get("role") != "user":
        raise ClientError('messages: the last one must be the user\'s: {"role": "user", "content": "..."}')
    conversation.messages = [dict(message) for message in messages[:-1]]
    return conversation.say(str(messages[-1].get("content", "")), **options)


def streamed(conversation: Conversation, messages: Sequence[dict[str, str]], **options: Any) -> Iterator[str]:
    """The answer to messages in pieces, as they come. Who stops reading ends the answer."""
    pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            answer_to(conversation, messages, on_text=pieces.put, **options)
            pieces.put(None)
        except BaseException as error:  # it is raised where the pieces are read
            pieces.put(error)

    thread = Thread(target=work)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        conversation.stop()
        thread.join()


class HeadSessions:
    """The private sessions of a public model's head, beside one session of its base. `opened` opens one for each of the
    head's programs, when it is needed. private_head.py says who learns what."""

    def __init__(self, head: PrivateHead, opened: Callable[[ClientLength], Session]) -> None:
        self._head, self._opened = head, opened
        self._sessions: dict[str, Session] = {}
        self._reply: Reply | None = None
        self._spoilt: AnswerOutOfRange | None = None

    def run(self, run: Callable[[], Any]) -> Any:
        """What `run` returns, which runs the base once: the head is asked in its midst."""
        if len(self._head.part.lengths) == 1:  # a server that is busy says so before the base has computed
            self._session(next(iter(self._head.part.lengths.values())))
        self._reply = self._spoilt = None
        with self._head.place.asking(self._ask):
            return run()

    def completed(self, reply: Reply) -> Reply:
        """The base's reply, with what the head took, and its error if its answer has left its range."""
        assert self._reply is not None
        spoilt = self._spoilt

        def read(rows: slice) -> dict[str, Tensor]:
            if spoilt is not None:
                raise spoilt
            return reply.read(rows)

        return replace(reply, report=self.report_with(reply.report), read=read)

    def report_with(self, base: Report) -> Report:
        return base if self._reply is None else with_head(base, self._reply.report)

    @property
    def open(self) -> bool:
        return all(session.open for session in self._sessions.values())

    def vouched(self) -> list[VouchedSession]:
        return [session.vouched() for session in self._sessions.values()]

    def close(self) -> None:
        while self._sessions:
            self._sessions.popitem()[1].close()

    def _session(self, one: ClientLength) -> Session:
        name = one.program.hash()
        if name not in self._sessions:
            self._sessions[name] = self._opened(one)
        return self._sessions[name]

    def _ask(self, inputs: Mapping[str, Tensor]) -> Tensor | None:
        self._reply = self._session(self._head.program_for(inputs)).ask(inputs)
        try:
            (answer,) = self._reply.outputs().values()
        except AnswerOutOfRange as error:  # nobody else may see it in how this query ends
            self._spoilt = error
            return None
        return answer
