"""Encoder-decoder models: a source is read once, unrevealed, and all tokens of the answer read what is kept of it."""

import pytest
import torch
import transformers
from blindformer.models.generation.cross import CrossDecoder
from blindformer.models.generation.decoder import conversation
from blindformer.models.generation.parts import compile_cross, size_of, source_parts
from blindformer.models.generation.rows import KVState, room, run_clear
from blindformer.parties.session.messages import PartRun
from blindformer.parties.session.online import count_of, may_reveal, may_run

WORDS, START = 64, 2
WIDE = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.2}  # fmt: skip
IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": START}


def small(kind):
    """A tiny model with random weights, in the clear."""
    torch.manual_seed(0)
    if kind == "T5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 4}
        model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=WORDS, **sizes, **IDS))
        return model.eval()
    own = {"max_position_embeddings": 64}
    if kind == "Whisper":
        own = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 64}
    if kind == "Marian":
        own |= {"decoder_vocab_size": WORDS}
    config = getattr(transformers, f"{kind}Config")(vocab_size=WORDS, **WIDE, **own, **IDS)
    name = "MarianMTModel" if kind == "Marian" else f"{kind}ForConditionalGeneration"
    return getattr(transformers, name)(config).eval()


def some(count, seed=0):
    return torch.randint(4, WORDS, (count,), generator=torch.Generator().manual_seed(seed))


def source(kind, length=8, seed=0):
    """Of a text two tokens less than its length, or a recording."""
    if kind == "Whisper":
        return {"input_features": torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(seed))}
    ids = torch.cat([some(6, seed), torch.ones(length - 6, dtype=torch.long)])
    return {"input_ids": ids[None], "attention_mask": (torch.arange(length) < 6).long()[None]}


def expected(kind, given, ids):
    """The model's own scores, in float32."""
    with torch.no_grad():
        return small(kind)(**given, decoder_input_ids=ids[None]).logits[0]


def scores(decoder, revealed):
    return revealed @ decoder.model.get_input_embeddings().weight.T if decoder.gives == "hidden" else revealed


def answers(count=16):
    return [torch.cat([torch.tensor([START]), some(count - 1, seed)]) for seed in range(2)]


@pytest.mark.parametrize("kind", ["T5", "Bart", "Marian", "Whisper"])
def test_passes_give_the_scores_of_the_model(kind):
    given, (ids, _) = source(kind), answers()
    decoder = CrossDecoder(small(kind), START).eval()
    passes = conversation(decoder, ids, 4, 24, decoder.padded(given, 12 if kind != "Whisper" else 10))
    with torch.no_grad():
        seen = torch.cat([scores(decoder, decoder(**batch)[decoder.gives])[0] for batch in passes])
    assert decoder.gives == "hidden"  # tied heads are the client's, T5's scaled one, too
    torch.testing.assert_close(seen, expected(kind, given, ids), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module", params=["T5", "Whisper"])
def compiled(request):
    """(kind, decoder, compiled) for texts of two lengths, or recordings."""
    kind = request.param
    decoder = CrossDecoder(small(kind), START).eval()
    lengths = (20,) if kind == "Whisper" else (8, 12)
    sources = {length: [source(kind, length, seed) for seed in range(2)] for length in lengths}
    return kind, decoder, compile_cross(decoder, sources, answers(), slots=40, sizes=(1, 8))


def test_each_length_of_a_source_gives_the_scores_of_the_model_until_another_is_read(compiled):
    kind, decoder, made = compiled
    rows = KVState(made.program, run_clear(made.parts, made.weights), [])
    for seed, (length, part) in enumerate(source_parts(made.program.parts).items()):
        given, ids = source(kind, length, seed), answers()[0]
        rows.read_source(part, given)
        seen = torch.cat([rows.read(ids[:1].tolist()), rows.read(ids[1:].tolist())])
        torch.testing.assert_close(scores(decoder, seen), expected(kind, given, ids), rtol=1e-2, atol=1e-2)
        rows.crop(4)  # what was read of the source stays
        torch.testing.assert_close(rows.read(ids[4:6].tolist()), seen[4:6], rtol=1e-3, atol=1e-3)
        rows.run = run_clear(made.parts, made.weights)  # a new session
        rows.read_again()
        torch.testing.assert_close(rows.read(ids[6:7].tolist()), seen[6:7], rtol=1e-3, atol=1e-3)


def test_a_pass_over_a_source_reveals_nothing_and_counts_for_one(compiled):
    program = compiled[2].program
    for name in source_parts(program.parts).values():
        part = program.part(name)
        assert not part.outputs
        assert "reveal" not in part.needs()
        assert all(item.attributes["whole"] for item in part.instructions if item.op == "keep")
        assert may_reveal(part, (0, 0))
        assert not may_reveal(part, (0, 1))
        assert count_of(part, (0, 0)) == 1
        assert may_run(program, PartRun(part=name))
        assert not may_run(program, PartRun(part=name, runs=2))
        assert size_of(name) == 0
        assert room(program) == 40
