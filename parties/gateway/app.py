"""The gateway's HTTP interface: the OpenAI API's routes, classifying and ranking, health, metrics, a page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from ...errors import BlindformerError
from ...models.generation.logprobs import Spelling
from ...models.loading.truncation import Truncation
from ..service.logs import Log
from ..service.metrics import Metrics
from .access import People
from .model_pool import ModelPool, RequestAnswer
from .problems import SERVER, UNSUPPORTED, ApiError, Bodies, as_api_error
from .replies import (
    KEEP_ALIVE,
    MOST_AUDIO_BYTES,
    AnswerText,
    Completions,
    TranscriptionRequest,
    classification,
    embeddings,
    event,
    model_object,
    ranking,
    read_form,
    transcription,
)
from .request_queue import Gone, Job, while_connected
from .requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingsRequest,
    RerankRequest,
    Sampling,
    TextsRequest,
    alternating,
)

Work = Callable[[Job[RequestAnswer]], RequestAnswer]
MOST_BYTES = 4 << 20  # of a body
MOST_HELD = 256 << 20  # of all bodies that are on their way, or whose requests are not answered yet
BODY_SILENCE, BODY_SECONDS = 20.0, 60.0
FIRST_SECONDS = 1.0  # a stream begins after so long; an error that comes before has a status of its own
PATIENCE = 10.0  # seconds without a piece of text, after which a stream sends a comment
DISCONNECTED = 499  # a status that nobody reads
PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass
class Gateway:
    """What the routes share: the models by name, and `truncate`: where texts are cut, unless a request says."""

    models: dict[str, ModelPool]
    truncate: Truncation
    log: Log
    metrics: Metrics
    people: People
    stopping: bool = False
    bytes_of_bodies: int = 0

    def __post_init__(self) -> None:
        self._bodies = Bodies(BODY_SILENCE, BODY_SECONDS)

    def stop(self) -> None:
        """Refuse new requests, and cancel the running ones after their current step."""
        self.stopping = True
        for model in self.models.values():
            model.queue.stop()

    @property
    def ready(self) -> bool:
        return all(model.state == "ready" for model in self.models.values()) and not self.stopping

    def find(self, name: str) -> ModelPool:
        """Errors: ApiError."""
        if name not in self.models:
            what = f"model {name[:100]!r}: is not offered here; give one of {', '.join(self.models)}"
            raise ApiError(404, what, param="model", code="model_not_found")
        return self.models[name]

    def find_for(self, name: str, does: Callable[[ModelPool], bool], task: str) -> ModelPool:
        """The model of this name, or without one the only model that does `task`. Errors: ApiError."""
        fitting = [model for model in self.models.values() if does(model)]
        names = ", ".join(model.name for model in fitting) or "none is offered"
        if name:
            model = self.find(name)
            if model in fitting:
                return model
            what = f"model {name}: does not do {task}, it is for {model.task}; give one that does: {names}"
            raise ApiError(400, what, param="model")
        if len(fitting) == 1:
            return fitting[0]
        raise ApiError(400, f"model: name one that does {task}: {names}", param="model")

    def problem(self, error: BaseException) -> ApiError:
        """The error as the caller gets it, counted and logged. For a bug, the log has its place, never the request."""
        problem = as_api_error(error)
        if problem.code == "internal_error":
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.log.error("request-failed", kind=type(error).__name__, what=f"at {last.filename}:{last.lineno}")
        if problem.code == "party_unavailable":
            self.log.warning("party-gone", what=str(error))
        busy = problem.status in (429, 503)
        label = "request" if busy else problem.code or type(error).__name__
        self.metrics.add("busy" if busy else "errors", label=label)
        return problem

    def snapshot(self) -> str:
        """The metrics, as Prometheus reads them."""
        queues = [model.queue for model in self.models.values()]
        self.metrics.set("running", sum(queue.running for queue in queues))
        self.metrics.set("queued", sum(queue.waiting for queue in queues))
        return self.metrics.text()

    async def admit(self, caller: str) -> None:
        """Errors: ApiError where this person may not ask now."""
        try:
            await asyncio.to_thread(self.people.admit, caller)
        except ApiError as error:
            self.metrics.add("limited")
            self.log.warning("limited", person=caller, what=str(error), seconds=error.retry_after or 0.0)
            raise

    def counted(self, work: Work, model: ModelPool, caller: str) -> Work:
        """The same, which counts what it has read and written against the caller's limit, however it ends."""

        def run(job: Job[RequestAnswer]) -> RequestAnswer:
            started = time.perf_counter()
            answer = work(job)
            self.people.count(caller, answer.total)
            seconds, size = time.perf_counter() - started, answer.cost.sent_bytes + answer.cost.received_bytes
            self.log.info("answered", person=caller, model=model.name, number=answer.total, seconds=seconds, bytes=size)
            return answer

        return run

    def count(self, answer: RequestAnswer, seconds: float) -> None:
        """Errors: ApiError where the answer was cancelled because the gateway stops."""
        if not answer.whole:
            what = "the gateway stopped meanwhile; ask again when it has started"
            raise ApiError(503, what, kind=SERVER, retry_after=5)
        self.metrics.add("queries", max(len(answer.values), len(answer.completions), 1))
        self.metrics.add("bytes", answer.cost.sent_bytes, "sent")
        self.metrics.add("bytes", answer.cost.received_bytes, "received")
        self.metrics.observe("seconds", seconds, "online")

    @asynccontextmanager
    async def body(self, request: Request, most: int = MOST_BYTES) -> AsyncIterator[bytes]:
        """A request's body, which counts until the request is answered: what all bodies may take is bounded, and until
        one is here it counts as what it announces. Errors: ApiError, Refusal."""
        if self.stopping:
            raise ApiError(503, "the gateway stops; ask again when it has started", kind=SERVER, retry_after=5)
        announced = request.headers.get("content-length", "")
        size = min(int(announced), most) if announced.isdigit() else most
        async with self._bodies.lingering(request):
            await self.admit(request.state.caller)
            if self.bytes_of_bodies + size > MOST_HELD:
                what = "others are sending as much as the gateway holds; ask again in a moment"
                raise ApiError(503, what, kind=SERVER, code="server_busy", retry_after=5)
        self.bytes_of_bodies += size
        try:
            async with self._bodies.lingering(request):
                body = await self._bodies.all(request, most)
            self.bytes_of_bodies += len(body) - size
            size = len(body)
            yield body
        finally:
            self.bytes_of_bodies -= size

    def parse(self, body: bytes) -> Any:
        """A body's JSON. Errors: ApiError."""
        try:
            value = json.loads(body)
            if b"\\ud" in body.lower():  # half a character, which no tokenizer takes
                json.dumps(value, ensure_ascii=False).encode()
            return value
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is not JSON; send it with content-type application/json") from None


def make_app(gateway: Gateway) -> FastAPI:
    """Every route. Whoever serves it puts a `Guard` before it."""
    app = FastAPI(title="Blindformer gateway", docs_url=None, redoc_url=None, openapi_url=None)
    metrics = gateway.metrics

    @app.exception_handler(BlindformerError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return gateway.problem(error).response()

    @app.exception_handler(Gone)
    async def disconnected(request: Request, error: Exception) -> Response:
        metrics.add("errors", label="left")
        return Response(status_code=DISCONNECTED)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        there = ", ".join(sorted(getattr(route, "path", "") for route in app.routes))
        what = f"{request.method} {request.url.path[:100]}: {error.detail}; there are {there}"
        return ApiError(error.status_code, what).response()

    async def run(model: ModelPool, caller: str, work: Work) -> RequestAnswer:
        """The result of `work`, which ends when the caller disconnects."""
        started = time.perf_counter()
        job = await model.queue.begin(gateway.counted(work, model, caller), caller)
        try:
            answer = await job.result()
        finally:
            job.stop()
        gateway.count(answer, time.perf_counter() - started)
        return answer

    async def run_texts(
        asked: TextsRequest, model: ModelPool, caller: str, items: Sequence[Any], **options: Any
    ) -> RequestAnswer:
        cut = asked.cut(gateway.truncate, model.reads_texts)
        return await run(model, caller, lambda job: model.ask(job, items, truncate=cut, **options))

    def reply(model: ModelPool, value: Any) -> Response:
        return JSONResponse(value, background=BackgroundTask(model.prepare))

    async def complete(
        asked: Sampling, model: ModelPool, caller: str, prompts: list[list[int]], leads: Sequence[str], chat: bool
    ) -> Response:
        """`leads`: the text that each answer begins with, its prompt where that is to be echoed."""
        options, spelling = asked.options(), Spelling(model.tokenizer)
        if asked.most_likely is not None and not model.reveals_scores:
            what = "logprobs: this model reveals only the token; leave it out, or compile with --reveal scores"
            raise ApiError(400, what, param="logprobs", code=UNSUPPORTED)
        replies = Completions(asked.model, chat, spelling)
        texts = [AnswerText(asked.stop, lead, asked.most_likely, spelling) for lead in leads]

        def work(job: Job[RequestAnswer]) -> RequestAnswer:
            return model.answer(job, prompts, [text.logprobs for text in texts], options, caller)

        if not asked.stream:
            return reply(model, replies.whole(texts, await run(model, caller, work)))
        started = time.perf_counter()
        job = await model.queue.begin(gateway.counted(work, model, caller), caller)
        try:
            await job.begun(FIRST_SECONDS)
        except BaseException:
            job.stop()
            raise
        events = stream(job, texts[0], replies, asked.stream_options.include_usage, started)
        background = BackgroundTask(model.prepare)
        return JobStream(events, job, media_type="text/event-stream", background=background)

    async def stream(
        job: Job[RequestAnswer], text: AnswerText, replies: Completions, with_usage: bool, started: float
    ) -> AsyncIterator[bytes]:
        """Events, as the answer comes. An error is the last one."""
        try:
            yield replies.first()
            async for piece in job.pieces(PATIENCE):
                if not piece:
                    yield KEEP_ALIVE
                elif shown := text.feed(piece):
                    yield replies.piece(shown, text)
            answer = await job.result()
            gateway.count(answer, time.perf_counter() - started)
            yield replies.piece(text.rest(), text, last=True)
            yield replies.last(text, answer, with_usage)
        except Exception as error:
            yield event(gateway.problem(error).body())

    async def chat(body: Any, caller: str) -> Response:
        asked = ChatRequest.read(body)
        model, messages = gateway.find(asked.model), alternating(asked.messages)
        ids = await asyncio.to_thread(model.prompt, lambda chat: chat.prompt(messages), "messages")
        return await complete(asked, model, caller, [ids], [""], chat=True)

    async def continue_texts(body: Any, caller: str) -> Response:
        asked = CompletionRequest.read(body)
        model = gateway.find(asked.model)

        def tokenize() -> tuple[list[list[int]], list[str]]:
            ids = [model.prompt(lambda chat, text=text: chat.text(text), "prompt") for text in asked.prompt]
            return ids, [model.as_text(text) if asked.echo else "" for text in asked.prompt]

        return await complete(asked, model, caller, *await asyncio.to_thread(tokenize), chat=False)

    async def embed(body: Any, caller: str) -> Response:
        asked = EmbeddingsRequest.read(body)
        gateway.find(asked.model)
        model = gateway.find_for(asked.model, lambda model: model.embeds, "embeddings")
        return reply(
            model, embeddings(model, await run_texts(asked, model, caller, asked.input), asked.encoding_format)
        )

    async def classify(body: Any, caller: str) -> Response:
        asked = ClassifyRequest.read(body)
        model = gateway.find_for(asked.model, lambda model: model.classifies, "classification")
        return reply(
            model, classification(model, await run_texts(asked, model, caller, asked.input, top_k=asked.top_k))
        )

    async def rerank(body: Any, caller: str) -> Response:
        asked = RerankRequest.read(body)
        model = gateway.find_for(asked.model, lambda model: model.ranks, "ranking")
        texts, before = [document.text for document in asked.documents], int(model.embeds)
        items = [asked.query, *texts] if before else [(asked.query, text) for text in texts]

        def place(at: int) -> str:
            return f"documents[{at - before}]" if at >= before else "query"

        return reply(model, ranking(model, await run_texts(asked, model, caller, items, place=place), asked))

    async def transcribe_file(asked: TranscriptionRequest, audio: BytesIO, caller: str) -> Response:
        model = gateway.find_for(asked.model, lambda model: model.hears, "transcription")
        options, seconds = {"language": asked.language} if asked.language else {}, 0.0

        def work(job: Job[RequestAnswer]) -> RequestAnswer:
            nonlocal seconds
            samples, seconds = model.read_recording(audio)
            return model.ask(job, [samples], options=options)

        answer = await run(model, caller, work)
        reply = transcription(asked, answer.values[0]["text"].strip(), answer.language, seconds, answer.extra())
        reply.background = BackgroundTask(model.prepare)
        return reply

    def add_route(path: str, answer: Callable[[Any, str], Coroutine[Any, Any, Response]]) -> None:
        async def route(request: Request) -> Response:
            async with gateway.body(request) as body:
                return await while_connected(request, answer(gateway.parse(body), request.state.caller))

        app.add_api_route(path, route, methods=["POST"], response_model=None)

    @app.post("/v1/audio/transcriptions", response_model=None)
    async def transcribe(request: Request) -> Response:
        async with gateway.body(request, MOST_AUDIO_BYTES) as body:
            asked, audio = await read_form(request.headers, body)
            return await while_connected(request, transcribe_file(asked, audio, request.state.caller))

    add_route("/v1/chat/completions", chat)
    add_route("/v1/completions", continue_texts)
    add_route("/v1/embeddings", embed)
    add_route("/classify", classify)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):  # Jina's, and Cohere's
        add_route(path, rerank)

    @app.get("/v1/models")
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_object(model) for model in gateway.models.values()]})

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str) -> JSONResponse:
        return JSONResponse(model_object(gateway.find(name)))

    @app.get("/seen/{name:path}")
    async def seen(name: str) -> JSONResponse:
        """The first bytes that the server got of the last pass, to look at."""
        return JSONResponse({"head": gateway.find(name).seen})

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the gateway answers, and whether each model's parties do."""
        states = {name: model.state for name, model in gateway.models.items()}
        good = gateway.ready
        shown = {name: state if state in ("ready", "starting") else "unavailable" for name, state in states.items()}
        return JSONResponse({"healthy": good, "models": shown}, 200 if good else 503)

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """Whether the parties of all models answer now."""
        good = gateway.ready
        return JSONResponse({"ready": good, "stopping": gateway.stopping}, 200 if good else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(gateway.snapshot(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def show_page() -> HTMLResponse:
        text, policy = page()
        return HTMLResponse(text, headers={"content-security-policy": policy})

    return app


class JobStream(StreamingResponse):
    """Stops its job when it ends, for whatever reason."""

    def __init__(self, content: AsyncIterator[bytes], job: Job[Any], **options: Any) -> None:
        super().__init__(content, **options)
        self._job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.stop()


@cache
def page() -> tuple[str, str]:
    """The page's HTML, and the Content-Security-Policy that lets it run its own script and style, and nothing else."""
    text = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for name in ("script", "style"):
        (inner,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        hashes[name] = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    return text, PAGE_POLICY.format(**hashes)
