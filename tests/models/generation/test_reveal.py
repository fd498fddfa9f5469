"""A decoder that reveals the next token alone: the most likely, or one that the client's noise draws."""

import pytest
import torch
from blindformer.models.generation.decoder import MAX_TEMPERATURE, Decoder, GenerationError, Noise
from blindformer.models.generation.parts import compile_decoder
from blindformer.models.generation.rows import KVState, run_clear
from blindformer.models.generation.sampling import PrivateDecoder
from blindformer.tests.models.generation.conftest import PREFIX, WORDS, small, some

OPTIONS = {"max_new_tokens": 14, "pad_token_id": 0, "eos_token_id": None}
PROMPT = torch.cat([torch.tensor(PREFIX), some(10)])


@pytest.fixture(scope="module")
def tokens():
    decoder = Decoder(small(num_key_value_heads=2), torch.tensor(PREFIX), reveal="token").eval()
    return compile_decoder(decoder, [some(48, seed) for seed in range(2)], slots=48, sizes=(1, 8))


@pytest.fixture
def private(model, tokens):
    rows = KVState(tokens.program, run_clear(tokens.parts, tokens.weights), PREFIX)
    return PrivateDecoder(model.config, rows, None, model.generation_config)


def test_only_tokens_are_revealed(tokens):
    assert {tuple(part.outputs) for part in tokens.program.parts.values()} == {("token",)}


def test_the_most_likely_token_is_that_of_the_model(private, model):
    wanted = model.generate(PROMPT[None], do_sample=False, **OPTIONS)[0, len(PROMPT) :].tolist()
    assert private.answer(PROMPT, **OPTIONS).tolist() == wanted
    private.rows.crop(0)
    assert private.answer(PROMPT, assistant_model=model, **OPTIONS).tolist() == wanted
    assert private.drafts.accepted > 0


def test_tokens_are_found_in_all_of_the_vocabulary(private, model):
    """Also where calibration saw none of them: every place's most likely token, with noise that points at it."""
    for token in (0, 1, WORDS - 2, WORDS - 1):
        private.rows.noise = lambda places, token=token: 40.0 * torch.eye(WORDS)[token].expand(1, len(places), WORDS)
        assert private.rows.read([5]).round().tolist() == [token]


def test_noise_draws_what_it_draws_in_the_clear(private, model):
    torch.manual_seed(4)
    answer = private.answer(PROMPT, do_sample=True, temperature=0.8, **OPTIONS)
    noise = private.rows.noise
    whole = torch.cat([PROMPT, answer])
    with torch.no_grad():
        logits = model(whole[None]).logits[0, len(PROMPT) - 1 : -1]
    places = range(len(PROMPT) - 1 - len(PREFIX), len(whole) - 1 - len(PREFIX))
    assert answer.tolist() == (logits + noise(places)[0]).argmax(-1).tolist()
    greedy = private.answer(PROMPT, **OPTIONS)
    assert answer.tolist() != greedy.tolist()
    torch.manual_seed(4)
    options = {"do_sample": True, "temperature": 0.8, "assistant_model": model}
    assert private.answer(PROMPT, **options, **OPTIONS).tolist() == answer.tolist()


def test_noise_draws_by_the_scores():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0])
    drawn = (scores + Noise(4, 0.5, 7)(range(4000))[0]).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    torch.testing.assert_close(shares, (scores / 0.5).softmax(0), rtol=0, atol=0.03)  # 3.8 standard deviations


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_sample": True, "top_k": 5}, "top_k: the model reveals only the token"),
        ({"do_sample": True, "top_p": 0.9}, "top_p: the model reveals only the token"),
        ({"repetition_penalty": 1.2}, "repetition_penalty: the model reveals only the token"),
        ({"num_beams": 2}, "num_beams: the model reveals only the token"),
        ({"do_sample": True, "temperature": 2 * MAX_TEMPERATURE}, "temperature 4: a model that reveals only"),
    ],
)
def test_what_needs_scores_is_refused_before_a_pass(private, options, words):
    with pytest.raises(GenerationError, match=words):
        private.answer(PROMPT, **OPTIONS, **options)
    assert private.rows.passes == 0


def test_values_that_change_nothing_are_taken(private):
    assert len(private.answer(PROMPT, top_k=0, top_p=1.0, repetition_penalty=1.0, **OPTIONS)) == 14


def test_an_unknown_choice_is_named():
    with pytest.raises(GenerationError, match="reveal='all': choose scores or token"):
        Decoder(small(), torch.tensor(PREFIX), reveal="all")
