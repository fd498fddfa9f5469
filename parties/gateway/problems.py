"""What is refused: errors in the OpenAI API's form, a status and {"error": {"message", "type", "param", "code"}}; and
request bodies, read as they come, never beyond what they can be, and not for ever."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import Request

from ...models.compile import AnswerOutOfRange
from ...models.generation.decoder import GenerationError
from ...models.loading.huggingface import InputError
from ...protocols.errors import BlindformerError, PeerError
from ..launch.processes import LaunchError
from ..session.messages import LimitReached, SlotsBusy

INVALID, SERVER, LIMITED = "invalid_request_error", "server_error", "rate_limit_error"
UNSUPPORTED = "unsupported_parameter"  # a code: that API knows it, and it is not done here
LONGEST_WAIT = 600.0  # seconds in Retry-After, at most


class GatewayError(BlindformerError):
    """The gateway cannot start."""


class ApiError(BlindformerError):
    """A request that the gateway does not answer.

    `status`: of the HTTP reply. `param`: the field of the request. `retry_after`: seconds.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.status, self.kind, self.param, self.code, self.retry_after = status, kind, param, code, retry_after
        super().__init__(what)

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["retry-after"] = f"{math.ceil(min(max(self.retry_after, 1.0), LONGEST_WAIT))}"
        return JSONResponse(self.body(), self.status, headers)


def input_place(at: int, count: int) -> str:
    """The name in errors of one of the `count` texts or images of a request."""
    return f"input[{at}]" if count > 1 else "input"


def field_of(place: str) -> str:
    """The field of the request that a place is in."""
    return place.partition("[")[0]


def too_long(tokens: int, most: int, place: str, remedy: str) -> ApiError:
    what = f"{place}: {tokens} tokens, and the model takes {most}; {remedy}"
    return ApiError(400, what, param=field_of(place), code="context_length_exceeded")


def invalid_image(place: str, why: object) -> ApiError:
    return ApiError(400, f"{place}: {why}", param="input", code="invalid_image")


_ANSWERS: tuple[tuple[tuple[type[BlindformerError], ...], int, str, str | None], ...] = (
    ((InputError, GenerationError), 400, INVALID, "refused_by_model"),
    ((AnswerOutOfRange,), 400, INVALID, "answer_out_of_range"),
    ((LimitReached,), 429, LIMITED, "rate_limit_exceeded"),
    ((SlotsBusy,), 503, SERVER, "server_busy"),
    ((PeerError, LaunchError), 502, SERVER, "party_unavailable"),
    ((BlindformerError,), 500, SERVER, None),
)
"""Errors, the first that fits: their status, kind and code."""


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """The API's form of an error. A bug is not described: its message may hold what was asked.

    `param`: the field that a text which the model refuses came in.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refusal):
        return ApiError(error.status, str(error))
    for errors, status, kind, code in _ANSWERS:
        if isinstance(error, errors):
            field, wait = param if status == 400 else None, getattr(error, "retry_after", None)
            return ApiError(status, str(error), kind=kind, param=field, code=code, retry_after=wait)
    return ApiError(500, "the gateway failed; its log names the place", kind=SERVER, code="internal_error")


LINGER_BYTES, LINGER_SECONDS = 64 << 20, 20.0


class Refusal(BlindformerError):
    """An HTTP request that is not answered. `status`: of the reply. The message is one line that says what to do."""

    def __init__(self, status: int, what: str) -> None:
        self.status = status
        super().__init__(what)


class Bodies:
    """`silence`: seconds between two pieces; `whole`: seconds for all of them."""

    def __init__(self, silence: float, whole: float) -> None:
        self.silence, self.whole = silence, whole

    async def pieces(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """The body, piece by piece. Errors: Refusal: 413 beyond the limit, 408 for one that is slow, 400 if it ends."""
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise Refusal(413, f"{declared} bytes are more than this can be ({limit})")
        clock, size = asyncio.get_running_loop().time, 0
        deadline, more = clock() + self.whole, True
        while more:
            left = max(0.0, min(self.silence, deadline - clock()))
            try:
                message = await asyncio.wait_for(request.receive(), left)
            except TimeoutError:
                raise Refusal(408, "the body did not come in time; send it faster, or wait less between") from None
            if message["type"] != "http.request":
                raise Refusal(400, "the body ended early; send it whole")
            piece, more = message.get("body", b""), message.get("more_body", False)
            request.state.ended = not more
            size += len(piece)
            if size > limit:
                raise Refusal(413, f"the body is longer than this can be ({limit} bytes)")
            yield piece

    async def all(self, request: Request, limit: int) -> bytes:
        return b"".join([piece async for piece in self.pieces(request, limit)])

    @asynccontextmanager
    async def lingering(self, request: Request) -> AsyncIterator[None]:
        """Where something is refused before its body has passed, let the rest pass by, within bounds: a peer that is
        still sending would not read why."""
        try:
            yield
        except BlindformerError:
            if not getattr(request.state, "ended", False):
                with suppress(Refusal, TimeoutError):
                    async with asyncio.timeout(LINGER_SECONDS):
                        async for _ in self.pieces(request, LINGER_BYTES):
                            pass
            raise
