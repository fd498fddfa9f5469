"""Errors in the OpenAI API's form: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
from typing import Any

from fastapi.responses import JSONResponse

from ...errors import BlindformerError
from ...models.compile import AnswerOutOfRange
from ...models.generation.decoder import GenerationError
from ...models.loading.huggingface import InputError
from ...protocols.errors import PeerError
from ..launch.processes import LaunchError
from ..session.compute_slots import LimitReached, SlotsBusy
from .bodies import Refusal

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
