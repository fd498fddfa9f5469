"""More texts for a student than the data has: variants of the training texts, which the teacher answers itself.

X. Jiao et al., TinyBERT, arXiv:1909.10351, section 3.3, replace words by what a language model proposes. Here the words
are those of other training texts, so that no second model is needed; a text may also end as another one does.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data import Examples

UNLABELLED = -1
_DROPPED, _REPLACED, _SPLICED = 0.1, 0.15, 0.3  # of words, of words, of texts


def with_variants(examples: Examples, copies: int, seed: int) -> Examples:
    """The examples, then `copies` variants of each, without labels (-1). A function of the seed."""
    random = np.random.default_rng((seed, copies))
    words = [text.split() for text in examples.texts]
    texts = [_variant(words, at, random) for _ in range(copies) for at in range(len(words))]
    return Examples(examples.texts + texts, list(examples.labels) + [UNLABELLED] * len(texts))


def passages(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """`count` passages of 2 to 12 of the texts, drawn with the seed: for lengths that single texts do not reach."""
    random = np.random.default_rng((seed, count))
    return [
        " ".join(texts[int(i)] for i in random.integers(0, len(texts), random.integers(2, 13))) for _ in range(count)
    ]


def _variant(words: Sequence[list[str]], at: int, random: np.random.Generator) -> str:
    own = words[at]
    if random.random() < _SPLICED:
        other = words[int(random.integers(len(words)))]
        own = own[: -(-len(own) // 2)] + other[len(other) // 2 :]
    made = []
    for word in own:
        draw = random.random()
        if draw < _REPLACED:
            other = words[int(random.integers(len(words)))]
            made.append(other[int(random.integers(len(other)))] if other else word)
        elif draw >= _REPLACED + _DROPPED:
            made.append(word)
    return " ".join(made or own)
