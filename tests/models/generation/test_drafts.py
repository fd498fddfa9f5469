"""Drafts change no token, save passes while they are right, and cost little when they are not."""

from itertools import pairwise

import pytest
import torch
from blindformer.models.generation import drafts
from blindformer.models.generation.chat import Chat
from blindformer.models.generation.decoder import GenerationError
from blindformer.models.generation.drafts import DraftTimes, PayingDrafts, _likely, assistant
from blindformer.models.generation.rows import KVState, run_clear
from blindformer.models.generation.sampling import PrivateDecoder
from blindformer.tests.models.generation.conftest import PREFIX, small, some
from blindformer.tests.shared.tiny import byte_tokenizer, tiny_llama
from transformers import AutoConfig
from transformers.generation.candidate_generator import CandidateGenerator, PromptLookupCandidateGenerator

OPTIONS = {"max_new_tokens": 24, "pad_token_id": 0, "eos_token_id": None}
PROMPT = torch.cat([torch.tensor(PREFIX), some(10)])
LOOPS = torch.cat([torch.tensor(PREFIX), some(10, 1)])  # what it goes on with says the same again
COSTS = {1: 1.0, 8: 3.0}  # seconds of a pass, by its size


@pytest.fixture
def private(model, compiled, monkeypatch):
    """Its passes take as long as COSTS says."""
    clear, now = run_clear(compiled.parts, compiled.weights), [0.0]
    monkeypatch.setattr(drafts, "perf_counter", lambda: now[0])

    def run(name, inputs, following, revealed):
        now[0] += COSTS[inputs["input_ids"].shape[1]]
        return clear(name, inputs, following, revealed)

    rows = KVState(compiled.program, run, PREFIX)
    decoder = PrivateDecoder(model.config, rows, model.get_input_embeddings().weight.detach(), model.generation_config)
    decoder.spent = lambda: now[0]
    return decoder


@pytest.fixture
def wanted(model):
    return model.generate(PROMPT[None], do_sample=False, **OPTIONS)[0, len(PROMPT) :].tolist()


class Wrong(CandidateGenerator):
    """Guesses what never comes."""

    def get_candidates(self, input_ids, **more):
        return torch.cat([input_ids, torch.zeros(1, 7, dtype=torch.long)], 1), None


def other(seed=1):
    model = small(num_key_value_heads=2)
    torch.manual_seed(seed)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model


def test_what_was_said_drafts_and_changes_no_token(private, monkeypatch):
    monkeypatch.setitem(COSTS, 8, 1.0)  # as over a slow line
    options = {**OPTIONS, "do_sample": False}
    wanted = private.answer(LOOPS, **options).tolist()
    before = private.rows.passes
    private.rows.crop(0)
    private.draft_times = DraftTimes([1.0, 1.0, 1.0], spent=1.0, came=2)  # they paid before
    assert private.answer(LOOPS, prompt_lookup_num_tokens=4, **options).tolist() == wanted
    assert private.drafts.accepted > 0
    assert private.rows.passes - before == len(wanted) + 1 - private.drafts.accepted  # two of the question


def test_an_assistant_of_equal_weights_saves_passes(private, model, wanted):
    assert private.answer(PROMPT, assistant_model=model, **OPTIONS).tolist() == wanted
    assert private.drafts.accepted > 0
    assert private.rows.passes < len(wanted)


def test_an_assistant_of_other_weights_changes_no_token(private, wanted):
    assert private.answer(PROMPT, assistant_model=other(), **OPTIONS).tolist() == wanted


@pytest.mark.parametrize("same", [True, False], ids=["equal weights", "other weights"])
def test_an_assistant_drafts_what_is_drawn(private, model, same):
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "assistant_model": model if same else other()}
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        answers.append(private.answer(PROMPT, **OPTIONS, **options).tolist())
        assert private.drafts.accepted > 0 or not same
    assert answers[0] == answers[1]
    assert len(answers[0]) == OPTIONS["max_new_tokens"]


def test_drafts_that_are_never_right_cost_a_tenth_at_most(private, wanted, monkeypatch):
    monkeypatch.setattr("transformers.generation.utils.PromptLookupCandidateGenerator", lambda **options: Wrong())
    options = {**OPTIONS, "max_new_tokens": 64}
    plain = private.answer(PROMPT, do_sample=False, **options).tolist()
    alone = private.spent()
    private.rows.crop(0)
    answer = private.answer(PROMPT, do_sample=False, prompt_lookup_num_tokens=7, **options).tolist()
    assert answer == plain
    assert private.drafts.accepted == 0
    assert alone < private.spent() - alone < alone / 0.9


def test_what_drafts_cost_in_one_answer_counts_in_the_next(private, monkeypatch):
    monkeypatch.setattr("transformers.generation.utils.PromptLookupCandidateGenerator", lambda **options: Wrong())
    monkeypatch.setitem(COSTS, 8, 9.0)
    ends = [0.0]
    for _ in range(3):
        private.answer(PROMPT, do_sample=False, prompt_lookup_num_tokens=7, **OPTIONS)
        private.rows.crop(0)
        ends.append(private.spent())
    first, second, third = (after - before for before, after in pairwise(ends))
    assert second == third < first


def test_look_up_asks_for_more_equal_tokens_until_it_paid():
    ids = torch.tensor([1, 2, 3, 4, 9, 2, 3, 4])
    drafter = PromptLookupCandidateGenerator(num_output_tokens=2, max_length=99)
    assert [_likely(drafter, ids, equal) for equal in (2, 3, 4, 8, 9)] == [True, True, False, False, False]
    assert [DraftTimes([1.0] * 3, spent, came).equal for spent, came in ((0.0, 0), (5.0, 6), (9.0, 1))] == [4, 2, 4]
    PayingDrafts(drafter, KVState.__new__(KVState), DraftTimes())
    longest = drafter.get_candidates(torch.tensor([[3, 4, 7, 1, 2, 3, 4, 8, 5, 1, 2, 3, 4]]))[0]
    assert longest[0, -2:].tolist() == [8, 5]  # and not what followed the first 3, 4


def test_drafts_that_are_right_fill_every_pass(private):
    class Right(CandidateGenerator):
        def get_candidates(self, input_ids, **more):
            return torch.cat([input_ids, plain[None, input_ids.shape[1] - len(PROMPT) :][:, :7]], 1), None

    plain = private.answer(PROMPT, do_sample=False, **OPTIONS)
    private.rows.crop(0)
    before = private.rows.passes
    private._get_candidate_generator = lambda *given, **options: PayingDrafts(Right(), private.rows, DraftTimes())
    private.answer(PROMPT, do_sample=False, prompt_lookup_num_tokens=7, **OPTIONS)
    # The question, with drafts in its last places; what passes without drafts take; then 8 tokens a pass.
    assert private.rows.passes - before == 2 + 2 + 2


def test_drafts_fit_in_one_pass_to_the_end_of_the_room(compiled):
    rows = KVState(compiled.program, lambda *given: pytest.fail("nothing is read"), PREFIX)
    assert (rows.spare(10, fill=True), rows.spare(1, fill=True), rows.spare(1, fill=False)) == (6, 0, 7)
    for kept, spare in ((rows.slots - 8, 7), (rows.slots - 7, 0), (rows.slots - 1, 0)):
        rows.ids = [*PREFIX, *([5] * kept)]
        assert rows.spare(1, fill=False) == spare


def test_an_assistant_of_other_tokens_is_refused(tmp_path):
    folder = tiny_llama(tmp_path / "same")
    chat = Chat(byte_tokenizer(), AutoConfig.from_pretrained(folder), None, [1])
    assert assistant(folder, chat).config.vocab_size == 262
    with pytest.raises(GenerationError, match="assistant LlamaForCausalLM: has 128 tokens and the private model 262"):
        assistant(small(), chat)
    other = byte_tokenizer()
    other.add_tokens(["more"])
    other.save_pretrained(folder)
    with pytest.raises(GenerationError, match="assistant same: has another tokenizer"):
        assistant(folder, chat)
