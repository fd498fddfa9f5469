"""Where the elements of a value lie: which ciphertext, which slot.

    slot = feature * lanes + lane          lane = text * stride + position

So a rotation by k * lanes moves features past each other and leaves tokens where they are: a weight is applied to all
tokens of all texts at once, and cyclically, as features fill the ciphertext. Features beyond a ciphertext go on in the
next one. Attention needs every text's tokens twice in a row (evaluator.py): its stride is at least twice the length.

Heads are interleaved: feature f of head h is feature f * heads + h, so that a sum over the features of each head is a
few rotations and a sum, with no mask, and leaves the sum in all of the head's features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .parameters import CkksError

Array = np.ndarray


@dataclass(frozen=True)
class Packing:
    """How values are packed throughout one circuit."""

    slots: int
    lanes: int
    stride: int

    @property
    def features(self) -> int:
        """Features of one ciphertext."""
        return self.slots // self.lanes

    @property
    def room(self) -> int:
        """Texts that fill the lanes."""
        return self.lanes // self.stride

    def natural(self, shape: tuple[int, ...]) -> Layout:
        """[B, F], [B, L, F] or [B, heads, L, F], and a number or row of its own as [1, F]."""
        if len(shape) > 4:
            raise CkksError(f"a value of shape {list(shape)}: ckks packs [texts, heads, tokens, features] at most")
        texts, heads, tokens, features = _four(shape)
        if tokens > self.stride or texts * self.stride > self.lanes:
            raise CkksError(
                f"{texts} texts of {tokens} tokens: {self.lanes} lanes of stride {self.stride} do not hold them"
            )
        group = 1 << (heads - 1).bit_length()
        text, head, token, feature = np.ogrid[:texts, :heads, :tokens, :features]
        place = feature * group + head
        lane = text * self.stride + token
        slot = (place % self.features) * self.lanes + lane
        everywhere = np.zeros((texts, heads, tokens, features), dtype=int)
        block = (everywhere + place // self.features).reshape(-1)
        return Layout(self.slots, block, (everywhere + slot).reshape(-1), int(block.max()) + 1)


def _four(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    *lead, features = shape
    if len(lead) <= 1:
        return (lead[0] if lead else 1), 1, 1, features
    return (lead[0], 1, lead[1], features) if len(lead) == 2 else (lead[0], lead[1], lead[2], features)


@dataclass(frozen=True)
class Layout:
    """block [E] and slot [E] of each element, in `blocks` ciphertexts. `copies`: slots that hold it again, [E, C]."""

    slots: int
    block: Array
    slot: Array
    blocks: int
    copies: Array | None = None

    @cached_property
    def everywhere(self) -> Array:
        """[E, 1 + C]: all slots of each element."""
        first = self.slot[:, None]
        return first if self.copies is None else np.concatenate([first, self.copies], axis=1)

    def spread(self, values: Array) -> Array:
        """[E] values -> [blocks, slots], 0 where nothing lies."""
        out = np.zeros((self.blocks, self.slots))
        out[self.block[:, None], self.everywhere] = values.reshape(-1, 1)
        return out

    def collect(self, slots: Array) -> Array:
        """[blocks, slots] -> [E] values."""
        return slots[self.block, self.slot]

    def same(self, other: Layout) -> bool:
        return self is other or (
            self.blocks == other.blocks
            and np.array_equal(self.block, other.block)
            and np.array_equal(self.everywhere, other.everywhere)
        )


def span(tokens: int) -> int:
    """Lanes for the tokens of a text: a power of two."""
    return 1 << (tokens - 1).bit_length()


def packing_for(slots: int, texts: int, tokens: int, features: int, attention: bool) -> Packing:
    """`attention`: of more than one query a text.

    The packing with as many lanes as leave the features that a ciphertext shall hold, if there is room for them.

    Errors: CkksError where one feature of all tokens does not fit a ciphertext.
    """
    stride = span(tokens) * (2 if attention else 1)
    least = (1 << (texts - 1).bit_length()) * stride
    if least > slots:
        raise CkksError(
            f"{texts} texts of {tokens} tokens need {least} slots, N = {2 * slots} has {slots}; compile "
            "for fewer texts or a shorter length"
        )
    wanted = 1 << (features - 1).bit_length()
    return Packing(slots, max(least, slots // wanted), stride)


def score_layout(packing: Packing, texts: int, heads: int, tokens: int, giant: int) -> Layout:
    """Scores [texts, heads, queries, keys] by their offset r = key - query modulo tokens: one ciphertext each.

    Query i lies at lane i + giant part of r, and once in every feature of its head (evaluator.py says why).
    """
    group = 1 << (heads - 1).bit_length()
    text, head, query, key = np.ogrid[:texts, :heads, :tokens, :tokens]
    offset = (key - query) % tokens
    everywhere = np.zeros((texts, heads, tokens, tokens), dtype=int)
    lane = text * packing.stride + query + offset // giant * giant
    slot = (everywhere + head * packing.lanes + lane).reshape(-1)
    repeats = np.arange(1, max(1, packing.features // group)) * group * packing.lanes
    return Layout(
        packing.slots,
        (everywhere + offset).reshape(-1),
        slot,
        tokens,
        slot[:, None] + repeats[None, :] if len(repeats) else None,
    )


def query_layout(packing: Packing, texts: int, heads: int, tokens: int) -> Layout:
    """Scores [texts, heads, 1, keys] of one query: in one ciphertext, each where its key lies, once in every feature of
    its head."""
    group = 1 << (heads - 1).bit_length()
    text, head, key = np.ogrid[:texts, :heads, :tokens]
    slot = (head * packing.lanes + text * packing.stride + key).reshape(-1)
    repeats = np.arange(1, max(1, packing.features // group)) * group * packing.lanes
    copies = slot[:, None] + repeats[None, :] if len(repeats) else None
    return Layout(packing.slots, np.zeros_like(slot), slot, 1, copies)


def baby_steps(tokens: int) -> int:
    """How many offsets keys are rotated by; queries are by multiples of that. Keys and values are rotated, queries and
    results: as many for each."""
    return 1 << math.ceil(math.log2(max(1, tokens)) / 2)
