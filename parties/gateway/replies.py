"""Replies in the OpenAI API's terms: objects, the events of a stream, and of recordings what was said."""

from __future__ import annotations

import base64
import codecs
import json
import math
import secrets
import struct
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ...models.generation.logprobs import Logprobs, Spelling, TokenLogprob
from .model_pool import ModelPool, RequestAnswer
from .problems import ApiError
from .requests import ApiRequest, RerankRequest

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion

EXTRA = "blindformer"  # not that API's: what the request cost, what left this machine, what was cut off
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"  # a comment, for clients that end a silent connection


class StopTexts:
    """Cuts an answer before the first of these texts. What may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.pending, self.over = stops, "", False

    def feed(self, text: str) -> str:
        """The text that can be sent now."""
        if self.over:
            return ""
        self.pending += text
        at = min((place for stop in self.stops if (place := self.pending.find(stop)) >= 0), default=-1)
        self.over = at >= 0
        if at < 0:
            lengths = range(1, max(map(len, self.stops), default=1))
            kept = max((n for n in lengths if any(stop[:n] == self.pending[-n:] for stop in self.stops)), default=0)
            at = len(self.pending) - kept
        text, self.pending = self.pending[:at], "" if self.over else self.pending[at:]
        return text

    def rest(self) -> str:
        text, self.pending = self.pending, ""
        return text


class AnswerText:
    """One answer as it is sent: its text, up to a text to stop at, and the log-probabilities of that text's tokens.

    lead        the text before it: the prompt, where it is to be echoed
    most_likely   how many tokens of each place are sent with their log-probabilities; None: no log-probabilities
    """

    def __init__(self, stops: Sequence[str], lead: str, most_likely: int | None, spelling: Spelling) -> None:
        self._until, self._lead, self._sent = StopTexts(stops), lead, ""
        self.logprobs = None if most_likely is None else Logprobs(most_likely, echo=bool(lead))
        self._spelling = spelling
        self._place = self._offset = 0  # of the next token, and where in the text it begins
        self._characters = codecs.getincrementaldecoder("utf-8")("ignore")

    def feed(self, piece: str) -> str:
        """The text that can be sent now."""
        text = self._until.feed(piece)
        return self._send(text) if text else ""

    def rest(self) -> str:
        return self._send(self._until.rest())

    def finish(self, completion: Completion) -> str:
        return "stop" if self._until.over or completion.finish != "length" else "length"

    def likely(self, last: bool = False) -> list[tuple[int, TokenLogprob]] | None:
        """Tokens that begin in the text sent so far, with their places in it, each once; at the end also those without
        a text. None: they are not asked for."""
        if self.logprobs is None:
            return None
        tokens, all_of_them = list[tuple[int, TokenLogprob]](), last and not self._until.over
        for one in self.logprobs.tokens[self._place :]:
            if self._place == self.logprobs.prompt_tokens:
                self._offset = len(self._lead)
            if self._offset >= len(self._sent) and not all_of_them:
                break
            tokens.append((self._offset, one))
            shown = self._place < self.logprobs.prompt_tokens or one.token not in self._spelling.special
            self._offset += len(self._characters.decode(self._spelling(one.token))) if shown else 0
            self._place += 1
        return tokens

    def _send(self, text: str) -> str:
        text = text if self._sent else self._lead + text
        self._sent += text
        return text


class Completions:
    """The objects of a request's answers: of a conversation (`chat`), or of texts that are continued."""

    def __init__(self, model: str, chat: bool, spelling: Spelling) -> None:
        self._chat, self._spelling = chat, spelling
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, texts: Sequence[AnswerText], answer: RequestAnswer) -> dict[str, Any]:
        choices = []
        for index, (text, completion) in enumerate(zip(texts, answer.completions, strict=True)):
            content = text.feed(completion.text) + text.rest()
            message = {"role": "assistant", "content": content, "refusal": None}
            choices.append(
                {
                    "index": index,
                    **({"message": message} if self._chat else {"text": content}),
                    "logprobs": self._logprobs(text.likely(True)),
                    "finish_reason": text.finish(completion),
                }
            )
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, **_ending(answer)}

    def first(self) -> bytes:
        """Empty for a text that is continued."""
        return self._event([self._choice({"role": "assistant", "content": ""})]) if self._chat else b""

    def piece(self, content: str, text: AnswerText, last: bool = False) -> bytes:
        """Empty where there is neither content nor a token to send."""
        likely = text.likely(last)
        if not content and not likely:
            return b""
        return self._event([self._choice({"content": content} if self._chat else content, self._logprobs(likely))])

    def last(self, text: AnswerText, answer: RequestAnswer, with_usage: bool) -> bytes:
        ending = self._choice({} if self._chat else "", None, text.finish(answer.completions[0]))
        events = self._event([ending], **{EXTRA: answer.extra()})
        return events + (self._event([], usage=usage(answer)) if with_usage else b"") + DONE

    def _choice(self, content: Any, logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        name = "delta" if self._chat else "text"
        return {"index": 0, name: content, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._head, "object": kind, "choices": choices, **more})

    def _logprobs(self, likely: Sequence[tuple[int, TokenLogprob]] | None) -> dict[str, Any] | None:
        if likely is None:
            return None
        if self._chat:
            tops = [[self._likely(*pair) for pair in one.most_likely] for _, one in likely]
            ones = [self._likely(one.token, one.logprob) for _, one in likely]
            rows = [{**one, "top_logprobs": top} for one, top in zip(ones, tops, strict=True)]
            return {"content": rows, "refusal": None}
        return {
            "tokens": [self._text(one.token) for _, one in likely],
            "token_logprobs": [one.logprob for _, one in likely],
            "top_logprobs": [self._most_likely(one) for _, one in likely],
            "text_offset": [offset for offset, _ in likely],
        }

    def _most_likely(self, one: TokenLogprob) -> dict[str, float] | None:
        """By text, the token itself included. Of several tokens with one text, the most likely stays."""
        if one.logprob is None:
            return None
        pairs = ((one.token, one.logprob), *reversed(one.most_likely))
        return {self._text(token): logprob for token, logprob in pairs}

    def _likely(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(self._spelling(token))}

    def _text(self, token: int) -> str:
        """For a part of a character its bytes, as that API writes them."""
        spelled = self._spelling(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage(answer: RequestAnswer) -> dict[str, Any]:
    written = sum(len(completion.tokens) for completion in answer.completions)
    total = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens + written}
    if not answer.completions:
        return total
    return {**total, "completion_tokens": written, "prompt_tokens_details": {"cached_tokens": answer.cached}}


def _ending(answer: RequestAnswer) -> dict[str, Any]:
    return {"usage": usage(answer), EXTRA: answer.extra()}


def embeddings(model: ModelPool, answer: RequestAnswer, form: str) -> dict[str, Any]:
    """Errors: ApiError for an answer that is not one list of numbers."""
    rows = [_vector(model, value) for value in answer.values]
    data = [
        {"object": "embedding", "index": index, "embedding": row if form == "float" else _base64(row)}
        for index, row in enumerate(rows)
    ]
    return {"object": "list", "data": data, "model": model.name, **_ending(answer)}


def classification(model: ModelPool, answer: RequestAnswer) -> dict[str, Any]:
    return {"model": model.name, "results": answer.values, **_ending(answer)}


def ranking(model: ModelPool, answer: RequestAnswer, asked: RerankRequest) -> dict[str, Any]:
    """Documents by their relevance: a cross-encoder's score, or the cosine of the query's and the document's vector.
    Errors: ApiError for a model whose answer is neither."""
    if model.embeds:
        query, *documents = [_vector(model, value) for value in answer.values]
        scores = [_cosine(query, document) for document in documents]
    else:
        scores = [value[0]["score"] for value in answer.values]
    results = []
    for at in sorted(range(len(scores)), key=lambda at: -scores[at])[: asked.top_n]:
        document = {"document": asked.documents[at].model_dump()} if asked.return_documents else {}
        results.append({"index": at, "relevance_score": scores[at], **document})
    return {"id": f"rerank-{secrets.token_hex(12)}", "model": model.name, "results": results, **_ending(answer)}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _vector(model: ModelPool, value: Any) -> list[float]:
    vector = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    if not isinstance(vector, list) or not all(isinstance(number, float) for number in vector):
        raise ApiError(400, f"model {model.name}: gives no embedding of a text; it is for {model.task}", param="model")
    return vector


def _base64(row: Sequence[float]) -> str:
    """Float32, the lowest byte first, as that API's clients read it."""
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def model_object(model: ModelPool) -> dict[str, Any]:
    head = {"id": model.name, "object": "model", "created": model.created, "owned_by": EXTRA}
    return {**head, EXTRA: model.about()}


MOST_AUDIO_BYTES = 25 << 20  # of a body, as that API has it
_FIELDS = 32
_NO_TIMES = "no times are computed; leave it out"
_MOST_LIKELY = "the most likely words are given; leave it out"


class TranscriptionRequest(ApiRequest):
    """`language`: by its two letters; "": the model finds out. A form's values are texts."""

    unused: ClassVar = {
        "chunking_strategy": (("auto",), "a long recording is cut where it is quiet; leave it out"),
        "include[]": ((), "no probabilities are sent; leave it out"),
        "prompt": (("",), "a recording is written down without words before it; leave it out"),
        "stream": (("false", "False"), "the text comes whole; leave it out"),
        "temperature": (("0", "0.0"), _MOST_LIKELY),
        "timestamp_granularities[]": ((), _NO_TIMES),
    }
    model: str
    language: str = ""
    response_format: Literal["json", "text", "verbose_json"] = "json"


async def read_form(headers: Headers, body: bytes) -> tuple[TranscriptionRequest, BytesIO]:
    """What is asked, and the file. Nothing of it is ever written to a disk. Errors: ApiError."""
    if not headers.get("content-type", "").startswith("multipart/form-data;"):
        raise ApiError(400, "the body is not a form; send it as multipart/form-data, with the audio as its part file")

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
    audio = fields.pop("file", None)
    asked = TranscriptionRequest.read(fields)
    if not isinstance(audio, UploadFile):
        raise ApiError(400, "file: is missing; give a WAV file", param="file", code="missing_required_parameter")
    return asked, BytesIO(await audio.read())


def transcription(
    asked: TranscriptionRequest, text: str, language: str, seconds: float, extra: Mapping[str, Any]
) -> Response:
    """`language`: that was asked for or heard. `seconds`: of the audio. `extra`: what that API has no field for."""
    if asked.response_format == "text":
        return PlainTextResponse(f"{text}\n")
    usage = {"type": "duration", "seconds": math.ceil(seconds)}
    reply: dict[str, Any] = {"text": text, "usage": usage, EXTRA: extra}
    if asked.response_format == "verbose_json":
        from transformers.models.whisper.tokenization_whisper import LANGUAGES  # importing it takes seconds

        reply |= {"task": "transcribe", "language": LANGUAGES.get(language, language), "duration": seconds}
    return JSONResponse(reply)
