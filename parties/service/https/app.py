"""The service's HTTP interface. Only the certificate says who asks; serving.py puts it into a request's state."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from ....protocols.ckks.facts import CircuitNeeds, facts_from
from ....protocols.ckks.frames import FrameReader, OtherProgram, most
from ....protocols.ckks.sealed import SealedError
from ....versions import my_version
from ...session.compute_slots import LimitReached, SlotsBusy
from ..quota import QuotaError, quota_in_words, quota_of
from ..service import Service
from .bodies import Bodies, Refusal, revoked
from .queries import SERVER, EncryptedQuery, KeySet, KeyStore, RequestAdmission, status_of
from .schema import (
    ABOUT,
    LINES,
    CircuitInfo,
    Health,
    Interface,
    Model,
    Models,
    Name,
    Program,
    Reserved,
    docs_page,
    message,
    refusals,
)
from .workers import Workers

GB = 1e9
UPLOADS = 4  # clients that send keys at the same time
FIRST_SECONDS = 5.0  # a reply begins after so long, whether the query computes yet or waits
NOTHING_ELSE = "default-src 'none'; style-src 'unsafe-inline'"


class RequestService(Service):
    """What the service does with requests; serving.py adds their connections.

    labels     the model's name and plan, and this version
    facts      by program
    stopping   no more is taken
    """

    stopping = False

    def begin(self, workers: Workers, description: dict[str, Any]) -> None:
        """`description`: what the workers say of the model."""
        mine, limits = self.settings.server, self.limits
        facts = [facts_from(item, secure=False) for item in description["ready"]]
        lengths = ", ".join(f"N = {item.parameters.degree} for {item.texts} {description['word']}s" for item in facts)
        self.quota = quota_of(mine, max(item.texts for item in facts))
        self.programs = [item.program for item in facts]
        self.about = f"{description['name']}, plan {description['plan']}, {lengths}"
        self.limit = quota_in_words(self.quota)
        self.labels = {"name": description["name"], "plan": description["plan"], "version": my_version()}
        self.facts, self.workers = {item.program: item for item in facts}, workers
        self.admission = RequestAdmission(limits.model_copy(update={"sessions": self.places}))
        self.store = KeyStore(
            self.scratch,
            most_bytes=int(mine.keys_gb * GB),
            most_sets=limits.sessions,
            each=limits.sessions_each,
            seconds=mine.keys_seconds,
            forgotten=self._on_forgotten,
        )
        self.bodies = Bodies(self.timeout, limits.query_seconds)
        # How many queries, and how many sets of keys, may arrive at a time.
        self.query_bodies = asyncio.Semaphore(limits.queue + limits.workers)
        self.key_bodies = asyncio.Semaphore(UPLOADS)
        self._tasks = set[asyncio.Task[None]]()

    @property
    def places(self) -> int:
        """Requests at a time: for keys and for queries, and a few beside."""
        return self.limits.sessions + self.limits.queue + self.limits.workers + UPLOADS

    def model(self, program: str) -> CircuitNeeds:
        if program not in self.facts:
            known = ", ".join(name[:16] for name in self.facts)
            raise Refusal(404, f"program {program[:16]}: is not served here (served: {known}); get the client's folder")
        return self.facts[program]

    async def take(self, item: KeySet, request: Request) -> None:
        """A client's keys onto the disk, held to their sizes as they come. The first query that needs them loads them.

        Errors: Refusal, SlotsBusy, SealedError.
        """
        if self.key_bodies.locked():  # nothing awaits from here to the semaphore, so nobody waits in it
            raise SlotsBusy(SERVER, 10, "others are sending keys")
        if item.taking or item.whole:
            raise Refusal(409, "these keys are here, or on their way; ask for another name")
        item.taking = True
        try:
            async with self.key_bodies:
                await self._receive_keys(item, request)
        except OSError:
            raise SlotsBusy(SERVER, 60, "it has no room for keys on its disk") from None
        finally:
            item.taking = False
            if not item.whole:
                self.store.drop(item)

    async def _receive_keys(self, item: KeySet, request: Request) -> None:
        expected, started, size = item.facts.key_items(), time.perf_counter(), 0
        reader = FrameReader("keys", item.facts.program, expected)
        async for piece in self.bodies.pieces(request, most(expected)):
            size += len(piece)
            for part, data in reader.feed(piece):
                await asyncio.to_thread((item.folder / str(part.number)).write_bytes, data)
        reader.end()
        item.whole = True
        took = time.perf_counter() - started
        self.log.info("keys-received", session=item.name, owner=item.owner, bytes=size, seconds=took)

    async def answer(self, item: KeySet, request: Request) -> AsyncIterator[bytes]:
        """A query's lines, once it computes. Errors: Refusal, SlotsBusy, LimitReached, QuotaError.

        A request counts as all the texts that it has places for: which of them are filled, nobody here can see.
        """
        expected = item.facts.request_items()
        limit = most(expected)
        who = (request.state.name, item.facts.texts)
        if self.quota is not None:
            await asyncio.to_thread(self.quota.check, *who)
        connection: int = request.state.connection
        self.admission.check(connection)
        if self.query_bodies.locked():
            raise SlotsBusy(SERVER, 5, "others are sending queries")
        async with self.query_bodies:
            body = await self.bodies.all(request, limit)
        reader = FrameReader("request", item.facts.program, expected)
        reader.feed(body)
        reader.end()
        if self.identity.revoked(item.serial):  # while its body came
            raise revoked()
        if self.quota is not None:
            self.admission.check(connection)  # what finds no place is not counted
            await asyncio.to_thread(self.quota.spend, *who)
        query = EncryptedQuery(item, body, connection)
        task = asyncio.create_task(self._compute(query))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            async with asyncio.timeout(FIRST_SECONDS):
                await query.first()
        except TimeoutError:
            pass  # it waits for a worker: whatever is wrong with it, a line will say
        except BaseException:
            query.abandon()
            raise
        return _lines(query)

    async def _compute(self, query: EncryptedQuery) -> None:
        await query.run(self.admission, self.workers)
        who: dict[str, Any] = {"session": query.keys.name, "owner": query.keys.owner}
        if isinstance(query.refusal, Refusal) and query.refusal.status >= 500:
            self.log.error("query-failed", **who, what=str(query.refusal))
        if query.sent:
            self.log.info("answered", **who, seconds=query.seconds, bytes=len(query.body) + query.sent)
            self.metrics.add("queries")
            self.metrics.add("bytes", len(query.body), "received")
            self.metrics.add("bytes", query.sent, "sent")
            self.metrics.observe("seconds", query.seconds, "online")

    def note(self, owner: str, error: Exception) -> None:
        """Of a request that is refused: for the log and the metrics."""
        kind = type(error).__name__
        if isinstance(error, SlotsBusy):
            self.metrics.add("busy", label="query")
            self.log.warning("busy", owner=owner, what=str(error))
        elif isinstance(error, LimitReached):
            self.metrics.add("limited")
            self.log.info("limited", owner=owner, what=str(error))
        elif isinstance(error, QuotaError):
            self.metrics.add("errors", label=kind)
            self.log.error("query-failed", owner=owner, what=str(error))
        else:
            self.metrics.add("errors", label=kind)
            self.log.warning("refused", owner=owner, kind=kind, what=str(error))

    def _on_forgotten(self, keys: str) -> None:
        self.workers.forget(keys)
        self.log.info("keys-gone", session=keys)


async def _lines(query: EncryptedQuery) -> AsyncIterator[bytes]:
    try:
        async for line in query.lines():
            yield json.dumps(line).encode() + b"\n"
    finally:
        query.abandon()


class OnlyClients:
    """Lets clients' certificates in while the service takes anything and has a place; one request a connection."""

    def __init__(self, app: Any, service: RequestService) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        why: Refusal | SlotsBusy | None = None
        if scope["state"].get("role") != "client":
            why = Refusal(403, "this certificate is not a client's; ask with client.pem")
        elif self.service.identity.revoked(scope["state"]["serial"]):  # since it shook hands
            why = revoked()
        elif self.service.stopping:
            why = SlotsBusy(SERVER, 30, "it is stopping")
        else:
            why = scope["state"]["take_place"]()

        async def send_last(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        if isinstance(why, Refusal):
            self.service.log.warning("refused", owner=scope["state"]["peer"], what=str(why))
        await (self.app if why is None else _problem(why))(scope, receive, send_last)


def make_app(service: RequestService) -> FastAPI:
    app = Interface(
        title="Blindformer, encrypted queries",
        version=service.labels["version"],
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
    )

    app.add_middleware(OnlyClients, service=service)

    @app.exception_handler(Refusal)
    @app.exception_handler(SlotsBusy)
    @app.exception_handler(LimitReached)
    @app.exception_handler(QuotaError)
    @app.exception_handler(SealedError)
    async def refused(request: Request, error: Exception) -> JSONResponse:
        service.note(request.state.peer, error)
        return _problem(error)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return _problem(Refusal(error.status_code, f"{request.url.path}: {error.detail}; /docs has what there is"))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(Refusal(400, "the request is not of the form that /docs describes"))

    @app.get("/v1/models", response_description="All programs", responses=refusals())
    async def models() -> Models:
        """What is served: parameters, the Galois elements that keys are needed for, and sizes."""
        models = [
            Model(
                facts=CircuitInfo(**item.to_json()),
                keys_most_bytes=most(item.key_items()),
                request_most_bytes=most(item.request_items()),
                reply_most_bytes=most(item.reply_items()),
                keys_memory_bytes=item.key_memory(),
            )
            for item in service.facts.values()
        ]
        return Models(**service.labels, models=models)

    @app.post("/v1/models/{program}/keys", status_code=201, response_description="Reserved", responses=refusals(404))
    async def reserve(request: Request, program: Program) -> Reserved:
        """Room for a client's evaluation keys, and the name to upload them under. Where room is short, it is taken from
        keys that were used least lately, of this certificate first."""
        item = service.store.reserve(request.state.peer, service.model(program), request.state.serial)
        return Reserved(keys=item.name, expires_s=service.store.seconds)

    @app.put(
        "/v1/keys/{name}",
        status_code=204,
        response_description="All arrived",
        responses=refusals(400, 408, 409, 410, 413),
        openapi_extra=message(
            "A message of keys: relinearisation, the public key, one for each Galois element, in order."
        ),
    )
    async def upload(request: Request, name: Name) -> Response:
        """Upload a client's evaluation keys, once. They decrypt nothing. What is refused is not kept."""
        async with service.bodies.lingering(request):
            await service.take(service.store.find(request.state.peer, name, whole=False), request)
        return Response(status_code=204)

    @app.get("/v1/keys/{name}", response_description="They are", responses=refusals(409, 410))
    async def known(request: Request, name: Name) -> Reserved:
        """Whether keys are still here. To ask counts as use."""
        return Reserved(keys=service.store.find(request.state.peer, name).name, expires_s=service.store.seconds)

    @app.delete("/v1/keys/{name}", status_code=204, response_description="Gone", responses=refusals(410))
    async def drop(request: Request, name: Name) -> Response:
        """Forget keys."""
        service.store.drop(service.store.find(request.state.peer, name, whole=False))
        return Response(status_code=204)

    @app.post(
        "/v1/keys/{name}/queries",
        response_class=StreamingResponse,
        responses={**LINES, **refusals(400, 408, 409, 410, 413, 429, 500, 504)},
        openapi_extra=message("A request: its ciphertexts, in order."),
    )
    async def query(request: Request, name: Name) -> StreamingResponse:
        """Ask. The reply is a line after each step, and one with the answer, encrypted. Leave, and it is stopped."""
        async with service.bodies.lingering(request):
            item = service.store.find(request.state.peer, name)
            return StreamingResponse(await service.answer(item, request), media_type="application/x-ndjson")

    @app.get("/v1/health", response_description="It answers", responses=refusals())
    async def health() -> Health:
        """Whether it answers, and goes on to."""
        return Health(healthy=True, stopping=service.stopping)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """This interface in words, without a script or anything from elsewhere."""
        return HTMLResponse(docs_page(app.openapi()), headers={"content-security-policy": NOTHING_ELSE})

    return app


def _problem(error: Exception) -> JSONResponse:
    """The reply to a request that is not answered."""
    body: dict[str, Any] = {"error": str(error)}
    if isinstance(error, LimitReached):
        status, body["limit"] = 429, {"each": error.each, "period_s": error.period}
    elif isinstance(error, SealedError):
        status = 409 if isinstance(error, OtherProgram) else 400
    elif isinstance(error, QuotaError):
        status, body["error"] = 500, "queries cannot be counted, so none are answered; see the server's log"
    else:
        assert isinstance(error, Refusal | SlotsBusy)
        status = status_of(error)
    later = isinstance(error, SlotsBusy | LimitReached)
    return JSONResponse(body, status, {"retry-after": f"{math.ceil(error.retry_after)}"} if later else None)
