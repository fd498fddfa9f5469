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
from ..heap import keep_freed_memory
from ..registry import DEFAULT, find, resolve, talking
from . import options
from .output import MB, aside, console, emit
from .progress import Phases
from .steps import loading, prepare, read_plan, read_system
from .waiting import Waiting

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.conversation import Completion, Conversation

SLOTS = 256  # models/generation/chat.py, which takes seconds to import; a test holds them equal
Model = Annotated[
    str, Argument(help="smollm2, a GGUF file, a model's folder or hub id; or a folder that compile --chat wrote.")
]
Protocol = Annotated[
    str, Option(click_type=options.one_of(*talking()), help="Two parties and a dealer; or clear, which hides nothing.")
]
Plan = Annotated[str | None, Option(help="A preset or a plan's JSON file (default: the model's own, else faithful).")]
System = Annotated[Path | None, Option(help="The owner's system prompt, a file: public, and part of what is compiled.")]
Slots = Annotated[int, Option("--tokens", min=32, help="Tokens that a conversation may have, answers included.")]
New = Annotated[int, Option("--max-new-tokens", min=1, help="Tokens of an answer, at most.")]
Temperature = Annotated[float, Option(min=0, help="0: always the likeliest token.")]
TopP = Annotated[float, Option(min=0, max=1, help="Draw from the likeliest tokens that make up this share.")]
TopK = Annotated[int, Option(min=0, help="Draw from so many tokens; 0: from all.")]
Penalty = Annotated[float, Option(min=0.1, help="Above 1: what was said is less likely to be said again.")]
Stop = Annotated[list[str] | None, Option(help="End an answer after this text; may be repeated.")]
Seed = Annotated[int | None, Option(min=0, help="Draw the same again.")]
Drafts = Annotated[int, Option(min=0, help="Tokens to guess from what was said, and to check in one pass; 0: none.")]
Server = Annotated[str, Option(help="host:port of a server; or local: server and dealer on this machine, for now.")]


@dataclass
class Spent:
    """What the passes of one answer took, but for the first: `prefill` of reading the question."""

    passes: list[tuple[float, float, int, int, int]] = field(default_factory=list)

    def told(self, part: str, answer: Any) -> None:
        timings, others = answer.timings, answer.others
        online = timings.online.sent + timings.online.received
        self.passes.append(
            (timings.online_s, others["server_offline_s"], online, timings.offline_bytes, timings.rounds)
        )

    def per_token(self, tokens: int, prompt_passes: int) -> dict[str, float]:
        """By token of the answer; what was spent on reading the question is not counted."""
        rest = self.passes[prompt_passes:]
        names = ("online_s", "offline_s", "online_bytes", "offline_bytes", "rounds")
        sums = [sum(one) for one in zip(*rest, strict=True)] if rest else [0.0] * len(names)
        return {f"{name}_per_token": value / max(tokens - 1, 1) for name, value in zip(names, sums, strict=True)}


def generate(
    model: Model,
    prompt: Annotated[str, Argument(help="The text to be continued; of a model with a chat template, the message.")],
    protocol: Protocol = DEFAULT,
    plan: Plan = None,
    system: System = None,
    slots: Slots = SLOTS,
    raw: Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    max_new_tokens: New = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = None,
    drafts: Drafts = 0,
    server: Server = "local",
    dealer: options.ClientDealer = None,
    certs: options.ClientCerts = None,
    config: options.Config = None,
    timeout: options.ClientTimeout = None,
    threads: options.OwnThreads = 1,
    form: options.Form = "text",
) -> None:
    """Answer a prompt with a language model, token by token. Only here the words are put together."""
    if not prompt.strip():
        raise BlindformerError("prompt: is empty; write something to be answered")
    spent = Spent()
    chosen = _sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, seed, drafts)
    found = _remote(server, dealer, certs, config, timeout)
    waiting = Waiting()
    with _opened(model, protocol, plan, system, slots, threads, found, spent, waiting) as talk, waiting.watching():
        shown = waiting.write if form == "text" else None
        plain = raw or getattr(talk.chat.tokenizer, "chat_template", None) is None
        reply = (talk.complete if plain else talk.say)(prompt, shown, **chosen)
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


def chat(
    model: Model,
    protocol: Protocol = DEFAULT,
    plan: Plan = None,
    system: System = None,
    slots: Slots = SLOTS,
    max_new_tokens: New = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    repetition_penalty: Penalty = 1.0,
    stop: Stop = None,
    seed: Seed = None,
    drafts: Drafts = 0,
    server: Server = "local",
    dealer: options.ClientDealer = None,
    certs: options.ClientCerts = None,
    config: options.Config = None,
    timeout: options.ClientTimeout = None,
    threads: options.OwnThreads = 1,
) -> None:
    """Talk to a language model. Ctrl-C ends an answer; /save FILE keeps what was said, /new begins anew, /quit ends."""
    spent = Spent()
    chosen = _sampling(max_new_tokens, temperature, top_p, top_k, repetition_penalty, stop, seed, drafts)
    found = _remote(server, dealer, certs, config, timeout)
    out, waiting, unanswered = aside(), Waiting(), False
    with _opened(model, protocol, plan, system, slots, threads, found, spent, waiting) as talk:
        if getattr(talk.chat.tokenizer, "chat_template", None) is None:
            raise BlindformerError(f"{model}: has no chat template, it continues texts; use: blindformer generate")
        out.print(f"[dim]{find(protocol).who}   /save FILE, /new, /quit")
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
                    reply = talk.say(line, waiting.write, **chosen)
            except BlindformerError as error:  # the conversation goes on with the next message
                unanswered = type(error).__name__ != "GenerationError"
                out.print(f"[red]{escape(str(error))}")
                continue
            unanswered = False
            sys.stdout.write("\n")
            out.print(f"[dim]{_in_words(reply, spent.per_token(len(reply.tokens), reply.prompt_passes))}")
    if unanswered:
        raise Exit(1)


def _remote(server: str, dealer: str | None, certs: Path | None, config: Path | None, timeout: float | None) -> dict:
    given = {"dealer": dealer, "certificates": certs, "config": config, "timeout": timeout}
    return {"server": server, **{name: value for name, value in given.items() if value is not None}}


@contextmanager
def _opened(
    model: str,
    protocol: str,
    plan: str | None,
    system: Path | None,
    slots: int,
    threads: int,
    remote: dict[str, Any],
    spent: Spent,
    waiting: Waiting,
) -> Iterator[Conversation]:
    """The conversation, with the model compiled if it is not yet."""
    prepare()
    keep_freed_memory()
    with loading(threads) as phases:
        from ...models.generation.folder import found_or_compiled
        from ..config import load_settings

        text = None if system is None else read_system(system)
        cache = load_settings(remote.get("config")).client.cache.expanduser()
        phases.end("load")
        phases.begin("compile", 32)
        folder = found_or_compiled(
            model,
            cache,
            plan=None if plan is None else read_plan(plan),
            system=text,
            slots=slots,
            stage=lambda stage: phases.note("compile", stage),
        )
        phases.end("compile")
        phases.begin("connect", 1)
        shown: Phases | Waiting = phases

        def progress(phase: str, done: int, total: int) -> None:
            shown.step(phase, done, total)

        entered = resolve(find(protocol).talks)(folder, spent.told, progress=progress, **remote)
        talk = entered.__enter__()
        shown = waiting
        phases.end("connect")
    try:
        yield talk
    except BaseException:
        if not entered.__exit__(*sys.exc_info()):
            raise
    else:
        entered.__exit__(None, None, None)


def _sampling(
    new: int, temperature: float, top_p: float, top_k: int, penalty: float, stop: list[str] | None, seed: int | None,
    drafts: int,
) -> dict[str, Any]:  # fmt: skip
    """As transformers' `generate` takes it."""
    found: dict[str, Any] = {
        "max_new_tokens": new,
        "seed": seed,
        "do_sample": temperature > 0,
        "repetition_penalty": penalty,
    }
    if temperature > 0:
        found |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    if stop:
        found["stop_strings"] = stop
    if drafts:
        found["prompt_lookup_num_tokens"] = drafts
    return found


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
