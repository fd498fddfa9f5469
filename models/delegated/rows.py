"""A conversation with a delegated model, as `KVState` has it of a private one: keys and values stay with the client,
in the model's own cache. What was read costs nothing again, and forgetting is free."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from ..generation.decoder import GenerationError
from .running import PASSES, Carrier, DelegatedRunner, PaddedCarrier
from .sequences import GroupCalls, sequence_of

Attempt = Callable[[Callable[[Carrier], Any]], Any]
"""Runs one pass with the carrier of an open session, and once more in a new session if that one is lost."""


class DelegatedRows:
    """As `KVState`, which says what each attribute is. `attempt`: runs a pass; `ready`: is told between two questions.
    `even`: whether passes are filled up after each answer, so that their number does not tell its length.

    An answer with drafts has passes of one size, whatever they guess: sizes that vary tell questions apart
    (arXiv:2411.01076).
    """

    prefix, words, noise, source = 0, 0, None, ""
    steady = True

    def __init__(
        self,
        runner: DelegatedRunner,
        attempt: Attempt,
        slots: int,
        ready: Callable[[], None] = lambda: None,
        even: bool = False,
    ) -> None:
        self._runner, self._attempt, self._ready, self.slots, self.even = runner, attempt, ready, slots, even
        self.ids: list[int] = []
        self.drafts = 0
        self.passes, self.asked = 0, 1
        self._cache: Any = None
        taken = inspect.signature(type(runner.module).forward).parameters
        self._cache_name = "cache" if "cache" in taken else "past_key_values"  # of older versions of transformers
        self._scores_some = "logits_to_keep" in taken
        self._source: dict[str, Any] = {}  # of an encoder-decoder model: what its encoder gave

    @property
    def rows(self) -> int:
        return len(self.ids)

    def crop(self, length: int) -> None:
        """Forget all tokens from this place on."""
        if length < len(self.ids):
            self.ids = self.ids[: max(length, 0)] if self._cropped(length) else []

    def read(self, ids: Sequence[int], wanted: int | None = None) -> Tensor:
        """Read these tokens after all others: the scores of the next word after each of the last `wanted` (default: of
        all), [tokens, words].

        Errors: GenerationError where there is no room.
        """
        if len(ids) > self.slots - self.rows:
            raise GenerationError(
                f"conversation: {self.rows} + {len(ids)} tokens exceed the model's {self.slots}; begin a new "
                "one, or shorten it"
            )
        count = len(ids) if wanted is None else wanted
        logits = self._attempt(lambda carrier: self._pass(carrier, list(ids), count == 1))
        self.ids += ids
        self.passes += 1
        return logits[0, -count:] if count else logits[0, :0]

    def read_source(self, part: str, inputs: Mapping[str, Tensor]) -> None:
        """Begin an answer to this source, which all of its tokens read."""
        self._forget()
        encoder: Any = self._runner.module.get_encoder()  # type: ignore[operator]
        self._source = {
            "encoder_outputs": self._attempt(lambda carrier: self._runner.run(carrier, encoder, **inputs)),
            **{name: value for name, value in inputs.items() if name == "attention_mask"},
        }
        self.passes += 1

    def sequence(self, count: int) -> GroupCalls:
        """The calls of a pass that reads so many tokens, for the next one's scores."""
        inputs = self._inputs([0] * count, self._new_cache(), True)
        return sequence_of(self._runner.steps(self._runner.module, (), inputs))

    def prepare(self) -> None:
        self._ready()

    def spare(self, count: int, fill: bool) -> int:
        """How many drafts more the last pass may check that reads the next `count` tokens. A cache with a window cannot
        drop wrong ones behind it: all would be read again, and how often would depend on what was guessed."""
        layers = getattr(self._cache, "layers", ())
        windows = [size - 1 for layer in layers if (size := getattr(layer, "sliding_window", None))]
        return 0 if fill else max(0, min([self.slots, *windows]) - self.rows - count)

    def finish(self) -> None:
        """After an answer: passes as those of its tokens were, whose answers nobody reads."""
        while self.even and self.ids and self.passes % PASSES:
            self._attempt(lambda carrier: self._through(carrier, self.ids[-1:], copy.deepcopy(self._cache)))
            self.passes += 1

    def _pass(self, carrier: Carrier, ids: list[int], only_last: bool) -> Tensor:
        if not self._cropped(len(self.ids)):  # else an attempt before this one has read a part
            ids, self._cache = [*self.ids, *ids], self._new_cache()
        cache, self._cache = self._cache, None  # after an error all is read again: it may hold a part of this
        try:
            logits = self._through(carrier, ids, cache, only_last)
        except Exception:
            self._cache = cache if carrier.refused else None
            raise
        self._cache = cache
        return logits

    def _through(self, carrier: Carrier, ids: list[int], cache: Any, only_last: bool = True) -> Tensor:
        carrier = PaddedCarrier(carrier, lambda rows: max(rows, 1 + self.drafts))
        return self._runner.run(carrier, self._runner.module, **self._inputs(ids, cache, only_last)).logits

    def _inputs(self, ids: list[int], cache: Any, only_last: bool) -> dict[str, Any]:
        """`only_last`: the head scores the last token alone, which its server sees, if it has one."""
        name = "decoder_input_ids" if self._source else "input_ids"
        scored = {"logits_to_keep": 1} if only_last and self._scores_some else {}
        return {name: torch.tensor([ids]), self._cache_name: cache, "use_cache": True, **scored, **self._source}

    def _new_cache(self) -> Any:
        module: Any = self._runner.module
        if self._source:
            return EncoderDecoderCache(DynamicCache(), DynamicCache())
        return DynamicCache(config=module.config)

    def _cropped(self, length: int) -> bool:
        """Whether the cache holds the first `length` tokens, and no others, from now on. One with a window may have
        dropped some of them: then it is empty."""
        if self._cache is None:
            return False
        have = self._cache.get_seq_length()
        if have == length:
            return True
        try:
            if have < length or length == 0:
                raise ValueError
            self._cache.crop(length - have)
        except (ValueError, RuntimeError, NotImplementedError):
            self._cache = None
        return self._cache is not None

    def _forget(self) -> None:
        self.ids, self._cache, self._source = [], None, {}
