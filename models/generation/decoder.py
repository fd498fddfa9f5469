"""A causal language model as a function of its new tokens and of the rows that it kept: what a Program is made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BlindformerError
from ..loading.huggingface import huggingface
from ..lowering.lower import Inputs

if TYPE_CHECKING:
    from ..loading.load import Loaded

# Gumbel noise: the most likely token of scores plus noise is a token drawn by these scores.
#
# The client draws the noise and shares it as its own input, so that a token can be drawn on secrets. A place has the
# same noise whatever passes come to it, so a seed draws the same again, with drafts and without. A place that is read
# again after a wrong draft keeps its noise: nothing that was drawn from it was kept.

MAX_TEMPERATURE = 2.0  # what calibration leaves room for


@dataclass(frozen=True)
class Noise:
    """For each word of a vocabulary at these places of a text, [1, places, words]; none at temperature 0."""

    words: int
    temperature: float = 0.0
    seed: int = 0

    def __call__(self, places: Iterable[int]) -> Tensor:
        if not self.temperature:
            return torch.zeros(1, len(list(places)), self.words)
        return self.temperature * torch.stack([_of_place(self.seed, place, self.words) for place in places])[None]


def _of_place(seed: int, place: int, words: int) -> Tensor:
    generator = torch.Generator().manual_seed((seed + place * 0x9E3779B97F4A7C15) % 2**63)
    drawn = torch.empty(words, dtype=torch.float64).exponential_(generator=generator)
    return -drawn.clamp(min=1e-12).log().float()


REVEALED = ("scores", "token")  # of each token's successor: scores of all words, or the most likely word
KV_LENGTH = "rows"  # the public input of a pass: how many rows the KV cache holds
ATTENTION = "grouped"  # the name under which transformers knows the function below


class GenerationError(BlindformerError):
    """A model or a text that cannot be answered token by token."""


def causal_model(loaded: Loaded) -> Any:
    """transformers' own model, as it generates. Errors: GenerationError for models of another kind."""
    if loaded.task.writes:
        raise GenerationError(f"{loaded.name}: writes about what it reads, and does not talk; use run or query")
    if loaded.kind != "causal" or loaded.processor is None:
        raise GenerationError(f"{loaded.name}: is not a language model with a tokenizer; chat needs one")
    inner: Any = getattr(loaded.model, "model", None)
    return inner if hasattr(inner, "lm_head") or hasattr(inner, "generate") else loaded.model


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention in which grouped keys and values are read as they were kept, not repeated for each query's head."""
    for name in ("softcap", "s_aux"):
        if more.get(name) is not None:
            raise GenerationError(f"attention with {name}: has no form with kept rows yet; take another model")
    if (bias := more.get("position_bias")) is not None:
        scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scaling is None else scaling) + bias
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None
    mixed = F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, False, scale=scaling, enable_gqa=key.shape[1] != query.shape[1]
    )
    return mixed.transpose(1, 2).contiguous(), None


class Decoder(nn.Module):
    """The model's next rows: hidden states (or logits), and the keys and values to keep.

    at_end    whether the rows kept stand at the end of their room, right before the new ones: a model that reads the
              distance of two rows off their places needs that

    prefix    ids of the tokens that come before everything, [P]: the model's owner's own, so what attention reads of
              them is computed here, once
    window    how many tokens a token reads beside the prefix, itself and the last before it; None: all
    Its forward takes
        input_ids   [1, n]
        rows        [1] how many rows are kept, and so where these tokens stand after the prefix
        past        key_0, value_0, key_1, ...: rows kept, then any others, [1, heads, L, features]; with a window, the
                    last L of those kept
        noise       [1, n, words] to add to the logits, where only tokens are revealed
    and gives what is revealed of each token, by its name, and new rows by the names of `past`:
        hidden      [1, n, features] the last hidden states, whose product with the table of embeddings is the logits
        logits      [1, n, words], where the head or the embedding is not that table, released to the client
        token       [1, n] the most likely, and no score (reveal="token")
    """

    at_end = False

    def __init__(
        self,
        model: nn.Module,
        prefix: Tensor,
        reveal: str = "scores",
        embedding: str = "client",
        window: int | None = None,
    ) -> None:
        super().__init__()
        if window is not None and window < 1:
            raise GenerationError(f"window {window}: a token reads itself at least; give 1 or more, or None for all")
        if reveal not in REVEALED:
            raise GenerationError(f"reveal={reveal!r}: choose {' or '.join(REVEALED)}")
        config: Any = model.config
        self.config = config.get_text_config() if hasattr(config, "get_text_config") else config
        self.model = model
        scores = "hidden" if embedding == "client" and self._is_tied() else "logits"
        self.gives = "token" if reveal == "token" else scores
        taken = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in taken else "past_key_values"
        if self.cache_name not in taken:
            raise GenerationError(f"{type(model).__name__}: keeps no keys and values; take a decoder that does")
        self.names: tuple[str, ...] = ()
        self.prefix_length, self.window = 0, window
        _attend(model)
        self._keep_prefix(prefix)

    def _keep_prefix(self, prefix: Tensor) -> None:
        cache, position = filled_cache(), torch.arange(len(prefix))
        options = {"attention_mask": self._masks(position, position[:0]), "use_cache": True, self.cache_name: cache}
        with torch.no_grad():
            self.model(input_ids=prefix[None], position_ids=position[None], **options)
        if not cache.layers or any(layer.keys is None for layer in cache.layers):
            raise GenerationError(f"{type(self.model).__name__}: keeps other state than keys and values")
        names: list[str] = []
        for number, layer in enumerate(cache.layers):
            for kind, rows in (("key", layer.keys), ("value", layer.values)):
                names.append(f"{kind}_{number}")
                # Persistent, so a parameter: the model's owner's alone.
                self.register_buffer(f"prefix_{names[-1]}", rows.detach().clone(), persistent=True)
        self.names, self.prefix_length = tuple(names), len(prefix)

    def inputs(self, last: bool = False) -> Inputs:
        """What a pass takes that is not the client's alone. `last`: of more rows than there is room for, the last."""
        return Inputs(frozenset({KV_LENGTH}), frozenset(self.names), last)

    def _is_tied(self) -> bool:
        """Whether logits are the last hidden states times the table of embeddings, and nothing more."""
        table = tied_table(self.model)
        if table is None:
            return False
        ids, base = torch.arange(min(4, len(table)))[None], cast(nn.Module, self.model.base_model)
        with torch.no_grad():
            hidden = base(input_ids=ids).last_hidden_state
            return torch.allclose(self.model(input_ids=ids).logits, hidden @ table.T, rtol=1e-4, atol=1e-4)

    def empty(self, slots: int) -> dict[str, Tensor]:
        """State that holds nothing yet, with room for as many rows."""
        return {name: torch.zeros(1, rows.shape[1], slots, rows.shape[3]) for name, rows in self._prefixes()}

    def _prefixes(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.names:
            yield name, self.get_buffer(f"prefix_{name}")

    def forward(
        self, input_ids: Tensor, rows: Tensor, noise: Tensor | None = None, **past: Tensor
    ) -> dict[str, Tensor]:
        joined = {name: torch.cat([rows, past[name]], -2) for name, rows in self._prefixes()}
        cache = filled_cache([(joined[f"key_{n}"], joined[f"value_{n}"]) for n in range(len(joined) // 2)])
        places = counted(past[self.names[0]])
        first = 0 if self.window is None else (rows - 1 - places[-1:]).clamp(min=0)
        stands = torch.where(places < rows, places + self.prefix_length + first, -1)
        position = torch.arange(input_ids.shape[1]) + (rows + self.prefix_length)
        options = {
            "position_ids": position[None],
            "attention_mask": self._masks(position, stands),
            "use_cache": True,
            self.cache_name: cache,
        }
        if self.gives == "hidden":
            base: Any = self.model.base_model
            revealed = base(input_ids=input_ids, **options).last_hidden_state
        else:
            revealed = self.model(input_ids=input_ids, **options).logits
        return self._outputs(revealed, noise, cache, input_ids.shape[1])

    def _outputs(self, revealed: Tensor, noise: Tensor | None, cache: Any, count: int) -> dict[str, Tensor]:
        """By name. `revealed`: hidden states or logits; `cache`: the last `count` of its rows are new."""
        if self.gives == "token":
            revealed = (revealed if noise is None else revealed + noise).argmax(-1).to(revealed.dtype)
        outputs = {self.gives: revealed}
        for name in self.names:
            kind, number = name.split("_")
            layer = cache.layers[int(number)]
            outputs[name] = (layer.keys if kind == "key" else layer.values)[:, :, -count:]
        return outputs

    def _masks(self, position: Tensor, kept: Tensor) -> Tensor | dict[str, Tensor]:
        """[1, 1, n, P + L + n]: True where a row may be read; for models with several kinds of layers, by kind.

        position, kept: where the new rows and those kept stand in the text, -1 where there is none.
        """
        stands = torch.cat([torch.arange(self.prefix_length), kept, position])
        distance = position[:, None] - stands[None]
        seen = (distance >= 0) & (stands >= 0)[None]
        if self.window is not None:
            seen = seen & ((distance < self.window) | (stands < self.prefix_length)[None])
        window = getattr(self.config, "sliding_window", None)
        kinds = set(getattr(self.config, "layer_types", None) or ())
        near = seen if window is None else seen & (distance < window)
        by_kind = {"full_attention": seen[None, None], "sliding_attention": near[None, None]}
        if not kinds:
            return by_kind["sliding_attention" if window is not None else "full_attention"]
        if unknown := kinds - set(by_kind):
            raise GenerationError(f"{type(self.model).__name__}: has layers of {', '.join(sorted(unknown))}, not known")
        return by_kind if len(kinds) > 1 else by_kind[kinds.pop()]


def counted(rows: Tensor) -> Tensor:
    """Places of a state's rows, from 0: counted, not stated, so that one trace serves any number of them."""
    return torch.ones_like(rows[0, 0, :, :1]).cumsum(0).long()[:, 0] - 1


def filled_cache(layers: Sequence[tuple[Tensor, Tensor]] = (), cache: Any = None) -> Any:
    """transformers' own cache, which its decoders ask for rows and give rows to. `cache`: one that is empty."""
    with huggingface() as transformers:
        cache = transformers.DynamicCache() if cache is None else cache
        for keys, values in layers:
            layer = transformers.cache_utils.DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
    return cache


def ends_of(defaults: Any) -> list[int]:
    """Tokens that end an answer, of a GenerationConfig."""
    ends = defaults.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


@contextmanager
def attention_kept(model: Any) -> Iterator[None]:
    """Afterwards the model computes attention as before: it is its owner's, who goes on with it."""
    before = model.config._attn_implementation
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(model: Any) -> None:
    with huggingface() as transformers:
        transformers.AttentionInterface.register(ATTENTION, grouped_attention)
        try:
            model.set_attn_implementation(ATTENTION)
        except (AttributeError, ValueError):
            raise GenerationError(
                f"{type(model).__name__}: computes attention in its own way, without a mask"
            ) from None


def tied_table(model: Any) -> Tensor | None:
    """The table of embeddings, if it is the head's matrix, too."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not table.weight or getattr(head, "bias", None) is not None:
        return None
    return table.weight


def conversation(
    decoder: Decoder, ids: Tensor, size: int, slots: int, given: Mapping[str, Tensor] | None = None
) -> Iterator[dict[str, Tensor]]:
    """The decoder's inputs for a text, `size` tokens at a time, with what it keeps: for as many as there is room, or,
    with a window, all. `given`: what every pass takes besides."""
    past, most = decoder.empty(slots), len(ids) if decoder.window is not None else min(len(ids), slots)
    for start in range(0, most - size + 1, size):
        batch = {"input_ids": ids[None, start : start + size], KV_LENGTH: torch.tensor([start]), **(given or {})}
        if decoder.gives == "token":
            batch["noise"] = Noise(decoder.config.vocab_size, MAX_TEMPERATURE)(range(start, start + size))
        yield {**batch, **{name: tensor.clone() for name, tensor in past.items()}}
        with torch.no_grad():
            outputs: Mapping[str, Tensor] = decoder(**batch, **past)
        for name in decoder.names:
            before = past[name][:, :, slots - min(start, slots) :] if decoder.at_end else past[name][:, :, :start]
            rows = torch.cat([before, outputs[name]], -2)[:, :, -slots:]
            free = slots - rows.shape[-2]
            past[name] = F.pad(rows, (0, 0, free, 0) if decoder.at_end else (0, 0, 0, free))


# Which token of the calibration texts has the largest values: one far beyond all others leaves them too few bits.


@dataclass(frozen=True)
class Sink:
    """`times`: how many times the values of the module's median token its values at `token` reach."""

    module: str
    token: int
    place: int
    times: float


def sink(decoder: Decoder, texts: Iterable[Tensor]) -> Sink:
    """Of all tokens after the prefix, the one with the largest values beside other tokens' of the same module."""
    largest = Sink("", 0, 0, 0.0)
    for ids in texts:

        def seen(module: Any, given: Any, out: Any, ids: Tensor = ids, name: str = "") -> None:
            nonlocal largest
            value = out[0] if isinstance(out, tuple) else out
            if isinstance(value, Tensor) and value.shape[:-1] == (1, len(ids)):
                tops = value[0].abs().amax(-1)
                place, times = int(tops.argmax()), float(tops.max() / tops.median().clamp(min=1e-9))
                if times > largest.times:
                    largest = Sink(name, int(ids[place]), place, times)

        hooks = [
            module.register_forward_hook(lambda *given, name=name, seen=seen: seen(*given, name=name))
            for name, module in decoder.model.named_modules()
        ]
        try:
            for _ in conversation(decoder, ids, len(ids), len(ids)):
                pass  # its forward pass has been seen when it ends
        finally:
            for hook in hooks:
                hook.remove()
    return largest
