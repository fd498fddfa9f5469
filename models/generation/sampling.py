"""Answers from a private decoder by transformers' own `generate`: sampling, stopping and drafts are the client's."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .decoder import MAX_TEMPERATURE, GenerationError, Noise
from .drafts import DraftTimes, PayingDrafts
from .logprobs import Logprobs
from .rows import KVState

# Of `generate`, for a model that reveals the token alone: options that need no scores, and values that change nothing.
_OF_TOKENS = (
    *("max_new_tokens", "max_length", "streamer", "stopping_criteria", "stop_strings", "tokenizer"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_model"),
)
_NEUTRAL = {"top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


def check_of_tokens(do_sample: bool = False, temperature: float | None = None, **options: Any) -> None:
    """Whether a model that reveals the token alone can be asked so. Errors: GenerationError."""
    for name, value in options.items():
        if name not in _OF_TOKENS and value is not None and value != _NEUTRAL.get(name):
            raise GenerationError(
                f"{name}: the model reveals only the token; leave it out, or compile with --reveal scores"
            )
    temperature = 1.0 if temperature is None else temperature
    if do_sample and not 0 < temperature <= MAX_TEMPERATURE:
        raise GenerationError(
            f"temperature {temperature:g}: a model that reveals only the token takes up to {MAX_TEMPERATURE:g}; "
            "lower it"
        )


class RowsCache(Cache):
    """The kept rows, as `generate` sees them: how many, and that the last can be dropped."""

    def __init__(self, rows: KVState) -> None:
        super().__init__(layers=[])
        self.kept = rows

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return len(self.kept.ids)

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_linear(self) -> list[bool]:
        return [False]

    @property
    def is_croppable(self) -> bool:
        return True

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            self.kept.crop(len(self.kept.ids) - abs(tokens_to_remove))


class PrivateDecoder(PreTrainedModel, GenerationMixin):
    """A causal model whose forward pass is private: what `generate` asks for.

    `head`: the released table [words, features], where the last hidden states are revealed; None: logits or tokens are.
    """

    main_input_name = "input_ids"
    _supports_cache_class = True

    def __init__(
        self, config: PretrainedConfig, rows: KVState, head: Tensor | None, defaults: GenerationConfig
    ) -> None:
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"  # there is none here, but transformers looks
        config.is_encoder_decoder = False  # what a source is, its rows know
        super().__init__(config)
        self.rows, self.head, self.generation_config = rows, head, defaults
        self.drafts: PayingDrafts | None = None  # of the last answer
        self.draft_times = DraftTimes()
        self.logprobs: Logprobs | None = None  # of this answer, if they are asked for
        self.place = torch.nn.Parameter(torch.zeros(0), requires_grad=False)  # `generate` asks for a device

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Any = None,
        logits_to_keep: int = 0,
        **more: Any,
    ) -> dict[str, Any]:
        """What of the whole text was not read yet."""
        return {"input_ids": input_ids[:, len(self.rows.ids) :], "cache": cache, "logits_to_keep": logits_to_keep}

    def forward(
        self, input_ids: Tensor, cache: Any = None, logits_to_keep: int = 0, **more: Any
    ) -> CausalLMOutputWithPast:
        """`logits_to_keep`: of so many of the last tokens scores are wanted; 0: of all."""
        if len(input_ids) != 1:
            raise GenerationError(
                f"generate: cannot read {len(input_ids)} texts at once; use num_beams=1 and num_return_sequences=1"
            )
        whole = not logits_to_keep or (self.logprobs is not None and self.logprobs.of_prompt)
        revealed = self.rows.read(input_ids[0].tolist(), None if whole else logits_to_keep)
        if self.rows.words:
            tokens = revealed.round().long()[:, None]
            logits = torch.full((len(tokens), self.rows.words), -torch.inf).scatter(1, tokens, 0.0)
        else:
            logits = revealed if self.head is None else revealed @ self.head.T
        if self.logprobs is not None:
            self.logprobs.read(len(self.rows.ids) - len(logits), logits)
        return CausalLMOutputWithPast(logits=logits[None, -logits_to_keep:], cache=cache)

    def _get_candidate_generator(self, generation_config: GenerationConfig, *given: Any, **options: Any) -> Any:
        parent: Any = super()
        drafter = parent._get_candidate_generator(generation_config, *given, **options)
        # A seed draws the same again only if nothing depends on time.
        self.drafts = PayingDrafts(drafter, self.rows, self.draft_times, always=bool(generation_config.do_sample))
        return self.drafts

    def most_likely(self, ids: Sequence[int], tokens: Iterable[int]) -> int:
        """Of some tokens, the one that comes after others, which are read."""
        some = list(tokens)
        logits = self(torch.tensor([ids[len(self.rows.ids) :]]), logits_to_keep=1).logits[0, -1]
        return some[int(logits[some].argmax())]

    def answer(self, ids: Tensor, logprobs: Logprobs | None = None, **options: Any) -> Tensor:
        """The tokens after `ids` [tokens], which begin with the prefix. What was read of them before is not read again.
        Ends as `generate` does. `max_new_tokens=0`: they are read, and none comes after them."""
        if logprobs is not None and self.rows.words:
            check_of_tokens(logprobs=logprobs)
        same = zip(self.rows.ids, ids.tolist(), strict=False)
        read = next((place for place, (old, new) in enumerate(same) if old != new), len(self.rows.ids))
        if logprobs is not None:
            logprobs.begin(ids.tolist(), self.rows.prefix)
            read = 0 if logprobs.echo else read
        self.rows.crop(min(read, len(ids) - 1))  # one token at least is read anew
        self.drafts, self.rows.asked, self.logprobs = None, len(ids) - len(self.rows.ids), logprobs
        self.rows.drafts = 0
        if options.get("max_new_tokens") == 0:
            self(ids[None, len(self.rows.ids) :], logits_to_keep=1)
            return ids[:0]
        if self.rows.words:
            options = self._by_noise(**options)
        mine: Any = self  # transformers' types ask for more than `generate` does
        tokens = mine.generate(ids[None], cache=RowsCache(self.rows), **options)
        self.rows.finish()
        return tokens[0, len(ids) :]

    def _by_noise(self, generation_config: GenerationConfig | None = None, **options: Any) -> dict[str, Any]:
        """What is left for `generate` where nothing but tokens is known, and only noise can draw them.

        Errors: GenerationError for what would need the scores.
        """
        configured = {} if generation_config is None else generation_config.to_diff_dict()
        configured.pop("transformers_version", None)
        options = {**configured, **options}
        check_of_tokens(**options)
        do_sample, temperature = bool(options.get("do_sample")), options.get("temperature")
        temperature = 1.0 if temperature is None else temperature
        seed = int(torch.randint(2**62, ()))
        self.rows.noise = Noise(self.rows.words, temperature if do_sample else 0.0, seed)
        ends = {
            name: getattr(self.generation_config, name) for name in ("eos_token_id", "bos_token_id", "pad_token_id")
        }
        return {
            **{name: value for name, value in options.items() if name in _OF_TOKENS},
            "generation_config": GenerationConfig(do_sample=False, **ends),
        }
