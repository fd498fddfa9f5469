"""What is answered, in the OpenAI API's terms: objects, and the events of a stream."""

from __future__ import annotations

import base64
import codecs
import json
import math
import secrets
import time
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...models.generation.logprobs import Logprobs, Spelling, TokenLogprob
from .answered import RequestAnswer
from .models import OfferedModel
from .problems import ApiError
from .requests import RerankRequest

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion

EXTRA = "blindformer"  # not that API's: what the request cost, what left this machine, what was cut off
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


class AnswerText:
    """One answer as it is told: its text, up to a text to stop at, and how likely the tokens of that text were.

    lead        what comes before it: the prompt, where it is to be echoed
    likeliest   how many tokens of each place are told with how likely they are; None: nothing is told of that
    """

    def __init__(self, stops: Sequence[str], lead: str, likeliest: int | None, spelling: Spelling) -> None:
        self._until, self._lead, self._said = StopTexts(stops), lead, ""
        self.logprobs = None if likeliest is None else Logprobs(likeliest, echo=bool(lead))
        self._spelling = spelling
        self._place = self._offset = 0  # of the next token, and where in the text it begins
        self._characters = codecs.getincrementaldecoder("utf-8")("ignore")

    def feed(self, piece: str) -> str:
        """What can be said now."""
        text = self._until.feed(piece)
        return self._led(text) if text else ""

    def rest(self) -> str:
        return self._led(self._until.rest())

    def finish(self, completion: Completion) -> str:
        return "stop" if self._until.over or completion.finish != "length" else "length"

    def likely(self, last: bool = False) -> list[tuple[int, TokenLogprob]] | None:
        """Tokens that begin in the text that was said, with their places in it, each once; at the end those without a
        text, too. None: they are not asked for."""
        if self.logprobs is None:
            return None
        found, all_of_them = list[tuple[int, TokenLogprob]](), last and not self._until.over
        for one in self.logprobs.tokens[self._place :]:
            if self._place == self.logprobs.prompt_tokens:
                self._offset = len(self._lead)
            if self._offset >= len(self._said) and not all_of_them:
                break
            found.append((self._offset, one))
            shown = self._place < self.logprobs.prompt_tokens or one.token not in self._spelling.special
            self._offset += len(self._characters.decode(self._spelling(one.token))) if shown else 0
            self._place += 1
        return found

    def _led(self, text: str) -> str:
        text = text if self._said else self._lead + text
        self._said += text
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

    def whole(self, told: Sequence[AnswerText], answered: RequestAnswer) -> dict[str, Any]:
        choices = []
        for index, (one, completion) in enumerate(zip(told, answered.completions, strict=True)):
            text = one.feed(completion.text) + one.rest()
            message = {"role": "assistant", "content": text, "refusal": None}
            said = {"message": message} if self._chat else {"text": text}
            ending = {"logprobs": self._logprobs(one.likely(True)), "finish_reason": one.finish(completion)}
            choices.append({"index": index, **said, **ending})
        return {
            **self._head,
            "object": "chat.completion" if self._chat else "text_completion",
            "choices": choices,
            "usage": usage(answered),
            EXTRA: answered.extra(),
        }

    def first(self) -> bytes:
        """Nothing of a text that is continued."""
        return self._event([self._choice({"role": "assistant", "content": ""})]) if self._chat else b""

    def piece(self, text: str, told: AnswerText, last: bool = False) -> bytes:
        """Nothing where there is neither a text nor a token to tell."""
        likely = told.likely(last)
        if not text and not likely:
            return b""
        return self._event([self._choice({"content": text} if self._chat else text, self._logprobs(likely))])

    def last(self, told: AnswerText, answered: RequestAnswer, with_usage: bool) -> bytes:
        ending = self._choice({} if self._chat else "", None, told.finish(answered.completions[0]))
        events = self._event([ending], **{EXTRA: answered.extra()})
        return events + (self._event([], usage=usage(answered)) if with_usage else b"") + DONE

    def _choice(self, said: Any, logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        name = "delta" if self._chat else "text"
        return {"index": 0, name: said, "logprobs": logprobs, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return event({**self._head, "object": kind, "choices": choices, **more})

    def _logprobs(self, likely: Sequence[tuple[int, TokenLogprob]] | None) -> dict[str, Any] | None:
        if likely is None:
            return None
        if self._chat:
            tops = [[self._likely(*pair) for pair in one.likeliest] for _, one in likely]
            ones = [self._likely(one.token, one.logprob) for _, one in likely]
            rows = [{**one, "top_logprobs": top} for one, top in zip(ones, tops, strict=True)]
            return {"content": rows, "refusal": None}
        return {
            "tokens": [self._text(one.token) for _, one in likely],
            "token_logprobs": [one.logprob for _, one in likely],
            "top_logprobs": [self._likeliest(one) for _, one in likely],
            "text_offset": [offset for offset, _ in likely],
        }

    def _likeliest(self, one: TokenLogprob) -> dict[str, float] | None:
        """By text, the token itself included. Of tokens with one text, the likeliest stays."""
        if one.logprob is None:
            return None
        pairs = ((one.token, one.logprob), *reversed(one.likeliest))
        return {self._text(token): logprob for token, logprob in pairs}

    def _likely(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": self._text(token), "logprob": logprob, "bytes": list(self._spelling(token))}

    def _text(self, token: int) -> str:
        """Of a part of a character, its bytes, as that API writes them."""
        spelled = self._spelling(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def usage(answered: RequestAnswer) -> dict[str, Any]:
    found = {"prompt_tokens": answered.tokens, "total_tokens": answered.tokens}
    if not answered.completions:
        return found
    written = sum(len(completion.tokens) for completion in answered.completions)
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
        EXTRA: answered.extra(),
    }


def ranking(model: OfferedModel, answered: RequestAnswer, asked: RerankRequest) -> dict[str, Any]:
    """Documents by their relevance: a cross-encoder's score, or the cosine of the query's and the document's vector.
    Errors: ApiError for a model whose answer is neither."""
    if model.embeds:
        query, *documents = [_vector(model, value) for value in answered.values]
        scores = [_cosine(query, document) for document in documents]
    else:
        scores = [value[0]["score"] for value in answered.values]
    order = sorted(range(len(scores)), key=lambda at: -scores[at])[: asked.top_n]
    shown = asked.return_documents
    results = [
        {
            "index": at,
            "relevance_score": scores[at],
            **({"document": asked.documents[at].model_dump()} if shown else {}),
        }
        for at in order
    ]
    head = {"id": f"rerank-{secrets.token_hex(12)}", "model": model.name, "results": results}
    return {**head, "usage": usage(answered), EXTRA: answered.extra()}


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0


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
