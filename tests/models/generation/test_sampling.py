"""Tokens of a private decoder are those that transformers' `generate` gives in the clear."""

import pytest
import torch
from blindformer.models.generation.decoder import GenerationError
from blindformer.models.generation.rows import room
from blindformer.tests.models.generation.conftest import PREFIX, some

OPTIONS = {"max_new_tokens": 14, "pad_token_id": 0, "eos_token_id": None}
PROMPT = torch.cat([torch.tensor(PREFIX), some(10)])


@pytest.fixture
def wanted(model):
    def generate(**options):
        torch.manual_seed(0)
        return model.generate(PROMPT[None], **{**OPTIONS, **options})[0, len(PROMPT) :].tolist()

    return generate


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": False, "repetition_penalty": 1.3},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": True, "top_k": 5},
    ],
    ids=["greedy", "penalty", "top-p", "top-k"],
)
def test_tokens_are_those_of_the_model(private, wanted, options):
    torch.manual_seed(0)
    assert private.answer(PROMPT, **OPTIONS, **options).tolist() == wanted(**options)


def test_what_was_read_is_not_read_again(private, wanted):
    first = private.answer(PROMPT, do_sample=False, **OPTIONS)
    before = private.rows.passes
    assert private.answer(PROMPT, do_sample=False, **OPTIONS).tolist() == first.tolist()
    assert private.rows.passes - before == len(first)  # of the prompt its last token alone


@pytest.mark.parametrize(
    ("options", "rows"), [({}, [(8, 8), (1, 2), (0, 1), (0, 1)]), ({"drafts": True}, [(8, 8), (1, 3), (0, 1)])]
)
def test_an_answer_has_the_rows_revealed_that_it_draws_from(private, model, options, rows):
    """The last of the question's ten tokens, and those that right drafts follow."""
    revealed, run = [], private.rows.run
    private.rows.run = lambda *given: revealed.append(given[-1]) or run(*given)
    assistant = {"assistant_model": model} if options else {}
    private.answer(PROMPT, do_sample=False, **assistant, **{**OPTIONS, "max_new_tokens": 3})
    assert revealed == rows


def test_a_text_that_is_too_long_is_refused_before_anything_is_read(private, compiled):
    with pytest.raises(GenerationError, match=f"exceed its {room(compiled.program)}"):
        private.rows.read(some(room(compiled.program) + 1).tolist())
    assert private.rows.passes == 0


def test_all_of_the_room_is_used_by_parts_of_growing_room(private, compiled, model):
    text = some(room(compiled.program))
    asked, run = [], private.rows.run
    private.rows.run = lambda name, *given: asked.append(name) or run(name, *given)
    logits = torch.cat([private.rows.read(text[:90].tolist()), private.rows.read(text[90:].tolist())])
    with torch.no_grad():
        wanted = model.base_model(input_ids=torch.cat([torch.tensor(PREFIX), text])[None]).last_hidden_state[0]
    torch.testing.assert_close(logits, wanted[len(PREFIX) :], rtol=0, atol=3e-2)
    assert (asked[0], asked[-1]) == ("8@64", "1@96")
    assert private.rows.rows == room(compiled.program)


def test_the_parts_share_their_weights(compiled):
    assert not any(part.weights for part in compiled.parts.values())
    named = [set(part.weight_shapes()) for part in compiled.program.parts.values()]
    assert named[0] == named[1] == set(compiled.weights)
