"""One model of the gateway: its client, the queue of its requests, and the conversations that they take turns in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import BlindformerError
from ...models.artifacts import adapters_in
from ...models.loading.huggingface import InputError
from ...models.loading.media import open_audio
from ...models.loading.packaged import PACKAGED
from ...models.loading.truncation import IN_REQUESTS, TooLong, Truncation
from ...protocols.errors import PeerError
from ..client.base import BaseClient
from ..client.client import Client
from ..client.session import LOST
from ..config import GatewayModel, Settings
from ..launch import LOCAL
from ..launch.processes import LaunchError
from ..registry import DEFAULT, compiled_for, find_served, open_client
from ..reports.report import Report
from ..session.online import Answer
from . import served_name
from .problems import ApiError, GatewayError, as_api_error, field_of, input_place, invalid_image, too_long
from .request_queue import Job, RequestQueue
from .requests import image_files

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion, Conversation
    from ...models.generation.logprobs import Logprobs

MOST_AUDIO_SECONDS = 3600  # of a request: 230 MB of samples, and a file of 25 MB at 8,000 bytes a second
VECTORS = ("text_embeds",)  # of an encoder whose answer is not one list of numbers


@dataclass
class RequestCost:
    """What a request cost: bytes from this machine to the server and back, rounds, and `passes` through the model.
    `offline_bytes` went from the dealer to the server, and in part on to this machine. `head`: the first bytes sent in
    the last pass."""

    sent_bytes: int = 0
    received_bytes: int = 0
    offline_bytes: int = 0
    rounds: int = 0
    passes: int = 0
    head: str = ""
    retried: str = ""

    def add_pass(self, answer: Answer) -> None:
        timings = answer.timings
        online = timings.online
        self._add(online.sent, online.received, timings.offline_bytes, timings.rounds, timings.sent_head)

    def add_report(self, report: Report | None, passes: int) -> None:
        if report is not None:
            received = report.online_bytes - report.sent_bytes
            self._add(report.sent_bytes, received, report.offline_bytes, report.rounds, report.sent_head, passes)

    def _add(self, sent: int, received: int, offline: int, rounds: int, head: str, passes: int = 1) -> None:
        self.sent_bytes += sent
        self.received_bytes += received
        self.offline_bytes += offline
        self.rounds += rounds
        self.passes += passes
        self.head = head

    def to_dict(self) -> dict[str, Any]:
        """All but `head`, which people look at (`ModelPool.seen`)."""
        left_out = {"head"} if self.retried else {"head", "retried"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass
class RequestAnswer:
    """The values of texts, or the completions of prompts, in their order. `tokens`: how many were read, of which the
    conversation had read `cached` before. `language`: of a recording, "en". `finish`: of a text that was written
    about one. `truncated`: how many tokens were cut off texts, by their places in the request. `whole`: the request was
    not cancelled."""

    cost: RequestCost = field(default_factory=RequestCost)
    tokens: int = 0
    cached: int = 0
    language: str = ""
    finish: str = ""
    truncated: dict[str, int] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    whole: bool = False

    @property
    def total(self) -> int:
        """Tokens that were read and written; of images, which have none, how many there were."""
        written = sum(len(completion.tokens) for completion in self.completions)
        return max(self.tokens + written, len(self.values))

    def extra(self) -> dict[str, Any]:
        """The fields that the OpenAI API does not have: the cost, how what was written ended, and what was cut off."""
        more = {"finish": self.finish, "truncated": self.truncated}
        return {**self.cost.to_dict(), **{name: value for name, value in more.items() if value}}


class ConversationSlot:
    """A conversation, and the request that it answers now, if any. `caller`: who has talked in it last. What one has
    said is forgotten before another talks: how much of a prompt was read before would tell who guesses it."""

    def __init__(self) -> None:
        self.caller = ""
        self.conversation: Conversation | None = None
        self.job: Job[RequestAnswer] | None = None
        self.cost = RequestCost()

    def on_pass(self, part: str, answer: Answer) -> None:
        """Called after each pass through the model. A cancelled request ends here."""
        self.cost.add_pass(answer)
        if self.conversation is not None and self.job is not None and self.job.stopped:
            self.conversation.stop()

    def common(self, ids: Sequence[int], caller: str) -> int:
        """How many of these tokens the conversation has read for this caller already."""
        read = [] if self.conversation is None or self.caller != caller else self.conversation.rows.ids
        return next((at for at, (old, new) in enumerate(zip(read, ids, strict=False)) if old != new), len(read))


class ModelPool:
    """A model by its name. `state`: "starting", "ready", or what is wrong. `local`: its parties run on this machine."""

    def __init__(
        self, name: str, client: BaseClient, queue: int, conversations: int = 1, *, local: bool = False
    ) -> None:
        self.name, self.client, self.part = name, client, client.part
        self.created, self.state, self.local = int(time.time()), "starting", local
        self._lost = False  # `state` says who does not answer
        self.talks = self.part.talks
        at_once = 1 if self.part.writes else conversations
        client.sessions.widen(1 if self.talks else at_once)
        self.queue = RequestQueue(at_once, queue)
        client.ways = IN_REQUESTS
        if local and name in PACKAGED:  # `up` knows it by this name
            client.ways = replace(IN_REQUESTS, compile=f"run `blindformer up {name} --lengths {{lengths}}`")
        self.seen = ""  # the first bytes that the server got of the last pass, in base64
        self._slots = [ConversationSlot() for _ in range(at_once)] if self.talks else []
        self._free, self._lock = list(self._slots), threading.Lock()
        self._last_slot, self._last_length = next(iter(self._slots), None), min(self.part.lengths)

    # --- what the model is -------------------------------------------------------------------------------------------
    @property
    def task(self) -> str:
        return "chat" if self.talks else self.client.task

    @property
    def reads_texts(self) -> bool:
        return self.part.task.medium is None

    @property
    def hears(self) -> bool:
        return self.part.kind == "speech"

    @property
    def embeds(self) -> bool:
        return not self.talks and (self.part.kind == "sentence" or any(name in self.part.outputs for name in VECTORS))

    @property
    def classifies(self) -> bool:
        return self.part.kind == "classifier" or self.task == "image-classification"

    @property
    def ranks(self) -> bool:
        """By embeddings; or as a cross-encoder, which gives one score for two texts that are read together."""
        return self.embeds or (self.part.kind == "classifier" and len(self.part.task.labels) == 1)

    @property
    def reveals_scores(self) -> bool:
        """The client learns the scores of all words, not only the next token."""
        return self.part.reveals_scores

    def about(self) -> dict[str, Any]:
        """The facts of a model that the OpenAI API has no field for."""
        return {
            "task": self.task,
            "protocol": self.client.protocol,
            "plan": self.part.about["plan"],
            "lengths": list(self.part.lengths),
            "state": self.state,
            "learned": self.client.who_learned(),
        }

    @property
    def tokenizer(self) -> Any:
        """A language model's; else None."""
        return None if self.part.chat is None else self.part.chat.tokenizer

    def as_text(self, prompt: str | list[int]) -> str:
        """A prompt, which may be given as tokens."""
        given = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, **given)

    # --- the pool, in the event loop ---------------------------------------------------------------------------------
    async def open(self) -> None:
        """Meet the other parties; requests wait meanwhile. Errors go into `state`: the next request tries again."""
        await self._upkeep(self._open)

    async def prepare(self) -> None:
        """After an answer has been sent, while nobody asks: the parties make what the next request needs if it is like
        the last. Errors are the next request's."""
        if self.queue.running == 0:
            await self._upkeep(self._prepare)

    async def _upkeep(self, work: Callable[[], None]) -> None:
        with suppress(BlindformerError):
            await (await self.queue.begin(lambda job: work(), upkeep=True)).result()

    def look(self) -> None:
        """See whether the parties answer while nobody asks them. A launcher watches over those of this machine."""
        if self.local or not (self.state == "ready" or self._lost):
            return
        for more in (True, False):
            try:
                self.client.knock()
            except PeerError as error:
                if not more:
                    self.state, self._lost = str(error), True
            else:
                if self._lost:
                    self.state, self._lost = "ready", False
                return

    def close(self) -> None:
        """When what runs has ended."""
        self.queue.close()
        self.client.close()

    # --- what the model does, in a job's thread ----------------------------------------------------------------------
    def _open(self) -> None:
        with self._noting_state():
            if self.talks:
                with self._slot() as slot:
                    self._conversation(slot)
            else:
                self.client.connect()
            self._prepare()

    def _prepare(self) -> None:
        if not self.talks:
            self.client.prepare(self._last_length)
            return
        with self._slot(lambda slot: slot is self._last_slot) as slot:
            if slot is self._last_slot and slot.conversation is not None:
                slot.conversation.prepare()

    def prompt(self, make: Callable[[Any], list[int]], param: str) -> list[int]:
        """The tokens that `make` makes of the model's chat. Errors: ApiError."""
        if not self.talks or self.part.chat is None:
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
        caller: str = "",
    ) -> RequestAnswer:
        """Continue each of these prompts in the conversation that has read most of it. `logprobs`: by prompt, the
        object that collects its tokens' log-probabilities. Errors: BlindformerError."""
        answer = RequestAnswer()
        for ids, collected in zip(prompts, logprobs, strict=True):
            with (
                self._noting_state(),
                self._slot(lambda slot, ids=ids: (slot.common(ids, caller), slot.conversation is None)) as slot,
            ):
                slot.job, slot.cost = job, answer.cost
                if slot.conversation is not None and slot.caller != caller:
                    slot.conversation.rows.crop(0)
                slot.caller = caller
                try:
                    conversation = self._conversation(slot)
                    if job.stopped:
                        return answer
                    reply = conversation.answer(ids, job.say, collected, **options)
                    self._note_cost(answer.cost, reply.retried)
                    answer.tokens += len(ids)
                    answer.cached += len(ids) - conversation.rows.asked
                    answer.completions.append(reply)
                    if reply.finish == "interrupted":
                        return answer
                finally:
                    slot.job, self._last_slot = None, slot
        answer.whole = True
        return answer

    def ask(
        self,
        job: Job[RequestAnswer],
        texts: Sequence[Any],
        top_k: int | None = None,
        place: Callable[[int], str] | None = None,
        truncate: Truncation = "off",
        options: Mapping[str, Any] | None = None,
    ) -> RequestAnswer:
        """The model's answers for texts, or pairs of them; for a model of images, data URLs; of speech, samples.
        `place`: what an error calls each. `truncate`: where a text that is too long is cut. `options`: of a model that
        writes. Errors: BlindformerError, the first text's that
        has one."""
        place = place or (lambda at: input_place(at, len(texts)))
        answer, values = RequestAnswer(), dict[int, Any]()
        items = texts if self.reads_texts or self.hears else image_files(texts)
        report: Report | None = None  # the last one: the texts of one query share theirs
        with self._noting_state():
            how: dict[str, Any] = {"options": options, "stopped": lambda: job.stopped}
            for index, result in self.client.stream(items, top_k=top_k, truncate=truncate, **how):
                if result.error is not None:
                    raise self._refused(place(index), result.error)
                values[index], self._last_length = result.value, result.length
                answer.tokens += result.tokens
                answer.language, answer.finish = result.language, result.finish
                if result.truncated:
                    answer.truncated[place(index)] = result.truncated
                if result.report is not report:
                    report = result.report
                    answer.cost.add_report(report, result.passes)
                self._note_cost(answer.cost, result.retried)
                if job.stopped:
                    return answer
        answer.values, answer.whole = [values[index] for index in range(len(texts))], True
        return answer

    def read_recording(self, audio: BytesIO) -> tuple[np.ndarray, float]:
        """The samples of a file, and its seconds. It takes memory and time: call it in a job. Errors: ApiError."""
        rate = self.part.task.feature_extractor.sampling_rate
        try:
            samples = open_audio(audio, rate, most=MOST_AUDIO_SECONDS * rate)
        except InputError as error:
            raise ApiError(400, f"file: {error}", param="file", code="invalid_audio") from None
        return samples, len(samples) / rate

    def _note_cost(self, cost: RequestCost, retried: str) -> None:
        cost.retried, self.seen = retried or cost.retried, cost.head

    def _room(self, prefix: int) -> int:
        return prefix + self.part.room

    def _refused(self, place: str, error: BlindformerError) -> BlindformerError:
        """The error of one item, which names its place in the request if the item itself is at fault."""
        if not isinstance(error, InputError):
            return error
        if not self.reads_texts and not self.hears:  # the image could not be decoded
            return invalid_image(place, error)
        code = "context_length_exceeded" if isinstance(error, TooLong) else "refused_by_model"
        return ApiError(400, f"{place}: {error}", param=field_of(place), code=code)

    @contextmanager
    def _noting_state(self) -> Iterator[None]:
        """Writes into `state` whether the other parties answer."""
        try:
            yield
            self.state, self._lost = "ready", False
        except (PeerError, LaunchError) as error:
            self.state, self._lost = str(error), isinstance(error, LOST)
            raise

    @contextmanager
    def _slot(self, preference: Callable[[ConversationSlot], Any] = lambda slot: 0) -> Iterator[ConversationSlot]:
        """The free conversation that is preferred. There are as many as requests at once, so one is always free."""
        with self._lock:
            slot = max(self._free, key=preference)
            self._free.remove(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._free.append(slot)

    def _conversation(self, slot: ConversationSlot) -> Conversation:
        slot.conversation = slot.conversation or self.client.conversation(slot.on_pass)
        return slot.conversation


def open_pools(settings: Settings) -> dict[str, ModelPool]:
    """The models of the configuration by name. Errors: those of clients."""
    mine, pools = settings.gateway, dict[str, ModelPool]()
    sections = mine.models or {"": GatewayModel(folder=settings.client.folder, adapter=settings.client.adapter)}
    try:
        for name, section in sections.items():
            for called, client in _clients(settings, name, section):
                if client.part.writes and client.part.kind != "speech":
                    client.close()
                    what = "writes about a text, which the gateway has no route for; use query"
                    raise GatewayError(f"{client.part.folder}: {what}")
                pool = ModelPool(called, client, mine.queue, mine.conversations, local=section.server == LOCAL)
                if called in pools:
                    pool.close()
                    raise GatewayError(
                        f"two models are called {called}; give an adapter a section [gateway.models.NAME]: adapter = "
                    )
                pools[called] = pool
    except BaseException:
        for pool in pools.values():
            pool.close()
        raise
    return pools


def _clients(settings: Settings, name: str, section: GatewayModel) -> Iterator[tuple[str, BaseClient]]:
    """A section's model by its name, and the adapters in its folder by theirs, unless the section chooses one."""
    base = _client(settings, section)
    yield name or section.adapter or served_name(section.folder) or base.part.name, base
    if isinstance(base, Client) and not section.adapter:
        for adapter in adapters_in(base.part.folder):
            yield adapter, _client(settings, section, adapter=adapter, beside=base)


def _client(settings: Settings, section: GatewayModel, **more: Any) -> BaseClient:
    protocol = settings.session.protocol
    if protocol == DEFAULT:
        protocol = compiled_for(section.folder) or protocol
    options: dict[str, Any] = {"folder": section.folder, "timeout": settings.session.timeout}
    # Where a protocol has no adapters, one is refused, as an option without a use.
    options |= {"adapter": section.adapter or ("" if protocol == DEFAULT else None), **more}
    hints: dict[str, Any] = {}
    if section.server != LOCAL:
        options |= {
            "certificates": section.certificates or settings.certificates.folder,
            "config": settings.file,
            "wait": settings.client.wait,
        }
        if find_served(protocol).helpers:
            options |= {"dealer": section.dealer, "helper": section.helper}
            hints["cache"] = settings.client.cache
        if settings.session.topology != "dealer":
            options["topology"] = settings.session.topology
        if settings.session.audits:
            options["audits"] = settings.session.audits
    return open_client(protocol, None if section.server is None else str(section.server), hints, **options)
