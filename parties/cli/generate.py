"""`blindformer generate MODEL "text"` and `blindformer chat MODEL`: a language model that sees nobody's words."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ..registry import find
from . import options
from .output import MB, aside, console, emit
from .talking import Model, New, Talking
from .waiting import Waiting

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion, Conversation


@dataclass
class Spent:
    """What the passes of one answer took, but for the first: `prefill` of reading the question."""

    passes: list[tuple[float, float, int, int, int]] = field(default_factory=list)

    def told(self, part: str, answer: Any) -> None:
        timings, others = answer.timings, answer.others
        online = timings.online.sent + timings.online.received
        offline_s = others.get("server_offline_s", timings.offline_s)
        self.passes.append((timings.online_s, offline_s, online, timings.offline_bytes, timings.rounds))

    def per_token(self, tokens: int, prompt_passes: int) -> dict[str, float]:
        """By token of the answer; what was spent on reading the question is not counted."""
        rest = self.passes[prompt_passes:]
        names = ("online_s", "offline_s", "online_bytes", "offline_bytes", "rounds")
        sums = [sum(one) for one in zip(*rest, strict=True)] if rest else [0.0] * len(names)
        return {f"{name}_per_token": value / max(tokens - 1, 1) for name, value in zip(names, sums, strict=True)}


@options.grouped
def generate(
    *,
    model: Model,
    prompt: Annotated[
        str, Argument(help="The text to be continued; of a model with a chat template, the message to be answered.")
    ],
    raw: Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_new_tokens: New = 64,
    given: Talking,
    form: options.Form = "text",
) -> None:
    """Answer a prompt with a language model, token by token. Only here the words are put together."""
    if not prompt.strip():
        raise BlindformerError("prompt: is empty; write something to be answered")
    spent = Spent()
    waiting = Waiting()
    with given.opened(model, spent.told, waiting) as (talk, chosen), waiting.watching():
        shown = waiting.write if form == "text" else None
        plain = raw or getattr(talk.chat.tokenizer, "chat_template", None) is None
        reply = (talk.complete if plain else talk.say)(prompt, shown, max_new_tokens=max_new_tokens, **chosen)
    costs = spent.per_token(len(reply.tokens), reply.prompt_passes)
    if form == "json":
        emit(
            {
                "text": reply.text,
                "tokens": reply.tokens,
                "prompt_tokens": reply.prompt_tokens,
                "prefill_s": reply.prefill_s,
                **costs,
                "passes": reply.passes,
                "drafts_accepted": reply.drafts_accepted,
                "finish": reply.finish,
                **({"retried": reply.retried} if reply.retried else {}),
            }
        )
        return
    sys.stdout.write("\n")
    aside().print(f"[dim]{_in_words(reply, costs)}")


@options.grouped
def chat(
    *,
    model: Model,
    max_new_tokens: New = 256,
    given: Talking,
) -> None:
    """Talk to a language model. Ctrl-C ends an answer; /save FILE keeps what was said, /new begins anew, /quit ends."""
    spent = Spent()
    out, waiting, unanswered = aside(), Waiting(), False
    with given.opened(model, spent.told, waiting) as (talk, chosen):
        if getattr(talk.chat.tokenizer, "chat_template", None) is None:
            raise BlindformerError(f"{model}: has no chat template, it continues texts; use: blindformer generate")
        out.print(f"[dim]{find(given.protocol).who.format(parties=given.parties)}   /save FILE, /new, /quit")
        talk.prepare()  # while somebody types
        for line in _lines():
            word, _, rest = line.partition(" ")
            if word == "/quit":
                break
            if word == "/new":
                talk.messages = []
                continue
            if word == "/save":
                _save(talk, rest)
                continue
            if line.startswith("/"):
                out.print(f"{word}: is no command; there are /save FILE, /new and /quit")
                continue
            if not line.strip():
                continue
            spent.passes.clear()
            try:
                with _interrupts(talk), waiting.watching():
                    reply = talk.say(line, waiting.write, max_new_tokens=max_new_tokens, **chosen)
            except BlindformerError as error:  # the conversation goes on with the next message
                unanswered = type(error).__name__ != "GenerationError"
                out.print(f"[red]{escape(str(error))}")
                continue
            unanswered = False
            talk.prepare()
            sys.stdout.write("\n")
            out.print(f"[dim]{_in_words(reply, spent.per_token(len(reply.tokens), reply.prompt_passes))}")
    if unanswered:
        raise Exit(1)


def _in_words(reply: Completion, costs: dict[str, float]) -> str:
    tokens, seconds = len(reply.tokens), reply.seconds - reply.prefill_s
    rate = (tokens - 1) / seconds if tokens > 1 and seconds > 0 else 0.0
    traffic = (
        f"{costs['online_bytes_per_token'] / MB:.1f} MB online and {costs['offline_bytes_per_token'] / MB:.1f} MB "
        f"offline a token, {costs['rounds_per_token']:.0f} rounds"
    )
    said = f"{tokens} tokens, {rate:.2f} a second, the first after {reply.prefill_s:.1f} s"
    drafted = f", {reply.drafts_accepted} from drafts" if reply.drafts_accepted else ""
    again = f"   read again in a new session ({escape(reply.retried)})" if reply.retried else ""
    return f"{said}{drafted}   {traffic}" + (f"   ({reply.finish})" if reply.finish != "stop" else "") + again


def _lines() -> Iterator[str]:
    """What is typed, to the end of the input or Ctrl-C at the prompt."""
    while True:
        try:
            if sys.stdin.isatty():
                yield input("> ")
            else:
                line = sys.stdin.readline()
                if not line:
                    return
                console().print(f"> {line.rstrip()}", markup=False)
                yield line.rstrip("\n")
        except (EOFError, KeyboardInterrupt):
            return


@contextmanager
def _interrupts(talk: Conversation) -> Iterator[None]:
    """Ctrl-C ends the answer, not the session: a pass that has begun is brought to its end."""

    def stop(number: int, frame: FrameType | None) -> None:
        talk.stop()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _save(talk: Conversation, name: str) -> None:
    if not name.strip():
        aside().print("/save: give a file's name")
        return
    path = Path(name.strip()).expanduser()
    try:
        path.write_text(json.dumps(talk.messages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        aside().print(f"{path}: {len(talk.messages)} messages")
    except OSError as error:
        aside().print(f"[red]{path}: cannot be written ({error.strerror})")
