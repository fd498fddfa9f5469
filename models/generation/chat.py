"""What a conversation needs besides the Program: how messages become tokens, where the public prefix ends, defaults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch

from ...approximations import CalibrationError, Plan
from ..compile import Compiled, Progress
from ..loading.calibration_texts import TEXTS
from ..loading.huggingface import FILES_ALONE, huggingface
from ..loading.load import Loaded
from ..program.program import Program, ProgramError
from ..weight_owners import Weights
from .decoder import Decoder, GenerationError, attention_kept, causal_model, sink
from .parts import SIZES, compile_decoder

SLOTS = 256
_FILE = "chat.json"
_APART = ("tokenizer", "config", "defaults")  # which have files of their own
_CONVERSATIONS = 6  # to calibrate on, of as many tokens as the largest pass is asked for
_TOKENS = 128
_FAR = 20.0  # times the values of other tokens


@dataclass
class Chat:
    """`prefix`: ids of the tokens that begin every conversation, which the model's owner chose. `system`: the text in
    them. `head`: the released table that gives logits of the last hidden states; "": logits, or tokens alone, are
    revealed."""

    tokenizer: Any
    config: Any
    defaults: Any
    prefix: list[int]
    system: str = ""
    head: str = ""

    def prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens of a conversation, up to where the answer begins. Errors: GenerationError."""
        return self.checked(_template(self.tokenizer, _with_system(messages, self.system)))

    def text(self, text: str | Sequence[int]) -> list[int]:
        """Tokens of a text to be continued, after the prefix. Errors: GenerationError."""
        if not text:
            raise GenerationError("prompt: is empty; write something to be continued")
        if not isinstance(text, str):
            return self.checked([*self.prefix, *text])
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return self.prefix + ids

    def item(self, item: Any, task: str) -> Any:
        """An input as a model reads it that writes about one."""
        return item

    def checked(self, ids: Iterable[int]) -> list[int]:
        """A text that the model may be asked to continue. Errors: GenerationError."""
        tokens, words = [int(token) for token in ids], self.config.get_text_config().vocab_size
        if wrong := [token for token in tokens if not 0 <= token < words]:
            raise GenerationError(f"token {wrong[0]}: the model has {words} words; give ids of its own tokenizer")
        if tokens[: len(self.prefix)] != self.prefix:
            template = getattr(self.tokenizer, "chat_template", None) is not None
            remedy = "use tokenizer.apply_chat_template" if template else f"put the tokens {self.prefix} before it"
            raise GenerationError(
                f"conversation: must begin with the owner's prefix {self.tokenizer.decode(self.prefix)!r}; {remedy}"
            )
        if len(tokens) == len(self.prefix):
            raise GenerationError("prompt: has no token after the prefix; write something to be continued")
        return tokens

    def save(self, folder: Path) -> None:
        """Beside the tokenizer in the client's part."""
        self.config.save_pretrained(folder)
        self.defaults.save_pretrained(folder)
        about = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _APART}
        (folder / _FILE).write_text(json.dumps(about) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, tokenizer: Any) -> Self | None:
        """None: the folder holds no conversation's model."""
        if not (folder / _FILE).is_file():
            return None
        about = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        with huggingface() as transformers:
            config = transformers.AutoConfig.from_pretrained(folder, **FILES_ALONE)
            defaults = transformers.GenerationConfig.from_pretrained(folder, **FILES_ALONE)
        return cls(tokenizer, config, defaults, **about)


def compile_chat(
    loaded: Loaded,
    *,
    plan: Plan | str = "faithful",
    system: str | None = None,
    slots: int | None = None,
    window: int | None = None,
    sizes: Iterable[int] = SIZES,
    reveal: str = "scores",
    embedding: str = "client",
    weights: Weights | None = None,
    texts: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Compiled, Chat]:
    """Compile a causal model to answer token by token.

    system      what every conversation begins with, the owner's choice (default: the model's own, if its template has
                one)
    slots       tokens of a conversation, the prefix not counted (default: 256; with a window, as the model takes)
    window      how many tokens a token reads beside the prefix: itself and the last before it (default: all). A
                conversation costs no more past it, and what was said before it is lost
    reveal      what the client learns of each next token: "scores" of all words, or the "token" alone
    embedding   "client": the table of words is released to the client; "private": it stays with the server
    weights     "private": the server's; "public": open to every computing party; or patterns of the model's
                parameters by either: what a system prompt becomes is private as soon as one of them is
                (default: private; with an adapter the base's are public, and the adapter's are always private)
    texts       typical texts to calibrate on (default: built-in ones). Never a user's
    progress    as of `compile`

    Errors: GenerationError, and those of `compile`.
    """
    model, prefix, slots = model_and_prefix(loaded, system, slots, window)
    typical = list(_typical(loaded.processor, prefix, system, texts or TEXTS))
    with attention_kept(model):
        decoder = Decoder(model, torch.tensor(prefix), reveal, embedding, window).eval()
        try:
            compiled = compile_decoder(
                decoder,
                typical,
                plan,
                slots=slots,
                sizes=sizes,
                embedding=embedding,
                weights=loaded.weights(weights).within("model.", ["prefix_*"]),
                progress=progress,
                name=loaded.name,
            )
        except (CalibrationError, ProgramError) as error:
            raise _with_sink(error, decoder, typical, loaded.processor) from None
    head = table_of(next(iter(compiled.parts.values())).program) if decoder.gives == "hidden" else ""
    return compiled, Chat(loaded.processor, model.config, model.generation_config, prefix, system or "", head)


def model_and_prefix(
    loaded: Loaded, system: str | None, slots: int | None, window: int | None = None
) -> tuple[Any, list[int], int]:
    """The language model itself, the ids of what begins its conversations, and how many tokens these may have.

    Errors: GenerationError for another kind of model, and where there is no room.
    """
    model = causal_model(loaded)
    most = loaded.positions
    prefix = prefix_ids(loaded.processor, system)
    if slots is None and window is not None and most is None:
        raise GenerationError(f"{loaded.name}: takes any number of tokens; give those of a conversation (--tokens)")
    if slots is None:
        slots = SLOTS if window is None or most is None else most - len(prefix)
    if most is not None and len(prefix) + slots > most:
        raise GenerationError(
            f"{loaded.name}: takes {most} tokens, of which the prefix is {len(prefix)}; compile for at most "
            f"{most - len(prefix)}"
        )
    if window is not None and window > slots:
        raise GenerationError(
            f"window {window}: a conversation has up to {slots} tokens; lower --window to {slots}, or raise --tokens"
        )
    return model, prefix, slots


def _with_sink(
    error: CalibrationError | ProgramError, decoder: Decoder, typical: Sequence[torch.Tensor], tokenizer: Any
) -> CalibrationError | ProgramError:
    """The error with the token that most likely is its reason, if one stands out."""
    outlier = sink(decoder, typical)
    if outlier.times < _FAR:
        return error
    return type(error)(
        f"{error}. Token {tokenizer.decode([outlier.token])!r} at place {outlier.place} has {outlier.times:.0f} times "
        f"others' values in {outlier.module}: add it to the prompt (--system)"
    )


def prefix_ids(tokenizer: Any, system: str | None) -> list[int]:
    """Tokens that every conversation begins with: those that do not depend on what a user writes."""
    if getattr(tokenizer, "chat_template", None) is None:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if first is None:
            raise GenerationError(
                "tokenizer: has neither a template nor a first token, so nothing public begins a text"
            )
        return [first, *(tokenizer(system, add_special_tokens=False)["input_ids"] if system else [])]
    one, other = (_template(tokenizer, _with_system([{"role": "user", "content": t}], system)) for t in ("a", "7"))
    same = next(place for place, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    return one[:same]


def _typical(tokenizer: Any, prefix: list[int], system: str | None, texts: Sequence[str]) -> Iterable[torch.Tensor]:
    """Conversations of sentences, by the model's own template, without the prefix."""
    for number in range(_CONVERSATIONS):
        chosen = [texts[(number + k * _CONVERSATIONS) % len(texts)] for k in range(len(texts) // _CONVERSATIONS + 1)]
        if getattr(tokenizer, "chat_template", None) is None:
            ids = tokenizer(" ".join(chosen), add_special_tokens=False, verbose=False)["input_ids"]
        else:
            roles = ("user", "assistant")
            messages = [{"role": roles[place % 2], "content": text} for place, text in enumerate(chosen)]
            ids = _template(tokenizer, _with_system(messages, system))[len(prefix) :]
        yield torch.tensor(ids[:_TOKENS])


def _with_system(messages: Sequence[dict[str, str]], system: str | None) -> list[dict[str, str]]:
    return [*([{"role": "system", "content": system}] if system else []), *messages]


def _template(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def table_of(program: Program) -> str:
    """The table of embeddings that new tokens read, by its name among the client's tensors."""
    return next(step.args[0]["ref"] for step in program.prelude if step.target.startswith("aten.embedding"))
