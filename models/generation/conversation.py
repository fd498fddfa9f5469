"""A conversation at its client: messages in, text out as it comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from .chat import Chat
from .decoder import GenerationError, ends_of
from .drafts import DRAFTS, assistant
from .logprobs import Logprobs
from .rows import KVState
from .sampling import PrivateDecoder
from .seq2seq import Seq2Seq

OnText = Callable[[str], None]


@dataclass
class Completion:
    """`prefill_s`, `seconds`: from the question to the first token, and to the end. `passes`: through the model;
    `prompt_passes`: to the first token; `drafts_accepted`: tokens that came without a pass of their own. `retried`: why
    a session was lost, if one was: what was said was read again in another. `language`: that a model of speech in many
    languages heard, or was told ("en"); of pieces of one recording, the first's."""

    text: str
    tokens: list[int] = field(repr=False)
    prompt_tokens: int = 0
    prefill_s: float = 0.0
    seconds: float = 0.0
    passes: int = 0
    prompt_passes: int = 0
    drafts_accepted: int = 0
    finish: str = "stop"
    retried: str = ""
    language: str = ""


def joined(replies: Sequence[Completion]) -> Completion:
    """The texts about pieces of one recording as one."""
    if len(replies) == 1:
        return replies[0]
    counts = ("prompt_tokens", "seconds", "passes", "drafts_accepted")
    sums = {name: sum(getattr(reply, name) for reply in replies) for name in counts}
    retried = next((reply.retried for reply in replies if reply.retried), "")
    tokens = [token for reply in replies for token in reply.tokens]
    text = " ".join(filter(None, (reply.text.strip() for reply in replies)))
    finish = next((reply.finish for reply in replies if reply.finish != "stop"), "stop")
    return replace(replies[0], text=text, tokens=tokens, finish=finish, retried=retried, **sums)


class Conversation:
    """`messages`: what was said, as chat templates take it. It continues from what was read before."""

    def __init__(self, chat: Chat, rows: KVState, head: Tensor | None = None) -> None:
        """`rows`: how tokens are read; `head`: the released table that gives logits of what `rows` reveals."""
        self.chat, self.rows, self.messages = chat, rows, list[dict[str, str]]()
        self.decoder = PrivateDecoder(chat.config, rows, head, chat.defaults)
        self._assistants: dict[Any, Any] = {}
        self.stopped, self.retried = False, ""

    def say(self, text: str, on_text: OnText | None = None, **options: Any) -> Completion:
        """One message and its answer. `options`: transformers' own of `generate`. Errors: GenerationError."""
        if not text.strip():
            raise GenerationError("message: is empty; write something")
        if getattr(self.chat.tokenizer, "chat_template", None) is None:
            raise GenerationError("model: has no chat template; it continues texts: use generate")
        messages = [*self.messages, {"role": "user", "content": text}]
        reply = self.answer(self.chat.prompt(messages), on_text, **options)
        self.messages = [*messages, {"role": "assistant", "content": reply.text}]
        return reply

    def complete(self, text: str, on_text: OnText | None = None, **options: Any) -> Completion:
        """A text and what comes after it. Errors: GenerationError."""
        return self.answer(self.chat.text(text), on_text, **options)

    def write(
        self, part: str, inputs: Mapping[str, Tensor], on_text: OnText | None = None, **options: Any
    ) -> Completion:
        """What an encoder-decoder model writes about a source. `part`: that reads it; `options`: of `answer`, and of
        `Seq2Seq.prompt_for`. Errors: GenerationError."""
        assert isinstance(self.chat, Seq2Seq)
        started, before = time.perf_counter(), self.rows.passes
        chosen = {name: options.pop(name) for name in ("language", "task") if name in options}
        self.chat.prompt_for(
            lambda prompt, some: next(iter(some)), **chosen
        )  # an error comes before the source is read
        self.rows.read_source(part, inputs)
        prompt = self.chat.prompt_for(self.decoder.most_likely, **chosen)
        reply = self.answer(prompt, on_text, **options)
        read, seconds = self.rows.passes - before - reply.passes, time.perf_counter() - started - reply.seconds
        return replace(
            reply,
            prefill_s=reply.prefill_s + seconds,
            seconds=reply.seconds + seconds,
            passes=reply.passes + read,
            prompt_passes=reply.prompt_passes + read,
            language=self.chat.language_of(prompt),
        )

    def answer(
        self, ids: Sequence[int], on_text: OnText | None = None, logprobs: Logprobs | None = None, **options: Any
    ) -> Completion:
        """What comes after these tokens, which begin with the prefix. `seed`: draws the same again. `assistant_model`:
        a small public model, or its name, that drafts `num_assistant_tokens` here, in the clear. `logprobs`: is told
        how likely the tokens are."""
        ids = self.chat.checked(ids)
        room = self._room(ids)
        if options.get("assistant_model") is not None:
            options["assistant_model"] = drafting = self._drafting(options["assistant_model"])
            drafting.generation_config.num_assistant_tokens = options.pop("num_assistant_tokens", DRAFTS)
            drafting.generation_config.assistant_confidence_threshold = 0.0  # a pass that is not full costs as much
        wanted = options.pop("max_new_tokens", None)
        wanted = room if wanted is None else min(wanted, room)
        self.retried = ""
        self.stopped, before, started = False, self.rows.passes, time.perf_counter()
        first: list[tuple[float, int]] = []

        def began() -> None:
            first.append((time.perf_counter(), self.rows.passes))

        streamer = _Streamer(self.chat.tokenizer, on_text or (lambda text: None), began, logprobs)
        options.setdefault("pad_token_id", self.chat.tokenizer.pad_token_id)
        stop = StoppingCriteriaList([_Stop(self, len(ids) + room)])
        if options.get("stop_strings"):
            options["tokenizer"] = self.chat.tokenizer
        seed = options.pop("seed", None)
        with torch.no_grad(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            tokens = self.decoder.answer(
                torch.tensor(ids),
                streamer=streamer,
                stopping_criteria=stop,
                max_new_tokens=wanted,
                logprobs=logprobs,
                **options,
            ).tolist()
        seconds, passes = time.perf_counter() - started, self.rows.passes - before
        text = self.chat.tokenizer.decode(tokens, skip_special_tokens=True)
        ended = bool(tokens) and tokens[-1] in ends_of(self.decoder.generation_config)
        finish = "stop" if ended or (not self.stopped and len(tokens) < wanted) else "length"
        at, read = first[0] if first else (started + seconds, before + passes)
        prompt_passes = read - before
        return Completion(
            text,
            tokens,
            len(ids) - self.rows.prefix,
            at - started,
            seconds,
            passes,
            prompt_passes,
            self.decoder.drafts.accepted if self.decoder.drafts else 0,
            "interrupted" if self.stopped else finish,
            self.retried,
        )

    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Tensor:
        """What transformers' `generate` returns for these prompts [B, n]: they and the tokens after them, rows padded
        to one length. Rows are answered one after the other; an answer ends where the conversation's room does.

        options   transformers' own: generation_config, streamer, max_new_tokens, ...

        Errors: GenerationError, and transformers' own.
        """
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [self.chat.checked(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, seen, strict=True)]
        rooms, stops, answers = [self._room(ids) for ids in prompts], options.pop("stopping_criteria", None) or [], []
        if options.get("assistant_model") is not None:
            options["assistant_model"] = self._drafting(options["assistant_model"])
        self.stopped, self.retried = False, ""
        for row, ids, room in zip(input_ids, prompts, rooms, strict=True):
            ending = StoppingCriteriaList([*stops, _Stop(self, len(ids) + room)])
            with torch.no_grad():
                new = self.decoder.answer(torch.tensor(ids), stopping_criteria=ending, **options)
            answers.append(torch.cat([row, new]))
        return pad_sequence(answers, batch_first=True, padding_value=self._pad(options))

    def _room(self, ids: Sequence[int]) -> int:
        """How many tokens may come after these. Errors: GenerationError where there is none."""
        length = len(ids) - self.rows.prefix
        if length >= self.rows.slots:
            raise GenerationError(
                f"prompt: {length} tokens fill the compiled {self.rows.slots}; shorten it, begin anew, or "
                "compile for more"
            )
        return self.rows.slots - length

    def _pad(self, options: Mapping[str, Any]) -> int:
        """What fills up the shorter rows of a batch, as transformers chooses it."""
        configs = [options.get("generation_config"), self.decoder.generation_config]
        chosen = [options.get("pad_token_id"), *(getattr(config, "pad_token_id", None) for config in configs)]
        return next((token for token in [*chosen, *ends_of(configs[1])] if token is not None), 0)

    def _drafting(self, model: Any) -> Any:
        """The assistant of this name, read once."""
        if model not in self._assistants:
            self._assistants[model] = assistant(model, self.chat)
        return self._assistants[model]

    def prepare(self) -> None:
        """Between two messages: the parties make what the next question needs, while somebody reads and types. It is
        lost if the next question is much longer or shorter than the last, or does not come."""
        self.rows.prepare()

    def stop(self) -> None:
        """End the answer that is being given, after the token that is on its way; the conversation goes on."""
        self.stopped = True


class _Stop(StoppingCriteria):
    """Ends an answer that is to be stopped, and one that has come to `most` tokens, the prompt's included."""

    def __init__(self, conversation: Conversation, most: int) -> None:
        self.conversation, self.most = conversation, most

    def __call__(self, input_ids: Tensor, scores: Any, **more: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.conversation.stopped or input_ids.shape[1] >= self.most)


class _Streamer(TextStreamer):
    """Words as they are sure: transformers' own way to tell, to a function of ours."""

    def __init__(
        self, tokenizer: Any, on_text: OnText, began: Callable[[], None], logprobs: Logprobs | None = None
    ) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text, self.began, self.waits, self.logprobs = on_text, began, True, logprobs

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt and self.waits:
            self.began()
            self.waits = False
        if not self.next_tokens_are_prompt and self.logprobs is not None:
            self.logprobs.chosen(value.flatten().tolist())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)
