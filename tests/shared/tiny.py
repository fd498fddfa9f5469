"""Folders of tiny models, as save_pretrained writes them: BERTs of a few words; language models whose token is a byte,
so every text is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from blindformer.models.generation.conversation import Conversation
from blindformer.parties.client.client import open_here
from blindformer.parties.client.local import find_local

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] the a is it not what how good bad my your password lost found red blue . , ? !"
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|model|>", "<|system|>")
TEMPLATE = (
    "<s>{% for m in messages %}{{ '<|' + ('model' if m.role == 'assistant' else m.role) + '|>' + m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|model|>{% endif %}"
)


def save_tokenizer(folder, positions: int = 64) -> None:
    """A word-piece tokenizer of a few words; the rest of the world is [UNK]."""
    from transformers import BertTokenizer

    vocabulary = {word: number for number, word in enumerate(WORDS.split())}
    BertTokenizer(vocab=vocabulary, model_max_length=positions).save_pretrained(folder)


def tiny_config(**changes):
    from transformers import BertConfig

    fields = {
        "vocab_size": len(WORDS.split()),
        **SMALL,
        "max_position_embeddings": 64,
        **changes,
    }
    return BertConfig(**fields)


def byte_tokenizer(template: str | None = None) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate((*SPECIAL, *letters))}
    inner = Tokenizer(models.BPE(vocab=words, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", chat_template=template,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def tiny_llama(folder: Path, template: str | None = None) -> Path:
    """One layer with grouped keys and random weights. `template`: of its chats; None: it continues texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(8)
    tokenizer = byte_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def clear_conversation(folder: Path) -> Iterator[Conversation]:
    """With a compiled language model in this process, as parties would compute it."""
    with open_here(find_local("clear"), folder) as client:
        yield client.conversation()


def tiny_marian(folder: Path, **changes: Any) -> Path:
    """One layer each that reads and that writes, of a byte a token, with random weights."""
    from transformers import MarianConfig, MarianMTModel

    torch.manual_seed(8)
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 64
    words = len(tokenizer)
    fields = {
        "vocab_size": words, "decoder_vocab_size": words, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": 64, "init_std": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 0, "forced_eos_token_id": None, **changes,
    }  # fmt: skip
    MarianMTModel(MarianConfig(**fields)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
