"""Answers from a private decoder by transformers' own `generate`: sampling, stopping and drafts are the client's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .drafts import PayingDrafts
from .rows import Rows


class RowsCache(Cache):
    """The kept rows, as `generate` sees them: how many, and that the last can be dropped."""

    def __init__(self, rows: Rows) -> None:
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

    `head`: the released table [words, features], where the last hidden states are revealed; None: logits are.
    """

    main_input_name = "input_ids"
    _supports_cache_class = True

    def __init__(self, config: PretrainedConfig, rows: Rows, head: Tensor | None, defaults: GenerationConfig) -> None:
        config = copy.deepcopy(config)
        config._attn_implementation = "eager"  # there is none here, but transformers looks
        super().__init__(config)
        self.rows, self.head, self.generation_config = rows, head, defaults
        self.drafts: PayingDrafts | None = None  # of the last answer
        self.place = torch.nn.Parameter(torch.zeros(0), requires_grad=False)  # `generate` asks for a device

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, next_sequence_length: int | None = None, cache: Any = None, **more: Any
    ) -> dict[str, Any]:
        """What of the whole text was not read yet."""
        return {"input_ids": input_ids[:, len(self.rows.ids) :], "cache": cache}

    def forward(self, input_ids: Tensor, cache: Any = None, **more: Any) -> CausalLMOutputWithPast:
        found = self.rows.read(input_ids[0].tolist())
        logits = found if self.head is None else found @ self.head.T
        return CausalLMOutputWithPast(logits=logits[None], cache=cache)

    def _get_candidate_generator(self, generation_config: GenerationConfig, *given: Any, **options: Any) -> Any:
        parent: Any = super()
        drafter = parent._get_candidate_generator(generation_config, *given, **options)
        # A seed draws the same again only if nothing depends on time.
        self.drafts = PayingDrafts(drafter, self.rows, always=bool(generation_config.do_sample))
        return self.drafts

    def answer(self, ids: Tensor, config: GenerationConfig | None = None, **options: Any) -> Tensor:
        """The tokens after `ids` [tokens], which begin with the prefix. What was read of them before is not read again.
        Ends as `generate` does."""
        same = zip(self.rows.ids, ids.tolist(), strict=False)
        read = next((place for place, (old, new) in enumerate(same) if old != new), len(self.rows.ids))
        self.rows.crop(min(read, len(ids) - 1))  # one token at least is read anew
        self.drafts = None
        mine: Any = self  # transformers' types ask for more than `generate` does
        found = mine.generate(ids[None], generation_config=config, cache=RowsCache(self.rows), **options)
        return found[0, len(ids) :]
