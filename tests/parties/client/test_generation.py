"""`generate` of a private language model: what transformers' own gives, and one line for what it cannot."""

from __future__ import annotations

from importlib.util import find_spec

import blindformer as bf
import pytest
import torch
from blindformer.errors import BlindformerError
from blindformer.models.generation.decoder import GenerationError
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.tiny import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

GREEDY = {"max_new_tokens": 6, "do_sample": False}
ROOM = {"slots": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder, padding_side="left")


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return tokenizer(["<s>Hello there", "<s>Hi"], return_tensors="pt", padding=True)


@pytest.fixture(scope="module")
def private(model, tokenizer):
    with bf.make_private(model, protocol="clear", tokenizer=tokenizer, generation=ROOM) as private:
        private.generate(torch.tensor([[1, 9]]), max_new_tokens=1)
        yield private


def test_a_batch_gives_what_the_model_gives(private, model, prompts):
    assert torch.equal(private.generate(**prompts, **GREEDY), model.generate(**prompts, **GREEDY))


def test_through_parties_it_gives_the_same_and_a_session_may_be_opened_again(model, tokenizer, prompts):
    wanted = model.generate(**prompts, **GREEDY)
    with bf.make_private(model, tokenizer=tokenizer, generation={**ROOM, "sizes": (1, 8)}) as private:
        assert torch.equal(private.generate(**prompts, **GREEDY), wanted)
        private.close()
        assert torch.equal(private.generate(prompts["input_ids"][:1], **GREEDY), wanted[:1])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("crypten") is None, reason="crypten is not installed")
def test_among_three_parties_it_gives_the_same(model, tokenizer, private, prompts):
    ids = prompts["input_ids"][:1]
    options = {"tokenizer": tokenizer, "generation": {**ROOM, "sizes": (1, 8)}, "timeout": PATIENCE}
    with bf.make_private(model, protocol="crypten", parties=3, **options) as among_parties:
        assert torch.equal(among_parties.generate(ids, **GREEDY), private.generate(ids, **GREEDY))


def test_a_shorter_answer_is_padded_as_the_model_pads_it(private, model, prompts):
    one, other = model.generate(**prompts, **GREEDY)[:, -6:].tolist()
    end = next(token for token in one if token not in other)
    options = {**GREEDY, "eos_token_id": end}
    assert torch.equal(private.generate(**prompts, **options), model.generate(**prompts, **options))


def test_a_generation_config_is_followed(private, model, prompts):
    config = GenerationConfig(max_new_tokens=5, do_sample=True, temperature=0.8, top_k=5)
    torch.manual_seed(0)
    wanted = model.generate(prompts["input_ids"][:1], generation_config=config)
    torch.manual_seed(0)
    assert torch.equal(private.generate(prompts["input_ids"][:1], generation_config=config), wanted)


def test_a_config_that_needs_scores_is_refused_where_the_token_alone_is_revealed(model, tokenizer, prompts):
    token_only = {**ROOM, "sizes": (1, 8), "reveal": "token"}
    with bf.make_private(model, protocol="clear", tokenizer=tokenizer, generation=token_only) as private:
        config = GenerationConfig(max_new_tokens=6)
        wanted = model.generate(**prompts, **GREEDY)
        assert torch.equal(private.generate(**prompts, generation_config=config), wanted)
        with pytest.raises(GenerationError, match="top_k: the model reveals only the token"):
            private.generate(**prompts, generation_config=GenerationConfig(do_sample=True, top_k=5))


def test_a_streamer_hears_the_prompt_and_then_each_token(private, prompts):
    class Heard(list):
        put = list.append

        def end(self):
            self.append("end")

    heard = Heard()
    generated = private.generate(prompts["input_ids"][:1], streamer=heard, **GREEDY)
    assert torch.cat([value.flatten() for value in heard[:-1]]).tolist() == generated[0].tolist()
    assert heard[-1] == "end"


def test_an_answer_ends_where_the_room_does(private):
    assert private.generate(torch.tensor([[1, 9]]), max_new_tokens=100).shape == (1, 1 + ROOM["slots"])
    with pytest.raises(GenerationError, match="prompt: 48 tokens fill the compiled 48"):
        private.generate(torch.tensor([[1, *[9] * 48]]), **GREEDY)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}])
def test_more_than_one_text_at_once_is_refused(private, prompts, options):
    with pytest.raises(GenerationError, match="cannot read 2 texts at once"):
        private.generate(prompts["input_ids"][:1], max_new_tokens=4, **options)


def test_a_prompt_without_the_public_beginning_is_told_what_to_put_there(private):
    with pytest.raises(GenerationError, match=r"does not begin with '<s>'.*; put the tokens \[1\] before it"):
        private.generate(torch.tensor([[9, 10]]), **GREEDY)


def test_the_model_goes_on_as_before(private, model):
    assert model.config._attn_implementation == "sdpa"


def test_what_generate_needs_is_said(model, tokenizer, folder):
    with pytest.raises(BlindformerError, match=r"LlamaForCausalLM: has no tokenizer.*tokenizer=tokenizer"):
        bf.make_private(model).generate(torch.tensor([[1, 9]]))
    with pytest.raises(BlindformerError, match="protocol ckks: keeps no state between queries; choose one of "):
        bf.make_private(folder, "he", "ckks", generation=ROOM).generate(torch.tensor([[1, 9]]))
