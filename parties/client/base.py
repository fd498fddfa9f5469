"""What every client does: reads texts and images, asks, and takes and gives what transformers' pipelines do."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ...models.artifacts import ClientPart, Question
from ...models.artifacts.client import together
from ...models.compile import AnswerOutOfRange
from ...models.loading.huggingface import InputError
from ...models.loading.truncation import IN_PYTHON, Truncation, WaysOut, truncation_of
from ...protocols.ckks.sealed import SealedError
from ...protocols.errors import BlindformerError, PeerError
from ..config import Address, Settings
from ..receipts.receipt import Prices, Receipt, issue
from ..registry import find_talking
from ..reports.report import Report
from ..session.messages import SlotsBusy
from ..session.online import Progress
from .canaries import Canaries, CanaryError
from .result import Result, TopK, Windows, count_of, generated, in_form
from .session import ClientError, PartyAddresses, Reply
from .sessions import Open, Sessions, Stopped, Writer, answer_to, streamed

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion, Conversation
    from ..session.online import OnPass


def check_top(client: BaseClient, top: int | None, name: str = "top_k") -> None:
    """Errors: ClientError where its model's answers have no rows to choose from."""
    if top is not None and not (client.part.talks or client.part.task.ranks):
        raise ClientError(f"{name}: answers of {client.task} have no rows to choose the most likely of; leave it out")


def check_trusted(results: Mapping[int, Result], ended: BlindformerError | None = None) -> None:
    """Errors: CanaryError, with these results, by index; `ended`: what ended their call."""
    if reason := next((result.distrusted for result in results.values() if result.distrusted), ""):
        raise CanaryError(f"canaries: {reason}", [results[index] for index in sorted(results)], ended)


class BaseClient(ABC):
    """A client with the client's part of a model, and a way to ask."""

    protocol: str
    top_k: TopK = ...  # of a call that does not say
    ways: WaysOut = IN_PYTHON
    """What an error says of a text that is too long."""
    at_once = True
    """Whether each reply is read when it comes; else when all questions have been asked."""
    makes_room = False
    """Whether sessions of other lengths are closed for a server that is busy."""
    ends_parties = True
    """Whether services of this machine end with this client, and are not another client's."""
    canaries: Canaries | None = None
    """Known answers that are mixed among the queries (`use_canaries`), and what became of them."""
    _kept: Conversation | None = None
    _writer: Writer | None = None

    def __init__(
        self,
        settings: Settings,
        part: ClientPart,
        parties: PartyAddresses,
        open: Open,
        *,
        length: int | None = None,
        truncate: Truncation | bool = "off",
        progress: Progress | None = None,
    ) -> None:
        """`open`: of a session. `length`: what texts are padded to (None: the least that fits). `truncate`: where
        longer ones are cut."""
        self.settings, self.part, self.parties, self.length = settings, part, parties, length
        self.truncate: Truncation = self._truncation(truncate)
        if length is not None:
            self._whole_texts()
            if (medium := part.task.medium) is not None:
                raise ClientError(f"length: {part.name} takes {medium.word}s, which have no lengths; leave it out")
            self.part.source_of(length) if part.writes else self.part.for_length(length)
        self.on_close = ExitStack()  # what ends with this client
        self.sessions = Sessions(open, settings.client.wait, progress, self.makes_room and not part.in_passes)
        self._answering = threading.Lock()  # one conversation answers one text at a time

    @property
    def task(self) -> str:
        """The pipeline's name of the model's task, such as text-classification."""
        return "text-generation" if self.part.talks else self.part.task.pipeline

    def use_canaries(self, file: str | Path, rate: float) -> None:
        """Add canary queries: this fraction of all queries, at least one for each length.

        `file`: known answers, of `blindformer query --write-known`. A wrong answer marks the call's results as
        `distrusted`; `query` and `query_many` raise CanaryError, with them as `results`. `canaries.report` has the
        counts. All answers of a call are read after its last question.
        """
        self._without_windows(self.truncate)
        self.canaries = Canaries.read(Path(file), rate, self.part, self.protocol)

    def query(self, item: Any, *, top_k: int | None = None, truncate: Truncation | bool | None = None) -> Result:
        """Answer one text, pair of texts in a tuple, or image (a file, or a PIL image). `top_k`: labels, tokens or
        spans."""
        (result,) = self.query_many([item], top_k=top_k, truncate=truncate)
        return result

    def query_many(
        self, items: Iterable[Any], *, top_k: int | None = None, truncate: Truncation | bool | None = None
    ) -> list[Result]:
        """Answer many items, and raise the first error. The next query is preprocessed while one runs.

        AnswerOutOfRange is raised after the last item, so that requests do not show it.
        """
        check_top(self, None if top_k is ... else top_k)
        results: dict[int, Result] = {}
        spoilt: AnswerOutOfRange | None = None
        chosen = list(items)
        for index, result in self.stream(chosen, top_k=top_k, truncate=truncate):
            if isinstance(result.error, InputError) and len(chosen) > 1:
                raise InputError(f"input {index + 1} of {len(chosen)}: {result.error}") from None
            results[index] = result
            if isinstance(result.error, AnswerOutOfRange):
                spoilt = spoilt or result.error
            elif result.error is not None:
                check_trusted(results, result.error)
                raise result.error
        check_trusted(results)
        if spoilt is not None:
            raise spoilt
        return [results[index] for index in sorted(results)]

    def stream(
        self,
        items: Iterable[Any],
        *,
        top_k: int | None = None,
        truncate: Truncation | bool | None = None,
        options: Mapping[str, Any] | None = None,
        stopped: Stopped | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Yield (index of the item, result), grouped by length, and an item's error in its result.

        options  of a generative model, as in a call
        stopped  called after each of its passes; True ends the answer

        All items are encoded before the first is asked. An error that concerns later items, too, is raised after the
        results that came before it. If you stop reading, the servers see that you stop asking: read on after
        AnswerOutOfRange. Raises ClientError for unknown options.
        """
        self._whole_texts()
        if options and not self.part.writes:
            raise ClientError(f"{next(iter(options))}: is not an option of {self.task}; leave it out")
        chosen = list(items)
        questions, refused = self._encode_all(chosen, truncate)
        yield from refused
        if self.part.writes:
            yield from self._written(chosen, questions, options or {}, stopped)
            return
        if self.canaries is not None:
            self._without_windows(self.truncate if truncate is None else self._truncation(truncate))
        windows = Windows(self.part, questions, len(chosen), top_k)
        questions = windows.questions
        chosen += [chosen[text] for text in windows.places.values()]
        yield from windows.joined(self._answered(chosen, questions, top_k))

    def _answered(
        self, chosen: list[Any], questions: dict[int, Question], top_k: int | None
    ) -> Iterator[tuple[int, Result]]:
        """The results of questions about single texts, as `stream` yields them."""
        done, broken, known = 0, None, {}
        if self.canaries is not None:
            questions, known = self.canaries.mixed(self.part, questions, len(chosen))
            chosen = chosen + [answer.item for answer in known.values()]
        kept: list[tuple[list[int], Reply | SlotsBusy]] = []
        requests = list(self._requests(questions))
        for numbers, following in zip_longest(requests, requests[1:]):
            self.sessions.report_progress("query", done, len(questions))
            asked = [questions[number] for number in numbers]
            try:
                reply = self.ask(asked, following is not None and questions[following[0]].length == asked[0].length)
            except SlotsBusy as busy:
                reply = busy
            except BlindformerError as error:
                broken = error
                break
            done += len(numbers)
            kept.append((numbers, reply))
            if self.at_once and not known:
                yield from self._read(chosen, questions, *kept.pop(), top_k)
        read = [result for one in kept for result in self._read(chosen, questions, *one, top_k)]
        if self.canaries is not None:
            requests = [numbers for numbers, reply in kept if not isinstance(reply, SlotsBusy)]
            read, broken = self.canaries.judged(read, questions, known, requests, broken)
        yield from read
        if broken is not None:
            raise broken
        self.sessions.report_progress("query", len(questions), len(questions))

    def ask(self, questions: list[Question], more: bool = False) -> Reply:
        """Answer questions of one request, retried if necessary. `more`: others of this length follow."""
        part, sessions = questions[0].part, self.sessions
        with sessions.lane() as lane:
            reply, reply.retried = sessions.ask_with_retry(
                lambda: sessions.get(part, lane),
                lambda: sessions.get(part, lane).ask(together(questions), more),
                lambda error: sessions.lost(part, error, lane),
                lane,
            )
            return reply

    def _written(
        self,
        items: list[Any],
        questions: Mapping[int, Question],
        options: Mapping[str, Any],
        stopped: Stopped | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """The same of a model that writes. `options`: of transformers' `generate`."""
        for done, (number, asked) in enumerate(questions.items()):
            self.sessions.report_progress("query", done, len(questions))
            result = Result(items[number], length=asked.length, tokens=asked.tokens, truncated=asked.left_out)
            try:
                with self._answering:
                    reply, result.report = self._kept_writer().write(asked, stopped, **options)
                result.value, result.retried = self.part.task.written(reply.text), reply.retried
                result.passes, result.finish, result.language = reply.passes, reply.finish, reply.language
            except PeerError:
                raise
            except BlindformerError as error:  # of this answer alone
                result.error = error
            yield number, result
        self.sessions.report_progress("query", len(questions), len(questions))

    def _kept_writer(self) -> Writer:
        self._writer = self._writer or Writer(self.sessions, self.part)
        return self._writer

    def _whole_texts(self) -> None:
        if self.part.talks:
            raise ClientError(f"{self.part.folder}: is compiled for conversations; use chat, or compile without --chat")

    def addresses(self) -> dict[str, Address]:
        """Addresses of the other parties, by role."""
        return self.parties.all()

    def who_learned(self) -> dict[str, str]:
        """What each party learns in a session, by party; empty if only reports say it."""
        return {}

    def connect(self) -> None:
        """Open the session for the shortest texts, or make keys; start local services. Raises the errors of queries."""
        if self.part.writes:
            with self._answering:
                self._kept_writer()
            return
        part, sessions = next(iter(self.part.lengths.values())), self.sessions
        with sessions.lane() as lane:
            sessions.ask_with_retry(
                lambda: sessions.get(part, lane), lambda: None, lambda error: sessions.lost(part, error, lane), lane
            )

    def prepare(self, length: int | None = None) -> None:
        """Preprocess the next query of this length (None: the shortest)."""
        if self._writer is not None:
            self._writer.prepare()
        if self.part.writes:
            return
        part = self.part.lengths[min(self.part.lengths) if length is None else length]
        with self.sessions.lane() as lane:
            if session := self.sessions.opened(part, lane):
                session.prepare()

    def receipt(self, prices: Prices = None) -> Receipt:
        """What all parties of the open sessions state, with costs. `prices`: settings of [prices] (default: the
        configuration's). Raises ReceiptError if the protocol has none, and PeerError."""
        return issue(self.sessions.vouched(), self.settings.prices if prices is None else prices)

    def knock(self) -> None:  # noqa: B027
        """Check that the parties answer, if the protocol can without a session. Raises PeerError."""

    def close(self) -> None:
        """End sessions and local processes. Safe to call twice."""
        self.sessions.close()
        if self.ends_parties:
            self.parties.close()
        self.on_close.close()

    @abstractmethod
    def costs(self, reports: list[Report]) -> str:
        """In a line: what these answers cost."""

    @property
    @abstractmethod
    def who(self) -> str:
        """Whom a user has to trust, and how far."""

    def __call__(self, inputs: Any = None, *, top_k: TopK = ..., truncation: Any = None, **options: Any) -> Any:
        """What the transformers pipeline of this task returns for a text, a pair of texts in a tuple, a dictionary of
        either, an image or a recording; for a list of them a list, for an iterator or a data set an iterator.

        text-classification    [{"label", "score"}] for a text; of a list, a dictionary each. With `top_k`, a list each:
                               so many labels, or with None all
        image-classification   the five most likely labels (or `top_k`); of a list, a list each; so
                               audio-classification, where None gives all
        feature-extraction     nested lists [1, tokens, hidden]; of a list, a list of them
        sentence-embedding     one list of floats, of length one; of a list, a list of them
        next-token, fill-mask  [{"score", "token", "token_str"}], of a mask with "sequence"; of a list, a list each
        token-classification   [{"entity", "score", "index", "word", "start", "end"}]; of a list, a list each
        question-answering     {"score", "start", "end", "answer"}; of a list, one each. With `top_k`: a list each.
                               Also client(question="...", context="...")
        translation            [{"translation_text"}]; of a list, a dictionary each. `options`: transformers' own of
                               `generate`. So summarization, [{"summary_text"}], and text2text-generation,
                               [{"generated_text"}]
        automatic-speech-recognition  {"text"}; of a list, one each. `options`: language, task ("translate": into
                               English), and transformers' own of `generate`
        text-generation        [{"generated_text"}] for a text or a chat; of a list, a list each. `options`:
                               return_full_text, and transformers' own of `generate`, such as max_new_tokens

        `truncation`: of these texts, as of `pipeline`. One of many that has no answer leaves those of the others: its
        error stands in its place.
        """
        called = top_k is not ...
        top_k = top_k if called else self.top_k
        if self.part.in_passes:
            if self.part.talks:
                self._truncation(truncation)
            options |= {} if top_k is ... else {"top_k": top_k}
        else:
            if inputs is not None and options:
                raise ClientError(f"{next(iter(options))}: is not an option of {self.task}; leave it out")
            inputs = options if inputs is None else inputs

        check_top(self, None if top_k is ... or self.part.writes else top_k)

        def answers(items: list[Any]) -> list[Any]:
            if self.part.writes:
                questions, refused = self._encode_all(items, truncation)
                results = dict(refused) | dict(self._written(items, questions, options))
            else:
                results = dict(self.stream(items, top_k=count_of(self.task, top_k), truncate=truncation))
                check_trusted(results)
            return [results[n].value if results[n].error is None else results[n].error for n in range(len(items))]

        def texts(items: list[Any]) -> list[Any]:
            return [self._generated(item, options) for item in items]

        return in_form(self.task, texts if self.part.talks else answers, inputs, top_k, called)

    def _generated(self, item: Any, options: dict[str, Any]) -> Any:
        """Errors of one text alone are returned, as its answer; that of a session, which all have, is raised."""
        try:
            with self._answering:
                return generated(self.kept_conversation(), item, **options)
        except PeerError:
            raise
        except BlindformerError as error:
            return error

    def conversation(self, on_pass: OnPass | None = None) -> Conversation:
        """Start a conversation with a language model: `say`, `complete`. `on_pass`: called after each pass.

        It has a session of its own. A lost session is replaced, and its messages are read again. After an error it
        continues with the next message. Raises ClientError, the errors of a session, and BlindformerError if the
        protocol keeps no state.
        """
        find_talking(self.protocol)
        return self.sessions.conversation(self.part, on_pass)

    def kept_conversation(self) -> Conversation:
        """The conversation that `chat` and text-generation continue."""
        self._kept = self._kept or self.conversation()
        return self._kept

    def chat(
        self, messages: Sequence[dict[str, str]], *, stream: bool = False, **options: Any
    ) -> Completion | Iterator[str]:
        """Answer the last of the messages, [{"role": "user", "content": "..."}, ...]; with `stream`, in pieces.

        Messages that begin like the last call's are not read again, unless the session was lost. After an error, ask
        again. `options`: those of transformers' `generate`, such as max_new_tokens, temperature, do_sample,
        prompt_lookup_num_tokens.
        """
        return (streamed if stream else answer_to)(self.kept_conversation(), messages, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):
            self.close()

    def _without_windows(self, truncation: Truncation) -> None:
        """A text that is asked again from its first window on would show a server which are canary queries."""
        if truncation == "windows":
            raise CanaryError("canaries: do not go with texts in windows; cut long texts at one end, or divide them")

    def _truncation(self, given: Truncation | bool) -> Truncation:
        """Errors: ClientError, InputError where there is no text that could be cut."""
        truncation = truncation_of(given)
        if truncation != "off" and self.part.talks:
            raise ClientError(
                "truncation: is of single texts; a conversation is not cut, it has its own room; leave it out"
            )
        if truncation != "off" and self.part.task.medium is not None:
            raise ClientError(
                f"truncation: is of texts, and the model takes {self.part.task.medium.word}s; leave it out"
            )
        return truncation

    def _encode_all(
        self, items: list[Any], truncate: Truncation | bool | None
    ) -> tuple[dict[int, Question], list[tuple[int, Result]]]:
        """Questions by index, and the results of items that make none: their errors."""
        questions: dict[int, Question] = {}
        refused: list[tuple[int, Result]] = []
        cut = self.truncate if truncate is None else self._truncation(truncate)
        for index, item in enumerate(items):
            try:
                questions[index] = self.part.encode(item, self.length, cut, self.ways)
            except InputError as error:
                refused.append((index, Result(item, error=error)))
        return questions, refused

    def _requests(self, questions: Mapping[int, Question]) -> Iterator[list[int]]:
        """Indices of the questions that go together: of one length, as many as a request takes."""
        for length in dict.fromkeys(question.length for question in questions.values()):
            numbers = [n for n, question in questions.items() if question.length == length]
            size = questions[numbers[0]].part.texts
            yield from (numbers[start : start + size] for start in range(0, len(numbers), size))

    def _read(
        self,
        items: list[Any],
        questions: Mapping[int, Question],
        numbers: list[int],
        reply: Reply | SlotsBusy,
        top_k: int | None,
    ) -> Iterator[tuple[int, Result]]:
        """What a reply says of each question, or why it says nothing."""
        for place, number in enumerate(numbers):
            asked = questions[number]
            result = Result(items[number], length=asked.length, tokens=asked.tokens, truncated=asked.left_out)
            if isinstance(reply, SlotsBusy):
                result.error = reply
            else:
                result.report, result.retried = reply.report, reply.retried
                try:
                    result.outputs = reply.outputs(place)
                    result.value = self.part.read(asked, result.outputs, top_k)
                except (AnswerOutOfRange, SealedError) as error:
                    result.error = error
            yield number, result
