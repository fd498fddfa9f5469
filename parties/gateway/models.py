"""The models that the gateway offers: each a client of its own, with the requests that wait for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ...errors import BlindformerError
from ...models.loading.huggingface import InputError
from ...models.loading.load import PACKAGED
from ...models.loading.truncation import IN_REQUESTS, TooLong, Truncation
from ...models.program.two_server import for_two_servers
from ...protocols.errors import PeerError
from ..client.base import BaseClient
from ..client.client import Client
from ..config import GatewayModel, Settings
from ..launch import LOCAL
from ..launch.processes import LaunchError
from ..registry import DEFAULT, find_served, open_client
from ..reports.report import who_learned_what
from ..session.timings import Answer
from . import served_name
from .answered import RequestAnswer, Travelled
from .image_urls import image_files, no_image
from .problems import ApiError, as_api_error, field_of, input_place, too_long
from .turns import Job, Line

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Conversation
    from ...models.generation.logprobs import Logprobs

T = TypeVar("T")
VECTORS = ("text_embeds",)  # of an encoder whose answer is not one list of numbers


class Seat:
    """A conversation, and the request that it answers now, if any."""

    def __init__(self) -> None:
        self.talk: Conversation | None = None
        self.job: Job[RequestAnswer] | None = None
        self.travelled = Travelled()

    def told(self, part: str, answer: Answer) -> None:
        """After each pass. A request that was left ends here."""
        self.travelled.add_pass(answer)
        if self.talk is not None and self.job is not None and self.job.stopped:
            self.talk.stop()

    def common(self, ids: Sequence[int]) -> int:
        """How many of these tokens its conversation has read."""
        read = [] if self.talk is None else self.talk.rows.ids
        return next((at for at, (old, new) in enumerate(zip(read, ids, strict=False)) if old != new), len(read))


class OfferedModel:
    """One model by its name. `state`: "starting", "ready", or what is wrong. `here`: its parties run here."""

    def __init__(
        self, name: str, client: BaseClient, queue: int, conversations: int = 1, *, here: bool = False
    ) -> None:
        self.name, self.client, self.part = name, client, client.part
        self.created, self.state = int(time.time()), "starting"
        self.talks = self.part.talks
        self.at_once = conversations if self.talks else 1
        self.line = Line(self.at_once, queue)
        self.ways = IN_REQUESTS
        if here and name in PACKAGED:  # `up` knows it by this name
            self.ways = replace(IN_REQUESTS, compile=f"run `blindformer up {name} --lengths {{lengths}}`")
        self.seen = ""  # the first bytes that the server got of the last pass, in base64
        self._seats = [Seat() for _ in range(self.at_once)] if self.talks else []
        self._free, self._turn = list(self._seats), threading.Lock()
        self._last, self._length = next(iter(self._seats), Seat()), min(self.part.lengths)  # of the last request

    # --- what it is --------------------------------------------------------------------------------------------------
    @property
    def task(self) -> str:
        return "chat" if self.talks else self.client.task

    @property
    def reads_texts(self) -> bool:
        return self.part.task.medium is None

    @property
    def embeds(self) -> bool:
        return not self.talks and (
            self.part.kind == "sentence"
            or any(name in part.program.outputs for part in self.part.lengths.values() for name in VECTORS)
        )

    @property
    def classifies(self) -> bool:
        return self.part.kind == "classifier" or self.task == "image-classification"

    @property
    def scores_pairs(self) -> bool:
        """Whether it may be a cross-encoder: one score for two texts that are read together."""
        return self.part.kind == "classifier" and len(self.part.task.labels) == 1

    @property
    def ranks(self) -> bool:
        return self.embeds or self.scores_pairs

    @property
    def tells_scores(self) -> bool:
        """Of all words, to the client; else the next token alone."""
        return not any("noise" in part.inputs for part in self.part.for_length().program.parts.values())

    def about(self) -> dict[str, Any]:
        """Beside what the OpenAI API says of a model."""
        return {
            "task": self.task,
            "protocol": self.client.protocol,
            "plan": self.part.about["plan"],
            "lengths": list(self.part.lengths),
            "state": self.state,
            "learned": self._learned(),
        }

    def _learned(self) -> dict[str, str]:
        """By party, of a session."""
        if self.client.protocol != DEFAULT:
            return {}
        program = next(iter(self.part.lengths.values())).program
        helped = self.client.settings.session.topology == "helper"
        found = who_learned_what(for_two_servers(program) if helped else program)
        if self.talks:
            found["public"] += "; how many tokens each pass of a conversation reads and keeps, and when it comes"
        return found

    @property
    def tokenizer(self) -> Any:
        """Of a model that talks."""
        return None if self.part.chat is None else self.part.chat.tokenizer

    def written(self, prompt: str | list[int]) -> str:
        """A text, or what its tokens read."""
        given = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, **given)

    # --- what it does, in a job's thread -----------------------------------------------------------------------------
    def open(self) -> None:
        """Meet the other parties before anybody asks. Errors go into `state`: the next request tries again."""
        with suppress(BlindformerError), self._noted():
            if self.talks:
                with self._seated([]) as seat:
                    self._conversation(seat)
            else:
                self.client.connect()
            self.prepare()

    def prompt(self, make: Callable[[Any], list[int]], param: str) -> list[int]:
        """The tokens that `make` makes of the model's chat. Errors: ApiError."""
        if self.part.chat is None:
            raise ApiError(400, f"model {self.name}: does not talk, it is for {self.task}", param="model")
        try:
            ids = make(self.part.chat)
        except BlindformerError as error:
            raise as_api_error(error, param) from None
        most = self._room(len(self.part.chat.prefix))
        if len(ids) >= most:
            raise too_long(len(ids), most, param, "answers included; begin a new conversation, or compile for more")
        return ids

    def answer(
        self,
        job: Job[RequestAnswer],
        prompts: Sequence[Sequence[int]],
        logprobs: Sequence[Logprobs | None],
        options: Mapping[str, Any],
    ) -> RequestAnswer:
        """What comes after each of these lists of tokens, in the conversation that has read most of it. `logprobs`: for
        each, who is told how likely its tokens are. Errors: BlindformerError."""
        found = RequestAnswer()
        for ids, told in zip(prompts, logprobs, strict=True):
            with self._noted(), self._seated(ids) as seat:
                seat.job, seat.travelled = job, found.travelled
                try:
                    talk = self._conversation(seat)
                    if job.stopped:
                        return found
                    reply = talk.answer(ids, job.say, told, **options)
                    found.travelled.retried, self.seen = reply.retried or found.travelled.retried, found.travelled.head
                    found.tokens, found.cached = found.tokens + len(ids), found.cached + len(ids) - talk.rows.asked
                    found.completions.append(reply)
                    if reply.finish == "interrupted":
                        return found
                finally:
                    seat.job, self._last = None, seat
        found.whole = True
        return found

    def ask(
        self,
        job: Job[RequestAnswer],
        texts: Sequence[Any],
        top_k: int | None = None,
        place: Callable[[int], str] | None = None,
        truncate: Truncation = "off",
    ) -> RequestAnswer:
        """The model's answers for texts, or pairs of them; of a model of images, for these as data URLs. `place`: what
        an error calls each. `truncate`: where a text that is too long is cut. Errors: BlindformerError, for the first
        one that has one."""
        place = place or (lambda at: input_place(at, len(texts)))
        if self.part.task.medium is None:
            found, items = RequestAnswer(), texts
            for at, text in enumerate(texts):
                length, tokens = self._fit(text, place(at), truncate)
                found.tokens += min(tokens, length)
                if tokens > length:
                    found.truncated[place(at)] = tokens - length
        else:
            found, items = RequestAnswer(), image_files(texts)
        values: dict[int, Any] = {}
        with self._noted():
            for index, result in self.client.stream(items, top_k=top_k, truncate=truncate):
                if isinstance(result.error, InputError) and items is not texts:  # it was found in decoding
                    raise no_image(place(index), result.error)
                if result.error is not None:
                    raise result.error
                values[index], self._length = result.value, result.length
                found.travelled.add_report(result.report)
                found.travelled.retried, self.seen = result.retried or found.travelled.retried, found.travelled.head
                if job.stopped:
                    return found
        found.values, found.whole = [values[index] for index in range(len(texts))], True
        return found

    def prepare(self) -> None:
        """While nobody asks, the parties make what the next request needs if it is like the last."""
        if not self.talks:
            self.client.prepare(self._length)
            return
        with self._turn:
            seat = self._last
            if seat not in self._free:
                return
            self._free.remove(seat)
        try:
            if seat.talk is not None:
                seat.talk.prepare()
        finally:
            with self._turn:
                self._free.append(seat)

    def _room(self, prefix: int) -> int:
        from ...models.generation.rows import room

        return prefix + room(self.part.for_length().program)

    def _fit(self, text: Any, place: str, truncate: Truncation) -> tuple[int, int]:
        """(the length that a text is padded to, its tokens). Errors: ApiError."""
        try:
            return self.part.fit(text, None, truncate, self.ways)
        except BlindformerError as error:
            code = "context_length_exceeded" if isinstance(error, TooLong) else "refused_by_model"
            raise ApiError(400, f"{place}: {error}", param=field_of(place), code=code) from None

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Whether the other parties answer goes into `state`."""
        try:
            yield
            self.state = "ready"
        except (PeerError, LaunchError) as error:
            self.state = str(error)
            raise

    @contextmanager
    def _seated(self, ids: Sequence[int]) -> Iterator[Seat]:
        """A free conversation: there are as many as requests at once."""
        with self._turn:
            seat = max(self._free, key=lambda seat: (seat.common(ids), seat.talk is None))
            self._free.remove(seat)
        try:
            yield seat
        finally:
            with self._turn:
                self._free.append(seat)

    def _conversation(self, seat: Seat) -> Conversation:
        assert isinstance(self.client, Client)
        seat.talk = seat.talk or self.client.conversation(seat.told)
        return seat.talk


class Offered:
    """All models by name, and the threads that ask them. `truncate`: where texts are cut, unless a request says."""

    def __init__(self, settings: Settings) -> None:
        """Errors: those of clients."""
        mine, self.models = settings.gateway, dict[str, OfferedModel]()
        self.truncate: Truncation = mine.truncate
        sections = mine.models or {"": GatewayModel(folder=settings.client.folder)}
        self._pool = ThreadPoolExecutor(len(sections) * mine.conversations, "gateway")
        try:
            for name, section in sections.items():
                client = _client(settings, section)
                name = name or served_name(section.folder) or client.part.name
                self.models[name] = OfferedModel(
                    name, client, mine.queue, mine.conversations, here=section.server == LOCAL
                )
        except BaseException:
            self.close()
            raise
        self._jobs: set[Job[Any]] = set()

    def find(self, name: str) -> OfferedModel:
        """Errors: ApiError."""
        if name not in self.models:
            what = f"model {name[:100]!r}: is not offered here; give one of {', '.join(self.models)}"
            raise ApiError(404, what, param="model", code="model_not_found")
        return self.models[name]

    def only(self, name: str, wanted: Callable[[OfferedModel], bool], what: str) -> OfferedModel:
        """The model of this name, or the only one that does `what`. Errors: ApiError."""
        if name:
            found = self.find(name)
            if wanted(found):
                return found
        fitting = [model for model in self.models.values() if wanted(model)]
        if len(fitting) == 1 and not name:
            return fitting[0]
        names = ", ".join(model.name for model in fitting) or "none is offered"
        if name:
            what = f"model {name}: does not do {what}, it is for {found.task}; give one that does: {names}"
            raise ApiError(400, what, param="model")
        raise ApiError(400, f"model: name one that does {what}: {names}", param="model")

    async def begin(self, model: OfferedModel, work: Callable[[Job[T]], T]) -> Job[T]:
        """Wait for a place at the model, and begin. Errors: ApiError where too many wait."""
        await model.line.enter()
        job = Job(model.line, self._pool, work)
        self._jobs.add(job)
        job.on_end(self._jobs.discard)
        return job

    async def open(self, model: OfferedModel) -> None:
        """Requests wait meanwhile."""
        await self._between(model, model.open)

    async def prepare(self, model: OfferedModel) -> None:
        """After an answer has been sent: who waits for one must not wait for this. Errors are the next request's."""
        if model.line.running == 0:
            with suppress(BlindformerError):
                await self._between(model, model.prepare)

    async def _between(self, model: OfferedModel, work: Callable[[], None]) -> None:
        """In a thread, with a place in the line."""
        await model.line.enter()
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(lambda _: model.line.leave(model.line.seconds))
        await asyncio.shield(future)

    def stop(self) -> None:
        """End what runs, after the step that it is at."""
        for job in list(self._jobs):
            job.stop()

    def close(self) -> None:
        """When what runs has ended."""
        self._pool.shutdown()
        for model in self.models.values():
            model.client.close()


def _client(settings: Settings, section: GatewayModel) -> BaseClient:
    local = section.server == LOCAL
    given: dict[str, Any] = {"folder": section.folder, "timeout": settings.session.timeout}
    if not local:
        folder = section.certificates or settings.certificates.folder
        given |= {"dealer": _said(section.dealer), "helper": _said(section.helper), "certificates": folder}
        given |= {"config": settings.file, "wait": settings.client.wait, "cache": settings.client.cache}
        if settings.session.topology != "dealer":
            given["topology"] = settings.session.topology
    served = find_served(settings.session.protocol)
    if not served.helpers:  # a protocol without a dealer
        given = {name: value for name, value in given.items() if name not in ("dealer", "helper", "cache")}
    return open_client(settings.session.protocol, LOCAL if local else _said(section.server), **given)


def _said(address: object) -> str | None:
    return None if address is None else str(address)
