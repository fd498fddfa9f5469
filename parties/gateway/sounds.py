"""Sounds to write down: the form that a request comes in, and the forms of its answer, as the OpenAI API has them."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from io import BytesIO
from typing import Any, ClassVar, Literal

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .problems import ApiError
from .replies import EXTRA
from .requests import ApiRequest

MOST_SOUND_BYTES = 25 << 20  # of a body, as that API has it
_FIELDS = 32
_NO_TIMES = "no times are computed; leave it out"
_LIKELIEST = "the likeliest words are given; leave it out"


class TranscriptionRequest(ApiRequest):
    """`language`: by its two letters; "": the model finds out. A form's values are texts."""

    unused: ClassVar = {
        "chunking_strategy": (("auto",), "a long sound is cut where it is quiet; leave it out"),
        "include[]": ((), "no probabilities are sent; leave it out"),
        "prompt": (("",), "a sound is written down without words before it; leave it out"),
        "stream": (("false", "False"), "the text comes whole; leave it out"),
        "temperature": (("0", "0.0"), _LIKELIEST),
        "timestamp_granularities[]": ((), _NO_TIMES),
    }
    model: str
    language: str = ""
    response_format: Literal["json", "text", "verbose_json"] = "json"


async def read_form(headers: Headers, body: bytes) -> tuple[TranscriptionRequest, BytesIO]:
    """What is asked, and the file. Nothing of it is ever written to a disk. Errors: ApiError."""
    if not headers.get("content-type", "").startswith("multipart/form-data;"):
        raise ApiError(400, "the body is not a form; send it as multipart/form-data, with the sound as its part file")

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(headers, stream(), max_files=1, max_fields=_FIELDS)
    for name in ("spool_max_size", "max_file_size"):  # the second is what starlette before 0.46 calls it
        setattr(parser, name, len(body) + 1)  # else a large file waits in one of the system's
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError):
        raise ApiError(400, "the form is broken, or has too many parts; send one file and its fields") from None
    fields: dict[str, Any] = dict(form.multi_items())
    sound = fields.pop("file", None)
    asked = TranscriptionRequest.read(fields)
    if not isinstance(sound, UploadFile):
        raise ApiError(400, "file: is missing; give a WAV file", param="file", code="missing_required_parameter")
    return asked, BytesIO(await sound.read())


def transcription(
    asked: TranscriptionRequest, text: str, language: str, seconds: float, extra: Mapping[str, Any]
) -> Response:
    """`language`: that was asked for or heard. `seconds`: of the sound. `extra`: what that API has no field for."""
    if asked.response_format == "text":
        return PlainTextResponse(f"{text}\n")
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    reply: dict[str, Any] = {"text": text, "usage": usage, EXTRA: extra}
    if asked.response_format == "verbose_json":
        from transformers.models.whisper.tokenization_whisper import LANGUAGES  # importing it takes seconds

        reply |= {"task": "transcribe", "language": LANGUAGES.get(language, language), "duration": seconds}
    return JSONResponse(reply)
