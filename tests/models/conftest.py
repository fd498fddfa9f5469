"""Tiny models with seeded random weights, compiled once."""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import transformers as tf
from blindformer.approximations import Plan, approximate, calibrate, restore
from blindformer.models.compile import Compiled, compile
from blindformer.tests.protocols.programs import Case
from blindformer.tests.shared.once import once
from torch import Tensor, nn

tf.logging.set_verbosity_error()

LENGTH = 8
_SIZES = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.2,  # activations about as large as in a trained model
}
_NAMES = {
    "distilbert": {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
                   "intermediate_size": "hidden_dim"},
    "gpt2": {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
             "max_position_embeddings": "n_positions", "intermediate_size": "n_inner"},
}  # fmt: skip
_DISTILBERT, _GPT2 = ({names.get(key, key): size for key, size in _SIZES.items()} for names in _NAMES.values())
_GPT2 |= {"n_inner": 128, "bos_token_id": 0, "eos_token_id": 0}
_VIT = {k: v for k, v in _SIZES.items() if k not in ("vocab_size", "max_position_embeddings")}
_VIT |= {"image_size": 16, "patch_size": 4}
_LABELS = {"num_labels": 3}
_CAUSAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

CONFIGURATIONS = {
    "bert": (tf.BertModel, tf.BertConfig, _SIZES),
    "bert-eager": (tf.BertModel, tf.BertConfig, _SIZES),
    "bert-labels": (tf.BertForSequenceClassification, tf.BertConfig, _SIZES | _LABELS),
    "roberta": (tf.RobertaModel, tf.RobertaConfig, _SIZES | {"pad_token_id": 1}),
    "roberta-labels": (tf.RobertaForSequenceClassification, tf.RobertaConfig, _SIZES | _LABELS | {"pad_token_id": 1}),
    "distilbert": (tf.DistilBertModel, tf.DistilBertConfig, _DISTILBERT),
    "distilbert-labels": (tf.DistilBertForSequenceClassification, tf.DistilBertConfig, _DISTILBERT | _LABELS),
    "electra": (tf.ElectraModel, tf.ElectraConfig, _SIZES | {"embedding_size": 16}),
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config, _GPT2),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig, _SIZES | _CAUSAL | {"num_key_value_heads": 2}),
    "vit": (tf.ViTModel, tf.ViTConfig, _VIT),
    "vit-labels": (tf.ViTForImageClassification, tf.ViTConfig, _VIT | _LABELS),
    "mpnet": (tf.MPNetModel, tf.MPNetConfig, _SIZES),
    "albert": (tf.AlbertModel, tf.AlbertConfig, _SIZES | {"embedding_size": 16}),
}


def batches(name: str, count: int = 4) -> list[dict[str, Tensor]]:
    """One text (or image) each, with paddings of different lengths."""
    generator = torch.Generator().manual_seed(1)
    if name.startswith("vit"):
        return [{"pixel_values": torch.randn(1, 3, 16, 16, generator=generator)} for _ in range(count)]
    rows = []
    for number in range(count):
        ids = torch.randint(3, 100, (1, LENGTH), generator=generator)
        mask = torch.ones(1, LENGTH, dtype=torch.int64)
        if number % 2:
            mask[:, LENGTH - 1 - number :] = 0
        rows.append({"input_ids": ids, "attention_mask": mask})
    return rows


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    cls, config, fields = CONFIGURATIONS[name]
    attention = "eager" if name in ("bert-eager", "mpnet") else "sdpa"
    return cls._from_config(config(**fields), attn_implementation=attention).eval()


def clear(compiled: Compiled, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The answer on `clear`, as real numbers."""
    return compiled.decode(Case.of(compiled, batch).clear())


@dataclass
class Tiny:
    """A model, its calibrated plan, its compiled form, and the inputs it was calibrated on."""

    model: nn.Module
    plan: Plan
    compiled: Compiled
    batches: list[dict[str, Tensor]]

    def approximated(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of the approximated torch model."""
        return answer(self.model, batch, self.plan)


def answer(model: nn.Module, batch: dict[str, Tensor], plan: Plan | None = None) -> dict[str, Tensor]:
    """What torch answers, with the functions of a plan."""
    if plan is not None:
        approximate(model, plan)
    try:
        with torch.no_grad():
            return model(**batch)
    finally:
        if plan is not None:
            restore(model)


@cache
def make(name: str, plan: str = "faithful", embedding: str = "client") -> Tiny:
    model, inputs = build(name), batches(name)

    def compiled() -> tuple[Plan, Compiled]:
        calibrated = calibrate(model, inputs, plan)
        return calibrated, compile(model, inputs, calibrated, embedding=embedding, name=name)

    return Tiny(model, *once(f"tiny-{name}-{plan}-{embedding}", compiled), inputs)


@pytest.fixture(scope="session")
def tiny():
    """tiny(name, plan, embedding) -> Tiny, compiled once in a session."""
    return make
