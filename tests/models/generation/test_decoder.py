"""A decoder in passes, on rows that it kept, is the model on the whole text."""

import pytest
import torch
from blindformer.models.generation.decoder import Decoder, GenerationError, conversation
from blindformer.tests.models.generation.conftest import PREFIX, small, some

MODELS = {
    "grouped keys": lambda: small(num_key_value_heads=2),
    "a head of its own": lambda: small(tie_word_embeddings=False),
    "positions of a table": lambda: small("GPT2"),
    "a window": lambda: small("Mistral", num_key_value_heads=2, sliding_window=12),
    "norms of queries": lambda: small("Qwen3", head_dim=8, num_key_value_heads=2),
    "layers of two kinds": lambda: small(
        "Qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=12, max_window_layers=1
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 7])
def test_passes_give_what_the_whole_text_gives(name, size):
    model, whole = MODELS[name](), MODELS[name]()
    text = torch.cat([torch.tensor(PREFIX), some(28)])
    with torch.no_grad():
        hidden = whole.base_model(input_ids=text[None]).last_hidden_state[0]
        logits = whole(input_ids=text[None]).logits[0]
        decoder = Decoder(model, torch.tensor(PREFIX)).eval()
        for batch in conversation(decoder, text[len(PREFIX) :], size, 40):
            logits = decoder(**batch)
            at = len(PREFIX) + int(batch["rows"]) + torch.arange(size)
            wanted, got = (hidden, logits["hidden"]) if decoder.gives == "hidden" else (logits, logits["logits"])
            torch.testing.assert_close(got[0], wanted[at], rtol=1e-4, atol=1e-4)


def test_only_a_tied_head_reveals_hidden_states():
    assert Decoder(small(), torch.tensor(PREFIX)).gives == "hidden"
    assert Decoder(small(tie_word_embeddings=False), torch.tensor(PREFIX)).gives == "logits"


def test_what_has_no_cache_of_keys_is_named():
    with pytest.raises(GenerationError, match="attention with softcap"):
        Decoder(small("Gemma2", head_dim=8, num_key_value_heads=2), torch.tensor(PREFIX))
