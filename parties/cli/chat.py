"""`blindformer chat MODEL [PROMPT]`: private text generation."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ..launch import LOCAL, NO_DEALER
from ..registry import DEFAULT, ProtocolEntry, compiled_for, in_words, protocol_for
from ..registry import talking as protocols
from . import options
from .commands import Needs
from .output import MB, aside, console, print_result
from .progress import Phases, Waiting
from .steps import (
    ReceiptOptions,
    Weights,
    cache_folder,
    check_there,
    compiling,
    loading,
    published,
    read_plan,
    read_system,
    refuse_for_public,
    weights_of,
)

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.generation.chat import Chat
    from ...models.generation.conversation import Completion, Conversation
    from ...models.loading.load import Loaded
    from ..session.online import OnPass


Model = Annotated[
    str,
    Argument(
        help="smollm2, gemma3-270m, a GGUF file, a model's folder or hub id, or a folder of compile --chat.",
    ),
    options.NAMES_MODEL,
]
New = Annotated[
    int | None,
    Option("--max-new-tokens", min=1, help="The most tokens of an answer (default: 256, of a PROMPT's 64)."),
]
DRAWN = Needs("--temperature")


@dataclass(frozen=True)
class ConversationOptions(options.DeploymentOptions, ReceiptOptions):
    """The options of every command that talks to a language model: what is compiled, how it answers, and who computes
    it."""

    weights: Weights = None
    protocol: Annotated[str, Option(**options.one_of(*protocols()), help=f"{in_words(protocols())}.")] = DEFAULT
    parties: Annotated[options.Parties, options.among(protocols())] = 2
    plan: options.OwnPlan = None
    system: options.System = None
    slots: Annotated[int | None, Option("--tokens", min=32, help=options.TOKENS)] = None
    window: options.Window = None
    temperature: Annotated[float, Option(min=0, help="Sampling temperature; 0: the most likely token (greedy).")] = 0.0
    top_p: Annotated[
        float,
        Option(min=0, max=1, help="Sample from the most likely tokens that make up this probability."),
        DRAWN,
    ] = 1.0
    top_k: Annotated[int, Option(min=0, help="Sample from this many most likely tokens; 0: from all."), DRAWN] = 0
    repetition_penalty: Annotated[float, Option(min=0.1, help="Penalty on tokens that occurred before; 1: none.")] = 1.0
    stop: Annotated[list[str] | None, Option(help="A text that ends an answer (default: none). May be repeated.")] = (
        None
    )
    seed: Annotated[int | None, Option(min=0, help="Seed of sampling (default: random)."), DRAWN] = None
    drafts: Annotated[int, Option(min=0, help="Tokens to propose by prompt lookup in each pass; 0: none.")] = 0
    assistant: Annotated[
        str | None,
        Option(help="A small public model that proposes tokens (default: none)."),
    ] = None
    server: Annotated[
        str, Option(help="HOST:PORT of the server; or local: a server and a dealer on this machine, for this command.")
    ] = LOCAL
    adapter: Annotated[
        str | None,
        Option(help="A LoRA adapter of peft, or its name in a compiled MODEL (default: none)."),
    ] = None
    threads: options.OwnThreads = 1

    def _protocol(self, model: str) -> str:
        if self.protocol != DEFAULT:
            return protocol_for(self.protocol, weights_of(self.weights))
        of_private = (self.plan, self.slots, self.window)
        return compiled_for(model) or protocol_for(DEFAULT, published([model], self.weights, of_private, self.adapter))

    @contextmanager
    def conversation(
        self, model: str, on_pass: OnPass, waiting: Waiting
    ) -> Iterator[tuple[Conversation, ProtocolEntry, dict[str, Any]]]:
        """A conversation with `model`, which is compiled if need be; who computes it; the options of its `generate`."""
        check_there("--system", self.system)
        if self.dealer == NO_DEALER:
            raise BlindformerError("--dealer none: correlations of conversations take a dealer; leave it out")
        name = self._protocol(model)
        refuse_for_public(name, {"--tokens": self.slots, "--window": self.window})
        prices = self.read_prices(name, self.config)
        with ExitStack() as stack:
            with loading(self.threads, parties=self.server == LOCAL) as phases:
                from ...models.cached import is_compiled
                from ...models.delegated.building import found_or_delegated
                from ...models.generation.folder import found_or_compiled
                from ...models.loading.load import load
                from ..client.client import open_here
                from ..client.local import find_local

                protocol = find_local(name, self.parties)
                session = self._session(protocol.entry)
                sampling = self._sampling()
                compiled_as: dict[str, Any] = {
                    "plan": None if self.plan is None else read_plan(self.plan),
                    "system": None if self.system is None else read_system(self.system),
                    **{name: getattr(self, name) for name in ("slots", "window")},
                    "weights": weights_of(self.weights),
                }
                named = is_compiled(model)
                if self.adapter and (named or protocol.entry.as_it_is):
                    session["adapter"] = self.adapter
                elif self.adapter:
                    compiled_as["adapter"] = Path(self.adapter)
                assistant = None if self.assistant is None else load(self.assistant)
                phases.end("load")
                with compiling(phases) as progress:
                    if protocol.entry.as_it_is and not named:
                        options = {name: compiled_as[name] for name in ("plan", "system")}
                        folder = found_or_delegated(model, cache_folder(self.config), **options, progress=progress)
                    else:
                        folder = found_or_compiled(model, cache_folder(self.config), **compiled_as, progress=progress)
                self._check_room(model, folder)
                phases.begin("connect", 1)
                screen: Phases | Waiting = phases

                def progress_of(phase: str, done: int, total: int) -> None:
                    screen.step(phase, done, total)

                client = stack.enter_context(open_here(protocol, folder, progress=progress_of, **session))
                conversation, known = client.conversation(on_pass), self._drafting(client.part.chat, assistant)
                screen = waiting
                phases.end("connect")
            yield conversation, protocol.entry, sampling | known
            if prices is not None:
                self.keep(client.receipt(prices))

    def _check_room(self, model: str, folder: Path) -> None:
        """Errors: BlindformerError for another number of tokens than a compiled folder is for."""
        from ...models.artifacts import load_client
        from ...models.cached import is_compiled
        from ...models.generation.rows import room

        if self.slots is None or not is_compiled(model) or compiled_for(folder):
            return
        if (slots := room(load_client(folder).for_length().program)) != self.slots:
            raise BlindformerError(f"--tokens {self.slots}: {model} is compiled for {slots}; leave it out")

    def _session(self, entry: ProtocolEntry) -> dict[str, Any]:
        """Options of the session. Errors: BlindformerError for a deployment's where there is none."""
        if entry.served:
            return self.session | {"server": self.server}
        here = {"server": LOCAL, **dict.fromkeys(("dealer", "certs"))}
        if remote := [name for name, value in here.items() if getattr(self, name) != value]:
            raise BlindformerError(f"protocol {entry.name}: talks on this machine alone; leave --{remote[0]} out")
        return {}

    def _sampling(self) -> dict[str, Any]:
        """How the next token is chosen, and where an answer ends."""
        random = self.temperature > 0
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k} if random else {}
        stop = {"stop_strings": self.stop} if self.stop else {}
        return {
            "seed": self.seed, "do_sample": random, "repetition_penalty": self.repetition_penalty, **drawn, **stop
        }  # fmt: skip

    def _drafting(self, chat: Chat | None, assistant: Loaded | None) -> dict[str, Any]:
        """The source of draft tokens, and their number."""
        if assistant is None:
            return {"prompt_lookup_num_tokens": self.drafts} if self.drafts else {}
        from ...models.generation import drafts

        if chat is None:  # opening the conversation reports it
            return {}
        model = drafts.assistant(assistant, chat)
        return {"assistant_model": model, "num_assistant_tokens": self.drafts or drafts.DRAFTS}


@dataclass
class Spent:
    """The costs of each pass of one answer."""

    passes: list[tuple[float, float, int, int, int]] = field(default_factory=list)

    def on_pass(self, part: str, answer: Any) -> None:
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
def chat(
    *,
    model: Model,
    prompt: Annotated[
        str | None,
        Argument(help="The message or text to answer once (default: a conversation, a message a line)."),
    ] = None,
    raw: Annotated[
        bool, Option("--raw", help="Continue the text as it is, without the chat template."), Needs("prompt")
    ] = False,
    max_new_tokens: New = None,
    talking: ConversationOptions,
    form: Annotated[options.Form, Needs("prompt")] = "text",
) -> None:
    """Chat with a language model; only this machine sees the words.

    Ctrl-C ends an answer, /save FILE keeps the messages, /new starts a conversation, /quit ends the command.
    """
    if prompt is None:
        _converse(model, max_new_tokens or 256, talking)
        return
    if not prompt.strip():
        raise BlindformerError("prompt: is empty; write something to be answered")
    spent, waiting = Spent(), Waiting()
    with talking.conversation(model, spent.on_pass, waiting) as (talk, _, how):
        with waiting.watching():
            shown = waiting.write if form == "text" else None
            plain = raw or getattr(talk.chat.tokenizer, "chat_template", None) is None
            reply = (talk.complete if plain else talk.say)(prompt, shown, max_new_tokens=max_new_tokens or 64, **how)
        costs = spent.per_token(len(reply.tokens), reply.prompt_passes)
        names = ("text", "tokens", "prompt_tokens", "prefill_s", "passes", "drafts_accepted", "finish")
        result = {name: getattr(reply, name) for name in names} | costs
        print_result(
            form, {**result, "retried": reply.retried} if reply.retried else result, lambda: _show(reply, costs)
        )


def _converse(model: str, max_new_tokens: int, talking: ConversationOptions) -> None:
    """A message a line, until the input ends."""
    spent = Spent()
    out, waiting, unanswered = aside(), Waiting(), False
    with talking.conversation(model, spent.on_pass, waiting) as (talk, entry, how):
        if getattr(talk.chat.tokenizer, "chat_template", None) is None:
            raise BlindformerError(f"{model}: has no chat template, it continues texts; give one as PROMPT")
        out.print(f"[dim]{entry.who.format(parties=talking.parties)}   /save FILE, /new, /quit")
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
                    reply = talk.say(line, waiting.write, max_new_tokens=max_new_tokens, **how)
            except BlindformerError as error:  # the conversation goes on with the next message
                unanswered = type(error).__name__ != "GenerationError"
                out.print(f"[red]{escape(str(error))}")
                continue
            unanswered = False
            talk.prepare()
            _show(reply, spent.per_token(len(reply.tokens), reply.prompt_passes))
    if unanswered:
        raise Exit(1)


def _show(reply: Completion, costs: dict[str, float]) -> None:
    """The costs of an answer, whose text is on stdout already."""
    tokens, seconds = len(reply.tokens), reply.seconds - reply.prefill_s
    rate = (tokens - 1) / seconds if tokens > 1 and seconds > 0 else 0.0
    sys.stdout.write("\n")
    aside().print(
        f"[dim]{tokens} tokens, {rate:.2f} a second, the first after {reply.prefill_s:.1f} s"
        + (f", {reply.drafts_accepted} from drafts" if reply.drafts_accepted else "")
        + f"   {costs['online_bytes_per_token'] / MB:.1f} MB online and {costs['offline_bytes_per_token'] / MB:.1f} MB "
        f"offline a token, {costs['rounds_per_token']:.0f} rounds"
        + (f"   ({reply.finish})" if reply.finish != "stop" else "")
        + (f"   read again in a new session ({escape(reply.retried)})" if reply.retried else "")
    )


def _lines() -> Iterator[str]:
    """Lines of input, until it ends or Ctrl-C is typed at the prompt."""
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
