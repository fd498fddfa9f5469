"""Texts as batches of tokens: alike in length, so that little is padding, and in a seeded order."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...protocols.devices import CPU
from ..data import DataError, Examples
from ..loading.load import BUCKETS, Loaded

_PADDED_TO = 8  # lengths are multiples of this: some padding is seen in training, as it is in a private run


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokenised texts, unpadded.

    columns  by name of the model's input: one list of numbers a text
    padding  by the same names: what stands in padding positions
    labels   [texts]
    device   where batches lie
    """

    columns: dict[str, list[list[int]]]
    padding: dict[str, int]
    labels: Tensor
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.columns["input_ids"]]

    def on(self, device: torch.device) -> Tokens:
        """The same, with batches on a device."""
        return replace(self, device=device)

    def content(self) -> str:
        """What tells one set of texts from another."""
        return json.dumps([self.columns["input_ids"], self.labels.tolist()])

    def batch(self, indices: Sequence[int], length: int | None = None) -> dict[str, Tensor]:
        """The model's inputs for these texts, [texts, length]; default: their longest, rounded up."""
        if length is None:
            length = padded_length(len(self.columns["input_ids"][i]) for i in indices)
        inputs = {}
        for name, rows in self.columns.items():
            value = torch.full((len(indices), length), self.padding[name], dtype=torch.long)
            for at, i in enumerate(indices):
                row = rows[i][:length]
                value[at, : len(row)] = torch.tensor(row)
            inputs[name] = value.to(self.device)
        return inputs

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        """[texts]"""
        return self.labels[torch.as_tensor(indices)].to(self.device)


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images uint8 [N, H, W], as a model of three channels takes them; batches like those of texts. labels [N]."""

    images: Tensor
    labels: Tensor
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> list[int]:
        return [1] * len(self)

    def on(self, device: torch.device) -> Pixels:
        """The same, with batches on a device."""
        return replace(self, device=device)

    def content(self) -> str:
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest() + json.dumps(self.labels.tolist())

    def batch(self, indices: Sequence[int], length: int | None = None) -> dict[str, Tensor]:
        """Grey levels from -1 to 1, [images, 3, H, W]."""
        grey = self.images[torch.as_tensor(indices, dtype=torch.long)].to(self.device).float() / 127.5 - 1.0
        return {"pixel_values": grey[:, None].expand(-1, 3, -1, -1).contiguous()}

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        """[images]"""
        return self.labels[torch.as_tensor(indices)].to(self.device)


EncodedRows = Tokens | Pixels
"""Examples as a model takes them: what training needs of texts and of images alike."""


def pixels(examples: Examples) -> Pixels:
    """Errors: DataError for texts."""
    if not isinstance(examples.inputs, Tensor):
        raise DataError("these examples are texts: an image model cannot see them; give a text model")
    return Pixels(examples.inputs, torch.tensor(examples.labels))


def tokenise(loaded: Loaded, examples: Examples, length: int) -> Tokens:
    """Tokens of texts, cut at `length` or where the model ends.

    Errors: DataError for images, or a model without a tokenizer.
    """
    tokenizer = loaded.processor
    if tokenizer is None or loaded.task.medium is not None:
        raise DataError(f"{loaded.name}: has no tokenizer, so it takes no text; give a text model")
    length = min(length, loaded.positions or length)
    encoded = tokenizer(examples.texts, truncation=True, max_length=length, verbose=False)
    taken = inspect.signature(loaded.model.forward).parameters
    columns = {name: rows for name, rows in encoded.items() if name in taken}
    padding = dict.fromkeys(columns, 0) | {"input_ids": tokenizer.pad_token_id or 0}
    if "token_type_ids" in columns:
        padding["token_type_ids"] = tokenizer.pad_token_type_id
    return Tokens(columns, padding, torch.tensor(examples.labels))


def padded_length(lengths: Iterable[int]) -> int:
    """Tokens that a batch of texts of these lengths is padded to: their longest, rounded up."""
    return -(-max(lengths) // _PADDED_TO) * _PADDED_TO


def epoch_batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Positions of all texts in batches of `size`, of like lengths, in an order that seed and epoch decide.

    Texts are sorted by length with a little noise, so that batches differ between epochs.
    """
    random = np.random.default_rng((seed, epoch))
    order = np.argsort(np.asarray(lengths) + random.uniform(0, 4, len(lengths)), kind="stable")
    batches = [order[start : start + size].tolist() for start in range(0, len(order), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Positions of all texts in batches, sorted by length: to judge, where the order does not matter."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    return [order[start : start + size].tolist() for start in range(0, len(order), size)]


def by_private_length(tokens: Tokens) -> list[dict[str, Tensor]]:
    """Batches padded to each length that a private run will pad their texts to: what ranges are to be measured on."""
    batches = []
    for bucket in BUCKETS:
        least = max([b for b in BUCKETS if b < bucket], default=0)
        fitting = [i for i, n in enumerate(tokens.lengths) if least < n <= bucket]
        batches += [tokens.batch(fitting[at : at + 32], bucket) for at in range(0, len(fitting), 32)]
    return batches


# More texts for a student than the data has: variants of the training texts, which the teacher answers itself.
#
# X. Jiao et al., TinyBERT, arXiv:1909.10351, section 3.3, replace words by what a language model proposes. Here the
# words are those of other training texts, so that no second model is needed; a text may also end as another one does.

UNLABELLED = -1
_DROPPED, _REPLACED, _SPLICED = 0.1, 0.15, 0.3  # of words, of words, of texts


def with_variants(examples: Examples, copies: int, seed: int) -> Examples:
    """The examples, then `copies` variants of each, without labels (-1). A function of the seed."""
    random = np.random.default_rng((seed, copies))
    words = [text.split() for text in examples.texts]
    texts = [_variant(words, at, random) for _ in range(copies) for at in range(len(words))]
    return Examples(examples.texts + texts, list(examples.labels) + [UNLABELLED] * len(texts))


def passages(texts: Sequence[str], count: int, seed: int, most: int = 12) -> list[str]:
    """`count` passages of 2 to `most` of the texts, drawn with the seed: for lengths that single texts do not reach."""
    random = np.random.default_rng((seed, count))
    return [
        " ".join(texts[int(i)] for i in random.integers(0, len(texts), random.integers(2, most + 1)))
        for _ in range(count)
    ]


def _variant(words: Sequence[list[str]], at: int, random: np.random.Generator) -> str:
    own = words[at]
    if random.random() < _SPLICED:
        other = words[int(random.integers(len(words)))]
        own = own[: -(-len(own) // 2)] + other[len(other) // 2 :]
    words_kept = []
    for word in own:
        draw = random.random()
        if draw < _REPLACED:
            other = words[int(random.integers(len(words)))]
            words_kept.append(other[int(random.integers(len(other)))] if other else word)
        elif draw >= _REPLACED + _DROPPED:
            words_kept.append(word)
    return " ".join(words_kept or own)
