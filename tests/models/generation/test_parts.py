"""A conversation begins in passes of little room, and goes on in others with more: what they compute is the same."""

import pytest
import torch
from blindformer.models.generation.decoder import Decoder, GenerationError, conversation
from blindformer.models.generation.parts import compile_decoder, rooms, rooms_between
from blindformer.models.generation.rows import KVState, room, run_clear
from blindformer.models.lowering import export as exporting
from blindformer.models.lowering.export import export, serves
from blindformer.tests.models.generation.conftest import PREFIX, small, some
from torch import nn

# A decoder in passes, on rows that it kept, is the model on the whole text.

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
            output = decoder(**batch)
            at = len(PREFIX) + int(batch["rows"]) + torch.arange(size)
            wanted, got = (hidden, output["hidden"]) if decoder.gives == "hidden" else (logits, output["logits"])
            torch.testing.assert_close(got[0], wanted[at], rtol=1e-4, atol=1e-4)


def test_only_a_tied_head_reveals_hidden_states():
    assert Decoder(small(), torch.tensor(PREFIX)).gives == "hidden"
    assert Decoder(small(tie_word_embeddings=False), torch.tensor(PREFIX)).gives == "logits"


def test_what_has_no_cache_of_keys_is_named():
    with pytest.raises(GenerationError, match="attention with softcap"):
        Decoder(small("Gemma2", head_dim=8, num_key_value_heads=2), torch.tensor(PREFIX))


TEXT = some(300, 5)


def rows_of(compiled, run=None, only=""):
    """`only`: passes of this room."""
    program = compiled.program
    if only:
        parts = {name: part for name, part in program.parts.items() if name.endswith(only)}
        program = program.model_copy(update={"parts": parts})
    return KVState(program, run or run_clear(compiled.parts, compiled.weights), PREFIX)


@pytest.mark.parametrize(
    ("most", "expected"),
    [(32, [32]), (64, [64]), (80, [80]), (96, [64, 96]), (260, [64, 128, 260]), (1024, [64, 128, 256, 512, 1024])],
)
def test_each_room_is_twice_the_one_before(most, expected):
    assert rooms(most) == expected


@pytest.mark.parametrize(
    ("most", "size", "expected"),
    [(256, 8, []), (64, 32, [32]), (96, 32, [32]), (256, 32, [32, 96, 192]), (1024, 32, [32, 96, 192, 384, 768])],
)
def test_passes_that_read_a_prompt_have_rooms_between(most, size, expected):
    assert rooms_between(most, size) == expected


def test_a_growing_conversation_is_one_in_the_largest_room(roomy):
    asked, run = [], run_clear(roomy.parts, roomy.weights)
    growing = rows_of(roomy, lambda name, *given: asked.append(name) or run(name, *given))
    large = rows_of(roomy, only="@300")
    assert room(roomy.program) == 300
    texts = (TEXT[:60], *TEXT[60:64, None], TEXT[64:110], *TEXT[110:140, None], TEXT[140:])
    ours, wanted = (torch.cat([rows.read(text.tolist()) for text in texts]) for rows in (growing, large))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=3e-2)
    table = small(num_key_value_heads=2).get_input_embeddings().weight
    scores, others = ours @ table.T, wanted @ table.T
    sure = others.topk(2).values.diff().abs()[:, 0] > 0.05
    assert sure.float().mean() > 0.9
    assert torch.equal(scores.argmax(-1)[sure], others.argmax(-1)[sure])
    assert {name.partition("@")[2] for name in asked} == {"64", "128", "300"}


def test_every_room_is_the_model(roomy):
    with torch.no_grad():
        text = torch.cat([torch.tensor(PREFIX), TEXT])
        wanted = small(num_key_value_heads=2).base_model(input_ids=text[None]).last_hidden_state[0, len(PREFIX) :]
    torch.testing.assert_close(rows_of(roomy).read(TEXT.tolist()), wanted, rtol=0, atol=3e-2)


def test_the_model_is_traced_once_for_all_rooms(monkeypatch):
    traced = []
    monkeypatch.setattr(exporting, "export", lambda *given: traced.append(given) or export(*given))
    decoder = Decoder(small("GPT2"), torch.tensor(PREFIX)).eval()
    compiled = compile_decoder(decoder, [some(72)], slots=253, sizes=(1, 8))
    assert set(compiled.parts) == {f"{size}@{room}" for room in (253, 128, 64) for size in (8, 1)}
    assert len(traced) == 2


class Stated(nn.Module):
    """Its trace says how many columns there are, in one way or another."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return self.by(x)


@pytest.mark.parametrize("by", [lambda x: x.sum() / x.shape[-1], lambda x: x.reshape(x.shape[-1], -1)])
def test_a_trace_that_states_its_sizes_serves_no_others(by):
    model = Stated(by)
    graph = export(model, {"x": torch.ones(2, 8)})
    assert serves(graph, model, {"x": torch.rand(2, 8)})
    assert not serves(graph, model, {"x": torch.rand(2, 4)})


def test_a_large_room_leaves_softmax_s_sums_enough_bits():
    """Their table reaches as far as if all scores of a row were the largest, whatever calibration saw."""
    decoder = Decoder(small(num_key_value_heads=2), torch.tensor(PREFIX)).eval()
    program = compile_decoder(decoder, [some(72)], slots=1 << 13, sizes=(1,)).parts["1@8192"].program
    reached = [
        (item.attributes["bits"], program.instructions[item.args[0]])
        for item in program.instructions
        if item.op == "lookup" and item.path.endswith("self_attn")
    ]
    assert max(bits - read.scale for bits, read in reached) > 13
    assert all(bits <= read.attributes["ring"] - read.attributes["bits"] for bits, read in reached)
