"""Tokens that the client guesses ahead, for the private model to check in one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers.generation.candidate_generator import CandidateGenerator, PromptLookupCandidateGenerator

from ..loading.huggingface import huggingface
from ..loading.load import Loaded, load
from .decoder import GenerationError, causal_model
from .rows import KVState

if TYPE_CHECKING:
    from .chat import Chat

DRAFTS = 7  # of an assistant, with the token before them a full pass of 8
SURE = 2  # passes without drafts that tell what they take
LOSS = 1 / 16  # of the time that tokens take without drafts: what wrong drafts may cost
EQUAL, EQUAL_AT_FIRST = 2, 4  # tokens that were there before, so that what followed them then is worth a try


@dataclass
class DraftTimes:
    """What the passes of a conversation took. `plain`: seconds of each without drafts; `spent`, `came`: seconds of all
    with drafts, and the tokens that came of them."""

    plain: list[float] = field(default_factory=list)
    spent: float = 0.0
    came: int = 0

    @property
    def equal(self) -> int:
        """Tokens that look-up asks for. A wrong try takes as long as some tokens: it asks for more until one paid."""
        return EQUAL if self.came and self.spent <= median(self.plain) * self.came else EQUAL_AT_FIRST

    @property
    def pay(self) -> bool:
        """Whether tokens of drafts come no slower than others; or a 16th of the others' time has not gone to them."""
        if len(self.plain) < SURE:
            return False
        return self.spent <= median(self.plain) * (self.came + LOSS * len(self.plain))


class PayingDrafts(CandidateGenerator):
    """The drafts of another generator, as many as one pass reads, and only while they pay.

    `times`: those of the conversation. `always`: draft at every place, so that nothing depends on time or on what was
    read before; rows that are steady do, because their passes have room for drafts anyway. `accepted`: tokens that came
    without a pass of their own.
    """

    def __init__(self, drafter: Any, rows: KVState, times: DraftTimes, always: bool = False) -> None:
        self.drafter, self.rows, self.times, self.always = drafter, rows, times, always or rows.steady
        if rows.steady:
            rows.drafts = int(getattr(drafter, "num_output_tokens", 0) or drafter.num_assistant_tokens)
        if isinstance(drafter, PromptLookupCandidateGenerator):  # what follows the longest of them
            drafter.max_matching_ngram_size = EQUAL_AT_FIRST
        self.accepted = 0
        self._began, self._drafted, self._first, self._before = 0.0, 0, True, 0

    @property
    def num_drafting_tokens(self) -> int:
        """What transformers from 5.25 on asks every generator of candidates for: how many there may be at most."""
        return self.rows.slots

    def get_candidates(self, input_ids: Tensor, **more: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        """The tokens so far and drafts after them [1, n + drafts], and the drafter's logits where it has any."""
        self._began, self._before, self._drafted = perf_counter(), self._drafted, 0
        count = input_ids.shape[1]
        unread = count - len(self.rows.ids)
        by_room = self.rows.steady or not self.always
        room = self.rows.spare(unread, fill=self._first) if by_room else self.rows.slots
        equal = EQUAL if self.always else self.times.equal
        if room and (self._first or (_likely(self.drafter, input_ids[0], equal) and (self.always or self.times.pay))):
            with huggingface():  # it warns of how it calls itself
                candidates, logits = self.drafter.get_candidates(input_ids, **more)
            self._drafted = min(room, candidates.shape[1] - count)
            if self._drafted:
                return candidates[:, : count + self._drafted], None if logits is None else logits[:, : self._drafted]
        return input_ids, None

    def update_candidate_strategy(self, input_ids: Tensor, scores: Tensor, num_matches: int) -> None:  # type: ignore[override]
        """After each pass: how many drafts were right."""
        took, first, self._first = perf_counter() - self._began, self._first, False
        self.accepted += num_matches
        if self._drafted:
            self.drafter.update_candidate_strategy(input_ids, scores, num_matches)
        if first:  # it read the question, and what filled up its pass cost nothing
            self._drafted = 0
            return
        if self._drafted or self._before:  # the pass after drafts pays, too, for what was prepared in vain
            self.times.spent += took
            self.times.came += num_matches + 1
        else:
            self.times.plain.append(took)


def _likely(drafter: Any, ids: Tensor, equal: int) -> bool:
    """Prompt look-up takes what followed one equal token, which is mostly wrong: whether `equal` ones are there."""
    if not isinstance(drafter, PromptLookupCandidateGenerator):
        return True
    return len(ids) > equal and bool((ids.unfold(0, equal, 1)[:-1] == ids[-equal:]).all(-1).any())


def assistant(model: str | Path | Loaded | nn.Module, chat: Chat) -> Any:
    """A public model that drafts, ready for transformers' `assistant_model`.

    model   what `load` takes or gave, or a causal model of transformers

    Errors: GenerationError where its tokens are not those of the private model; LoadError.
    """
    if isinstance(model, nn.Module):
        drafter, name = cast(Any, model), type(model).__name__
    else:
        loaded = model if isinstance(model, Loaded) else load(model)
        drafter, name = causal_model(loaded), loaded.name
        if loaded.processor.get_vocab() != chat.tokenizer.get_vocab():
            raise GenerationError(f"assistant {name}: has another tokenizer than the model; take one of its kin")
    words, wanted = (config.get_text_config().vocab_size for config in (drafter.config, chat.config))
    if words != wanted:
        raise GenerationError(
            f"assistant {name}: has {words} tokens and the private model {wanted}; take one of its kin"
        )
    return drafter
