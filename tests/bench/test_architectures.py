"""The table of architectures: its rows are whole, and some of them are measured."""

import pytest
from blindformer.bench import architectures
from blindformer.bench.architecture_models import architectures as rows

PICKED = [
    "DeBERTa-v2",
    "FNet",
    "Mixtral",
    "gpt-oss",
    "XGLM",
    "Mamba",
    "Mamba2",
    "Swin",
    "SegFormer",
    "DPT",
    "PatchTST",
    "Wav2Vec2",
    "sentence-transformers pooling",
    "timm ViT",
]


@pytest.mark.parametrize("name", PICKED)
def test_a_row_is_right_on_clear_and_on_beaver(name):
    """One of each sort that no other test compiles; the command measures all."""
    row = architectures.measure(rows()[name], "faithful")
    assert row.refused == ""
    assert min(row.cosine, row.beaver_cosine) >= architectures.LEAST
    assert row.rounds > 0


DELEGATED = ["BERT", "Falcon", "GPT-2", "Llama", "T5", "ViT", "ConvNeXt", "PatchTST", "Wav2Vec2", "torch attention"]


@pytest.mark.parametrize("name", [name for name in DELEGATED if name in rows()])
def test_a_row_is_right_through_delegated_layers(name):
    row = architectures.measure(rows()[name], "delegated")
    assert row.refused == ""
    assert row.cosine > 0.999999
    assert row.rounds > 0
    assert row.online_bytes > row.offline_bytes > 0


def test_every_row_has_a_model_and_inputs():
    assert len(rows()) >= 60
    for row in rows().values():
        assert row.library in ("transformers", "torch", "torchvision", "timm")
        assert row.batches()
