"""A small encoder and a task it can learn in seconds: do good words outnumber bad ones?"""

from __future__ import annotations

import random

import pytest
import torch
from blindformer.models.data import Dataset, RawExamples
from blindformer.models.data.load import split
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config

OTHERS = ["the", "a", "is", "it", "not", "what", "how", "my", "your", "password", "red", "blue", ".", ",", "?", "!"]
FAST = {"teacher_epochs": 1, "hidden_epochs": 1, "logit_epochs": 1, "batch": 16}
"""Settings for tests that do not look at accuracy."""


def sentences(count: int, seed: int = 0) -> Dataset:
    """Positive if more words of a sentence are `good` or `found` than are `bad` or `lost`."""
    draw, texts, labels = random.Random(seed), [], []
    for _ in range(count):
        telling = draw.choices(["good", "found", "bad", "lost"], k=draw.choice([1, 3, 5]))
        words = telling + draw.choices(OTHERS, k=draw.randint(3, 9))
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(int(2 * sum(word in ("good", "found") for word in telling) > len(telling)))
    return split("sentences", RawExamples(texts, labels, ("negative", "positive")), seed)


@pytest.fixture(scope="session")
def data() -> Dataset:
    return sentences(600)


@pytest.fixture(scope="session")
def few() -> Dataset:
    return sentences(120)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """The folder of a BERT of two layers with random weights, large enough that approximations matter."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("encoder")
    no_noise = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = tiny_config(num_hidden_layers=2, initializer_range=0.3, **no_noise)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder
