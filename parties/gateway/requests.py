"""Requests in the OpenAI API's terms. A parameter of that API without a use here is refused, never ignored."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from io import BytesIO
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ...models.loading.huggingface import InputError
from ...models.loading.media import count_pixels
from ...models.loading.truncation import Truncation
from .problems import UNSUPPORTED, ApiError, input_place, invalid_image

R = TypeVar("R", bound="ApiRequest")
MOST_TEXTS = 2048  # of one request, as that API has it
MOST_STOPS = 4
MOST_IMAGES, MOST_PIXELS = 64, 25_000_000  # of one request: a small file may say that it holds gigabytes

# Parameters of that API without a use here: their neutral values, which ask for nothing (null is one, too), and what to
# do instead of others.
_LEAVE_OUT = "leave it out"
_DESCRIBE = "models here call nothing; describe it in a message, and read the call from the answer's text"
UNUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), _LEAVE_OUT),
    "best_of": ((1,), "one answer is given; ask again with another seed"),
    "dimensions": ((), "embeddings have the model's own; leave it out, and cut them yourself"),
    "echo": ((False,), _LEAVE_OUT),
    "frequency_penalty": ((0,), "set repetition_penalty instead"),
    "function_call": (("none", "auto"), _DESCRIBE),
    "functions": (([],), _DESCRIBE),
    "logit_bias": (({},), "leave it out; top_k, top_p and repetition_penalty change what is drawn"),
    "logprobs": ((False,), _LEAVE_OUT),
    "modalities": ((["text"],), 'answers are text; leave it out, or give ["text"]'),
    "n": ((1,), "one answer is given; ask again with another seed"),
    "parallel_tool_calls": ((True, False), _LEAVE_OUT),
    "prediction": ((), _LEAVE_OUT),
    "presence_penalty": ((0,), "set repetition_penalty instead"),
    "reasoning_effort": ((), _LEAVE_OUT),
    "response_format": (({"type": "text"},), "answers are free text; ask for JSON in a message, and check what comes"),
    "service_tier": (("auto", "default"), _LEAVE_OUT),
    "store": ((False,), _LEAVE_OUT),
    "suffix": (("",), "a text is continued at its end only; leave it out"),
    "tool_choice": (("none", "auto"), _DESCRIBE),
    "tools": (([],), _DESCRIBE),
    "top_logprobs": ((), _LEAVE_OUT),
    "truncate": ((False, "NONE"), "a conversation is not cut; begin a new one, or send less"),
    "truncate_prompt_tokens": (
        (),
        "texts are cut to the model's length (truncate: true), conversations never; leave it out",
    ),
    "verbosity": ((), _LEAVE_OUT),
    "web_search_options": ((), _LEAVE_OUT),
}
# Notes of the caller's own, which stay on this machine and change no answer.
NOTES = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "user"})


def _as_text(value: Any) -> Any:
    """A message's content may be given in parts, which are texts here."""
    if not isinstance(value, list):
        return value
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        raise ValueError("holds parts that are not text; send text only")
    return "\n".join(str(part.get("text", "")) for part in value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _in_capitals(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _as_truncate(value: Any) -> Any:
    truncate = _in_capitals(value)
    if isinstance(truncate, bool) or truncate in ("NONE", "START", "END", "WINDOWS"):
        return truncate
    raise ValueError('should be true, false, "NONE", "START", "END" or "WINDOWS"')


def _as_prompts(value: Any) -> Any:
    """A text, its tokens by the model's own tokenizer, or a list of either."""
    prompts = [value] if _are_tokens(value) and value else _as_list(value)
    if isinstance(prompts, list) and not all(isinstance(item, str) or _are_tokens(item) for item in prompts):
        raise ValueError("holds what is neither text nor tokens; send texts, or lists of the model's own token ids")
    return prompts


def _are_tokens(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int for token in value)


def _as_texts(value: Any) -> Any:
    """Refuses tokens: they are of a tokenizer that only the caller knows."""
    texts = _as_list(value)
    if isinstance(texts, list) and any(isinstance(item, int | list) for item in texts):
        raise ValueError("holds tokens; send text (in LangChain: check_embedding_ctx_length=False)")
    return texts


def _unsupported(what: str) -> PydanticCustomError:
    return PydanticCustomError(UNSUPPORTED, "{what}", {"what": what})


class Lenient(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


def _speaks(value: Any) -> Any:
    if value in ("tool", "function"):
        raise _unsupported(f'"{value}" answers a call, and models here call nothing; send its text as the user')
    return value


def _calls_nothing(value: Any) -> Any:
    if value:
        raise _unsupported("models here call nothing; send the calls as text, in the content")
    return value


class ChatMessage(Lenient):
    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_speaks)]
    tool_calls: Annotated[Any, BeforeValidator(_calls_nothing)] = None
    function_call: Annotated[Any, BeforeValidator(_calls_nothing)] = None
    content: Annotated[str, BeforeValidator(_as_text)]


class StreamOptions(Lenient):
    include_usage: bool = False


class ApiRequest(BaseModel):
    """A request's body. `read` makes one of bytes."""

    model_config = ConfigDict(strict=True, extra="forbid")
    unused: ClassVar = UNUSED

    @classmethod
    def read(cls: type[R], body: Any) -> R:
        """Errors: ApiError, for the first thing that is wrong with it."""
        if not isinstance(body, dict):
            raise ApiError(400, "the body is not a JSON object; send one, with content-type application/json")
        given = {name: value for name, value in body.items() if value is not None and name not in NOTES}
        for name in (given.keys() & cls.unused.keys()) - cls.model_fields.keys():
            value, (neutral, remedy) = given.pop(name), cls.unused[name]
            if not any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in neutral):
                what = f"{name}: is not supported here; {remedy}"
                raise ApiError(400, what, param=name, code=UNSUPPORTED)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _explain(error.errors()[0]) from None


class Sampling(ApiRequest):
    """How an answer is drawn, and where it ends. `top_k`, `repetition_penalty`: not that API's, but its relatives'."""

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] = 1.0
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], BeforeValidator(_as_list)] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @property
    def most_likely(self) -> int | None:
        """How many tokens of each place are sent with their log-probabilities; None: no log-probabilities."""
        return None

    def options(self) -> dict[str, Any]:
        """The options of `Conversation.answer`. Errors: ApiError."""
        if len(self.stop) > MOST_STOPS:
            raise ApiError(400, f"stop: {len(self.stop)} texts; give at most {MOST_STOPS}", param="stop")
        drawn = self.temperature > 0
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        options: dict[str, Any] = {
            "max_new_tokens": most,
            "repetition_penalty": self.repetition_penalty,
            "seed": self.seed,
            "do_sample": drawn,
        }
        if drawn:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return options | ({"stop_strings": self.stop} if self.stop else {})


class ChatRequest(Sampling):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    logprobs: bool = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None

    @property
    def most_likely(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    def options(self) -> dict[str, Any]:
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs: true; add it", param="top_logprobs")
        return super().options()


class CompletionRequest(Sampling):
    prompt: Annotated[list[str | list[int]], BeforeValidator(_as_prompts), Field(min_length=1, max_length=MOST_TEXTS)]
    max_tokens: Annotated[int | None, Field(ge=0)] = 16  # that API's default
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    echo: bool = False

    @property
    def most_likely(self) -> int | None:
        return self.logprobs

    def options(self) -> dict[str, Any]:
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(
                400, "max_tokens: is 0, which answers nothing; raise it, or add echo: true", param="max_tokens"
            )
        if self.stream and len(self.prompt) > 1:
            what = f"stream: {len(self.prompt)} prompts; stream one, or leave it out"
            raise ApiError(400, what, param="stream", code=UNSUPPORTED)
        return super().options()


class Document(Lenient):
    text: str


def _as_document(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class TextsRequest(ApiRequest):
    """A request of single texts, and where a text that is too long is cut. The OpenAI API has no parameter for it:
    `truncate` is Cohere's ("NONE", "START", "END") and TEI's (true, false), `truncation_direction` TEI's;
    "WINDOWS" is our own."""

    truncate: Annotated[bool | Literal["NONE", "START", "END", "WINDOWS"] | None, BeforeValidator(_as_truncate)] = None
    truncation_direction: Annotated[Literal["LEFT", "RIGHT"] | None, BeforeValidator(_in_capitals)] = None

    def cut(self, default: Truncation, of_texts: bool = True) -> Truncation:
        """Where a text is cut. `default`: where the request does not say; `of_texts`: whether the model takes any.
        Errors: ApiError."""
        named: dict[str | bool | None, Truncation] = {
            None: default,
            True: "end" if default == "off" else default,
            **{False: "off", "NONE": "off", "START": "start", "END": "end", "WINDOWS": "windows"},
        }
        sides: dict[str | None, Truncation] = {"LEFT": "start", "RIGHT": "end"}
        truncation, side = named[self.truncate], sides.get(self.truncation_direction)
        if truncation == "off" or (not of_texts and self.truncate is None):
            return "off"
        if not of_texts:
            raise ApiError(400, "truncate: is of texts, and this model takes images; leave it out", param="truncate")
        if isinstance(self.truncate, str) and side not in (None, truncation):
            what = f"truncation_direction: does not go with truncate: {self.truncate}; leave one of them out"
            raise ApiError(400, what, param="truncation_direction")
        return side or truncation


class RerankRequest(TextsRequest):
    """Jina's and Cohere's. `model` may be left out if only one model ranks."""

    model: str = ""
    query: str
    documents: Annotated[
        list[Annotated[Document, BeforeValidator(_as_document)]], Field(min_length=1, max_length=MOST_TEXTS)
    ]
    top_n: Annotated[int | None, Field(ge=1)] = None
    return_documents: bool = False


class EmbeddingsRequest(TextsRequest):
    model: str
    input: Annotated[list[str], BeforeValidator(_as_texts), Field(min_length=1, max_length=MOST_TEXTS)]
    encoding_format: Literal["float", "base64"] = "float"


class ClassifyRequest(TextsRequest):
    """Not that API's. `model` may be left out if only one model classifies."""

    model: str = ""
    input: Annotated[list[str], BeforeValidator(_as_texts), Field(min_length=1, max_length=MOST_TEXTS)]
    top_k: Annotated[int | None, Field(ge=1)] = None


def alternating(messages: list[ChatMessage]) -> list[dict[str, str]]:
    """The messages as models take them: user and assistant in turns, the user first and last.

    The system prompt is the model owner's, and part of what is compiled. A caller's own goes into the user's next
    message, in front. Errors: ApiError.
    """
    turns: list[dict[str, str]] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{message.content}"
        else:
            turns.append({"role": role, "content": message.content})
    if turns[0]["role"] != "user" or messages[-1].role != "user":
        raise ApiError(400, "messages: begin and end with the user's; add one", param="messages")
    if not all(message["content"].strip() for message in turns):
        raise ApiError(400, "messages: one is empty; write something, or leave it out", param="messages")
    return turns


def image_files(urls: Sequence[str]) -> list[BytesIO]:
    """The files in these data URLs. They are decoded later, one by one, when they are encoded.

    Errors: ApiError, also for more images or pixels than a request may have.
    """
    if len(urls) > MOST_IMAGES:
        raise ApiError(400, f"input: {len(urls)} images; give at most {MOST_IMAGES} at once", param="input")
    files, pixels = [], 0
    for at, url in enumerate(urls):
        place = input_place(at, len(urls))
        try:
            files.append(_image_file(url))
            pixels += count_pixels(files[-1])
        except InputError as error:
            raise invalid_image(place, error) from None
        if pixels > MOST_PIXELS:
            what = f"a request has at most {MOST_PIXELS // 10**6} million pixels; make images smaller, or ask for fewer"
            raise invalid_image(place, what)
    return files


def _image_file(url: str) -> BytesIO:
    """Only a data URL's: a file's name would let any caller read files of this machine. Errors: InputError."""
    head, _, data = url.partition(",")
    if not re.fullmatch(r"data:image/[\w.+-]+;base64", head):
        raise InputError('is no image; this model takes "data:image/png;base64,..." (or jpeg, webp)')
    try:
        return BytesIO(base64.b64decode(data, validate=True))
    except ValueError:
        raise InputError("its base64 is broken") from None


def _explain(fault: Any) -> ApiError:
    """pydantic's error in one line, without the value."""
    place = [str(step) for step in fault["loc"] if not str(step).startswith("function-")]
    name = ".".join(place)
    if fault["type"] == "extra_forbidden":
        return ApiError(400, f"{name}: is not a parameter of this request", param=name, code="unknown_parameter")
    if fault["type"] == "missing":
        return ApiError(400, f"{name}: is missing; give it", param=name, code="missing_required_parameter")
    if fault["type"] == "too_short":
        return ApiError(400, f"{name}: is empty; give at least one", param=place[0], code="invalid_value")
    what = fault["msg"].removeprefix("Value error, ").removeprefix("Input ").replace("List should", "should")
    code = UNSUPPORTED if fault["type"] == UNSUPPORTED else "invalid_value"
    return ApiError(400, f"{name}: {what}", param=place[0] if place else None, code=code)
