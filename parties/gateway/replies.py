"""What is answered, in the OpenAI API's terms: objects, and the events of a stream."""

from __future__ import annotations

import base64
import json
import secrets
import time
from array import array
from collections.abc import Sequence
from typing import Any

from .models import OfferedModel, RequestAnswer
from .problems import ApiError

EXTRA = "blindformer"  # the one field that this API does not have: what the request cost, and what left this machine
DONE = b"data: [DONE]\n\n"
STILL_THERE = b": waiting\n\n"  # a comment, for whoever counts silence


class StopTexts:
    """Cuts an answer before the first of these texts: what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.over = stops, "", False

    def feed(self, text: str) -> str:
        """What can be said now."""
        if self.over:
            return ""
        self.held += text
        at = min((place for stop in self.stops if (place := self.held.find(stop)) >= 0), default=-1)
        self.over = at >= 0
        if at < 0:
            lengths = range(1, max(map(len, self.stops), default=1))
            kept = max((n for n in lengths if any(stop[:n] == self.held[-n:] for stop in self.stops)), default=0)
            at = len(self.held) - kept
        said, self.held = self.held[:at], "" if self.over else self.held[at:]
        return said

    def rest(self) -> str:
        said, self.held = self.held, ""
        return said


class Completions:
    """The objects of one answer: of a conversation (`chat`), or of a text that is continued."""

    def __init__(self, model: str, chat: bool) -> None:
        self._chat = chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, text: str, finish: str, answered: RequestAnswer) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": [{"index": 0, **said, "logprobs": None, "finish_reason": finish}],
            "usage": usage(answered),
            EXTRA: answered.travelled.to_dict(),
        }

    def first(self) -> bytes:
        """Nothing of a text that is continued."""
        return self._event([self._choice({"role": "assistant", "content": ""})]) if self._chat else b""

    def piece(self, text: str) -> bytes:
        return self._event([self._choice({"content": text} if self._chat else text)])

    def last(self, finish: str, answered: RequestAnswer, with_usage: bool) -> bytes:
        ending = self._choice({} if self._chat else "", finish)
        events = self._event([ending], **{EXTRA: answered.travelled.to_dict()})
        return events + (self._event([], usage=usage(answered)) if with_usage else b"") + DONE

    def _choice(self, said: Any, finish: str | None = None) -> dict[str, Any]:
        name = "delta" if self._chat else "text"
        return {"index": 0, name: said, "logprobs": None, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._head, "object": kind, "choices": choices, **more})


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def finish_of(answered: RequestAnswer, cut: bool) -> str:
    """`cut`: at a text to stop at."""
    finish = "stop" if answered.completion is None else answered.completion.finish
    return "stop" if cut or finish != "length" else "length"


def usage(answered: RequestAnswer) -> dict[str, Any]:
    found = {"prompt_tokens": answered.tokens, "total_tokens": answered.tokens}
    if answered.completion is None:
        return found
    written = len(answered.completion.tokens)
    return {
        **found,
        "completion_tokens": written,
        "total_tokens": answered.tokens + written,
        "prompt_tokens_details": {"cached_tokens": answered.cached},
    }


def embeddings(model: OfferedModel, answered: RequestAnswer, form: str) -> dict[str, Any]:
    """Errors: ApiError for an answer that is not one list of numbers."""
    rows = [_vector(model, value) for value in answered.values]
    data = [
        {"object": "embedding", "index": index, "embedding": row if form == "float" else _base64(row)}
        for index, row in enumerate(rows)
    ]
    return {
        "object": "list",
        "data": data,
        "model": model.name,
        "usage": usage(answered),
        EXTRA: answered.travelled.to_dict(),
    }


def _vector(model: OfferedModel, value: Any) -> list[float]:
    found = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    if not isinstance(found, list) or not all(isinstance(number, float) for number in found):
        raise ApiError(400, f"model {model.name}: gives no embedding of a text; it is for {model.task}", param="model")
    return found


def _base64(row: Sequence[float]) -> str:
    """Float32, the lowest byte first, as that API's clients read it."""
    numbers = array("f", row)
    if array("H", [1]).tobytes() != b"\1\0":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode()


def models(offered: Sequence[OfferedModel]) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(model) for model in offered]}


def model_object(model: OfferedModel) -> dict[str, Any]:
    head = {"id": model.name, "object": "model", "created": model.created, "owned_by": EXTRA}
    return {**head, EXTRA: model.about()}
