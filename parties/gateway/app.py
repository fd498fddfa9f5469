"""The gateway's HTTP interface: the OpenAI API's routes, a plain one for classifiers, health, metrics and one page."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from ...errors import BlindformerError
from ...models.generation.logprobs import Spelling
from ..service.https.bodies import Bodies
from ..service.logs import Log
from ..service.metrics import Metrics
from .answered import RequestAnswer
from .guard import Guard
from .models import Offered, OfferedModel
from .page import page
from .problems import SERVER, UNSUPPORTED, ApiError, as_api_error
from .replies import (
    EXTRA,
    STILL_THERE,
    AnswerText,
    Completions,
    embeddings,
    event,
    model_object,
    models,
    ranking,
    usage,
)
from .requests import (
    ChatRequest,
    ClassifyRequest,
    CompletionRequest,
    EmbeddingsRequest,
    RerankRequest,
    Sampling,
    alternating,
)
from .turns import Gone, Job, while_there

MOST_BYTES = 4 << 20  # of a body
BODY_SILENCE, BODY_SECONDS = 20.0, 60.0
FIRST_SECONDS = 1.0  # a stream begins after so long; an error that comes before has a status of its own
PATIENCE = 10.0  # seconds without a word, until a stream says that it is still there
LEFT = 499  # nobody reads it


@dataclass
class Gateway:
    """What the routes share."""

    offered: Offered
    key: str
    hosts: tuple[str, ...]
    log: Log
    metrics: Metrics
    bodies: Bodies
    stopping: bool = False

    def problem(self, error: BaseException) -> ApiError:
        """What the caller is told, counted and logged. Of a bug, the log says where; never what was asked."""
        found = as_api_error(error)
        if found.code == "internal_error":
            last = traceback.extract_tb(error.__traceback__)[-1]
            self.log.error("request-failed", kind=type(error).__name__, what=f"at {last.filename}:{last.lineno}")
        busy = found.status in (429, 503)
        self.metrics.add(
            "busy" if busy else "errors", label="request" if busy else (found.code or type(error).__name__)
        )
        return found

    def count(self, answered: RequestAnswer, seconds: float) -> None:
        """Errors: ApiError where the answer was ended by the gateway's own end."""
        if not answered.whole:
            what = "the gateway stopped meanwhile; ask again when it has started"
            raise ApiError(503, what, kind=SERVER, retry_after=5)
        travelled = answered.travelled
        self.metrics.add("queries", max(len(answered.values), len(answered.completions), 1))
        self.metrics.add("bytes", travelled.sent_bytes, "sent")
        self.metrics.add("bytes", travelled.received_bytes, "received")
        self.metrics.observe("seconds", seconds, "online")

    async def read(self, request: Request) -> Any:
        """A body's JSON. Errors: ApiError, Refusal."""
        if self.stopping:
            raise ApiError(503, "the gateway stops; ask again when it has started", kind=SERVER, retry_after=5)
        async with self.bodies.lingering(request):
            body = await self.bodies.all(request, MOST_BYTES)
        try:
            found = json.loads(body)
            if b"\\ud" in body.lower():  # half a character, which no tokenizer takes
                json.dumps(found, ensure_ascii=False).encode()
            return found
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is not JSON; send it with content-type application/json") from None


def make_app(gateway: Gateway) -> Guard:
    """All of it, behind its guard."""
    app = FastAPI(title="Blindformer gateway", docs_url=None, redoc_url=None, openapi_url=None)
    offered, metrics = gateway.offered, gateway.metrics

    @app.exception_handler(BlindformerError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return gateway.problem(error).response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        there = ", ".join(sorted(getattr(route, "path", "") for route in app.routes))
        what = f"{request.method} {request.url.path[:100]}: {error.detail}; there are {there}"
        return ApiError(error.status_code, what).response()

    def answering(work: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """A route that ends when its caller leaves, and whose errors are that API's."""

        async def route(request: Request) -> Response:
            try:
                body = await gateway.read(request)
                return await while_there(request, work(body))
            except Gone:
                metrics.add("errors", label="left")
                return Response(status_code=LEFT)
            except Exception as error:
                return gateway.problem(error).response()

        return route

    def afterwards(model: OfferedModel) -> BackgroundTask:
        return BackgroundTask(offered.prepare, model)

    async def run(model: OfferedModel, work: Callable[[Job[RequestAnswer]], RequestAnswer]) -> RequestAnswer:
        """What the work gives. Who leaves ends it."""
        started = time.perf_counter()
        job = await offered.begin(model, work)
        try:
            answered = await job.result()
        finally:
            job.stop()
        gateway.count(answered, time.perf_counter() - started)
        return answered

    async def complete(
        asked: Sampling, model: OfferedModel, prompts: list[list[int]], leads: Sequence[str], chat: bool
    ) -> Response:
        """`leads`: what each answer begins with, its prompt where it is to be echoed."""
        options, spelling = asked.options(), Spelling(model.tokenizer)
        said = Completions(asked.model, chat, spelling)
        if asked.likeliest is not None and not model.tells_scores:
            what = "logprobs: this model reveals only the token; leave it out, or compile with --reveal scores"
            raise ApiError(400, what, param="logprobs", code=UNSUPPORTED)
        told = [AnswerText(asked.stop, lead, asked.likeliest, spelling) for lead in leads]

        def work(job: Job[RequestAnswer]) -> RequestAnswer:
            return model.answer(job, prompts, [one.logprobs for one in told], options)

        if not asked.stream:
            answered = await run(model, work)
            return JSONResponse(said.whole(told, answered), background=afterwards(model))
        started = time.perf_counter()
        job = await offered.begin(model, work)
        try:
            await job.begun(FIRST_SECONDS)
        except BaseException:
            job.stop()
            raise
        streaming = stream(job, told[0], said, asked.stream_options.include_usage, started)
        return Streamed(streaming, job, media_type="text/event-stream", background=afterwards(model))

    async def stream(
        job: Job[RequestAnswer], told: AnswerText, said: Completions, with_usage: bool, started: float
    ) -> AsyncIterator[bytes]:
        """Events, as the answer comes. An error is the last one."""
        try:
            yield said.first()
            async for piece in job.pieces(PATIENCE):
                if not piece:
                    yield STILL_THERE
                elif text := told.feed(piece):
                    yield said.piece(text, told)
            answered = await job.result()
            gateway.count(answered, time.perf_counter() - started)
            yield said.piece(told.rest(), told, last=True)
            yield said.last(told, answered, with_usage)
        except Exception as error:
            yield event(gateway.problem(error).body())

    async def chat(body: Any) -> Response:
        asked = ChatRequest.read(body)
        model, messages = offered.find(asked.model), alternating(asked.messages)
        ids = await asyncio.to_thread(model.prompt, lambda chat: chat.prompt(messages), "messages")
        return await complete(asked, model, [ids], [""], chat=True)

    async def text(body: Any) -> Response:
        asked = CompletionRequest.read(body)
        model = offered.find(asked.model)

        def read() -> tuple[list[list[int]], list[str]]:
            ids = [model.prompt(lambda chat, one=one: chat.text(one), "prompt") for one in asked.prompt]
            return ids, [model.written(one) if asked.echo else "" for one in asked.prompt]

        return await complete(asked, model, *await asyncio.to_thread(read), chat=False)

    async def embed(body: Any) -> Response:
        asked = EmbeddingsRequest.read(body)
        offered.find(asked.model)
        model = offered.only(asked.model, lambda model: model.embeds, "embeddings")
        cut = asked.cut(offered.truncate, model.reads_texts)
        answered = await run(model, lambda job: model.ask(job, asked.input, truncate=cut))
        return JSONResponse(embeddings(model, answered, asked.encoding_format), background=afterwards(model))

    async def classify(body: Any) -> Response:
        asked = ClassifyRequest.read(body)
        model = offered.only(asked.model, lambda model: model.classifies, "classification")
        cut = asked.cut(offered.truncate, model.reads_texts)
        answered = await run(model, lambda job: model.ask(job, asked.input, asked.top_k, truncate=cut))
        said = {"model": model.name, "results": answered.values, "usage": usage(answered)}
        return JSONResponse({**said, EXTRA: answered.extra()}, background=afterwards(model))

    async def rerank(body: Any) -> Response:
        asked = RerankRequest.read(body)
        model = offered.only(asked.model, lambda model: model.ranks, "ranking")
        texts, before = [document.text for document in asked.documents], int(model.embeds)
        items = [asked.query, *texts] if before else [(asked.query, text) for text in texts]

        def place(at: int) -> str:
            return f"documents[{at - before}]" if at >= before else "query"

        cut = asked.cut(offered.truncate, model.reads_texts)
        answered = await run(model, lambda job: model.ask(job, items, place=place, truncate=cut))
        return JSONResponse(ranking(model, answered, asked), background=afterwards(model))

    for path, work in {
        "/v1/chat/completions": chat,
        "/v1/completions": text,
        "/v1/embeddings": embed,
        "/classify": classify,
        "/rerank": rerank,
        "/v1/rerank": rerank,  # as Jina has it, and Cohere
        "/v2/rerank": rerank,
    }.items():
        app.add_api_route(path, answering(work), methods=["POST"], response_model=None)

    @app.get("/v1/models")
    async def listed() -> JSONResponse:
        return JSONResponse(models(list(offered.models.values())))

    @app.get("/v1/models/{name:path}", response_model=None)
    async def one(name: str) -> Response:
        return JSONResponse(model_object(offered.find(name)))

    @app.get("/seen/{name:path}")
    async def seen(name: str) -> JSONResponse:
        """What the server got, to look at: the first bytes of the last pass."""
        return JSONResponse({"head": offered.find(name).seen})

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether it answers, and whether each model's parties do."""
        states = {name: model.state for name, model in offered.models.items()}
        good = all(state == "ready" for state in states.values()) and not gateway.stopping
        said = {name: state if state in ("ready", "starting") else "unavailable" for name, state in states.items()}
        return JSONResponse({"healthy": good, "models": said}, 200 if good else 503)

    @app.get("/metrics")
    async def measured() -> Response:
        lines = [model.line for model in offered.models.values()]
        metrics.set("running", sum(line.running for line in lines))
        metrics.set("queued", sum(line.waiting for line in lines))
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    async def shown() -> HTMLResponse:
        text, policy = page()
        return HTMLResponse(text, headers={"content-security-policy": policy})

    return Guard(app, gateway.key, gateway.hosts)


class Streamed(StreamingResponse):
    """Ends its job when it ends, however that is."""

    def __init__(self, content: AsyncIterator[bytes], job: Job[Any], **options: Any) -> None:
        super().__init__(content, **options)
        self._job = job

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.stop()
