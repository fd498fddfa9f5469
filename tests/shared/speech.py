"""A Whisper with seeded weights and a token a byte, and recordings for it."""

from __future__ import annotations

from pathlib import Path

import torch

SECONDS = 2
RATE = 16000
SPECIAL = ("startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev", "nospeech")


def tiny_whisper(folder: Path) -> Path:
    """One layer each, 16 wide, two seconds of audio."""
    import transformers
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    torch.manual_seed(0)
    vocabulary = {letter: place for place, letter in enumerate(bytes_to_unicode().values())}
    tokenizer = transformers.WhisperTokenizer({**vocabulary, "<|endoftext|>": 256}, [])
    tokenizer.add_tokens([f"<|{name}|>" for name in (*SPECIAL, "notimestamps")], special_tokens=True)
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in _LAYERS.items()}
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 256)
    config = transformers.WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        num_mel_bins=8,
        max_source_positions=50 * SECONDS,
        max_target_positions=32,
        decoder_start_token_id=257,
        suppress_tokens=[],
        begin_suppress_tokens=[],
        **sizes,
        **ends,
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    model.generation_config = transformers.GenerationConfig(
        is_multilingual=True,
        lang_to_id={"<|en|>": 258, "<|de|>": 259},
        task_to_id={"translate": 260, "transcribe": 261},
        no_timestamps_token_id=len(tokenizer) - 1,
        decoder_start_token_id=257,
        **ends,
    )
    model.save_pretrained(folder)
    ears = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=SECONDS)
    transformers.WhisperProcessor(ears, tokenizer).save_pretrained(folder)
    return folder


_LAYERS = {"layers": 1, "attention_heads": 2, "ffn_dim": 32}
