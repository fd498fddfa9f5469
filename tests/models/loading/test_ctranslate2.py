"""Whisper in CTranslate2's format: the same model as in transformers' own folder, with what it generates by."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from blindformer.models.loading.huggingface import LoadError
from blindformer.models.loading.load import load
from blindformer.tests.shared.speech import tiny_whisper

TYPES = {torch.float32: 0, torch.int8: 1, torch.int16: 2, torch.float16: 4}
NAMES = {
    **{f"{part}_attn.{name}_proj": None for part in ("self", "encoder") for name in "qkv"},
    "self_attn.out_proj": "self_attention/linear_1",
    "encoder_attn.out_proj": "attention/linear_2",
    "encoder_attn.q_proj": "attention/linear_0",
    "self_attn_layer_norm": "self_attention/layer_norm",
    "encoder_attn_layer_norm": "attention/layer_norm",
    "final_layer_norm": "ffn/layer_norm",
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
}
JOINED = {"self_attention/linear_0": ("self_attn", "qkv"), "attention/linear_1": ("encoder_attn", "kv")}
WHOLE = {"embed_tokens": "embeddings", "embed_positions": "position_encodings"}


def text(value):
    return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"


def tensors_of(model):
    """The model's weights by CTranslate2's names, as its converter writes them."""
    tensors = {}
    for side, stack in (("encoder", model.model.encoder), ("decoder", model.model.decoder)):
        tensors[f"{side}/num_heads"] = torch.tensor(stack.layers[0].self_attn.num_heads, dtype=torch.int16)
        for name, value in stack.state_dict().items():
            within, _, kind = name.rpartition(".")
            kind = {"weight": "gamma", "bias": "beta"}[kind] if within.endswith("layer_norm") else kind
            layer = f"{side}/layer_{within.split('.')[1]}/" if within.startswith("layers.") else f"{side}/"
            within = within.split(".", 2)[2] if within.startswith("layers.") else within
            kind = "encodings" if within == "embed_positions" else kind
            title = NAMES.get(within, WHOLE.get(within, within))
            if title is not None:
                tensors[f"{layer}{title}/{kind}"] = value
        for number, part in enumerate(stack.layers):
            for title, (attention, letters) in JOINED.items():
                if hasattr(part, attention):
                    rows = [getattr(getattr(part, attention), f"{letter}_proj") for letter in letters]
                    base = f"{side}/layer_{number}/{title}"
                    tensors[f"{base}/weight"] = torch.cat([row.weight for row in rows])
                    biases = [torch.zeros(len(row.weight)) if row.bias is None else row.bias for row in rows]
                    tensors[f"{base}/bias"] = torch.cat(biases)
    return tensors


def quantised(tensors, kind):
    """As CTranslate2 stores them in this type."""
    stored = {}
    for name, value in tensors.items():
        if not value.ndim or kind == torch.float32:
            stored[name] = value
        elif kind == torch.float16 or "linear" not in name or name.endswith("bias"):
            stored[name] = value.half()
        else:
            most = value.abs().amax(1) if kind == torch.int8 else value.abs().max()
            scale = (127 if kind == torch.int8 else 1024) / most
            stored[name] = (value * (scale[:, None] if scale.ndim else scale)).round().to(kind)
            stored[f"{name}_scale"] = scale
    return stored


def serialised(tensors, aliases=(("decoder/projection/weight", "decoder/embeddings/weight"),), version=6):
    content = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, value in sorted(tensors.items()):
        data = value.detach().contiguous().numpy().tobytes()
        content += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        content += struct.pack("<BI", TYPES[value.dtype], len(data)) + data
    return content + struct.pack("<I", len(aliases)) + b"".join(text(part) for pair in aliases for part in pair)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tiny_whisper(tmp_path_factory.mktemp("whisper"))
    return folder, load(folder)


@pytest.fixture
def converted(whisper, tmp_path):
    """A folder of CTranslate2's in a type."""
    source, loaded = whisper

    def make(kind=torch.float32, **options):
        (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        about = {"lang_ids": [258, 259], "suppress_ids": [7, 8], "suppress_ids_begin": [32]}
        (tmp_path / "config.json").write_text(json.dumps(about))
        (tmp_path / "model.bin").write_bytes(serialised(quantised(tensors_of(loaded.model), kind), **options))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("kind", "error"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.int16, 5e-3), (torch.int8, 3e-2)]
)
def test_the_model_is_the_one_that_was_converted(whisper, converted, kind, error):
    _, expected = whisper
    loaded = load(converted(kind))
    inputs = {"input_features": torch.randn(1, 8, 200), "decoder_input_ids": torch.tensor([[257, 258, 65]])}
    with torch.no_grad():
        ours, theirs = loaded.model(**inputs).logits, expected.model(**inputs).logits
    assert loaded.kind == expected.kind
    assert (ours - theirs).abs().max() < error * theirs.abs().max()
    assert loaded.model.config.to_diff_dict().keys() >= {"d_model", "num_mel_bins", "max_source_positions"}
    for name in ("d_model", "encoder_layers", "decoder_ffn_dim", "vocab_size", "max_target_positions", "eos_token_id"):
        assert getattr(loaded.model.config, name) == getattr(expected.model.config, name), name


def test_it_generates_by_the_rules_of_its_folder(converted):
    defaults = load(converted()).model.generation_config
    assert (defaults.suppress_tokens, defaults.begin_suppress_tokens) == ([7, 8], [32])
    assert defaults.lang_to_id == {"<|en|>": 258, "<|de|>": 259}
    assert defaults.task_to_id == {"transcribe": 261, "translate": 260}
    assert defaults.decoder_start_token_id == 257
    assert not defaults.return_timestamps


def test_a_damaged_file_is_one_line(converted):
    for damage, words in (
        (lambda content: content[:-400], "ends too soon"),
        (lambda content: struct.pack("<I", 9) + content[4:], "is of version 9, and versions 5 and 6 are known"),
        (lambda content: content.replace(b"layer_0/ffn/linear_0", b"layer_0/fxn/linear_0"), "cannot be read"),
    ):
        folder = converted()
        (folder / "model.bin").write_bytes(damage((folder / "model.bin").read_bytes()))
        with pytest.raises(LoadError, match=f"model.bin: .*{words}"):
            load(folder)


def test_whisper_base_has_the_sizes_of_openai():
    try:
        loaded = load("whisper-base")
    except LoadError as error:
        pytest.skip(str(error))
    assert loaded.parameters == 72_593_920
    assert loaded.processor.tokenizer.decode([50258, 50259, 50359, 50363]).endswith("<|transcribe|><|notimestamps|>")
