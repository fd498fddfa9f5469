"""How likely tokens were is the model's own, whoever chose them; and what each adds to a text, half a character too."""

from __future__ import annotations

import pytest
import torch
from blindformer.models.generation.decoder import GenerationError
from blindformer.models.generation.logprobs import Logprobs, Spelling
from blindformer.tests.models.generation.conftest import PREFIX, some
from blindformer.tests.shared.tiny import SPECIAL, byte_tokenizer

PROMPT = torch.cat([torch.tensor(PREFIX), some(11)])


@pytest.fixture
def expected(model):
    """Of all tokens but the first: [tokens - 1, words]."""

    def rows(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids[None]).logits[0, :-1].log_softmax(-1)

    return rows


class _Told:
    """A streamer that passes on what comes after the prompt."""

    def __init__(self, logprobs: Logprobs) -> None:
        self.told, self.prompt = logprobs, True

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt:
            self.told.chosen(value.flatten().tolist())
        self.prompt = False

    def end(self) -> None:
        pass


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.8, "top_p": 0.9},
        {"do_sample": False, "repetition_penalty": 1.5},
        {"do_sample": False, "prompt_lookup_num_tokens": 4},
    ],
    ids=["greedy", "drawn", "penalty", "drafts"],
)
def test_each_token_has_the_models_own_logprob(private, expected, options):
    torch.manual_seed(0)
    logprobs = Logprobs(top=3, echo=True)
    prompt = torch.cat([PROMPT, PROMPT[3:]])  # something to look up
    ends = {"max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": None}
    answer = private.answer(prompt, logprobs=logprobs, streamer=_Told(logprobs), **ends, **options)
    ids = torch.cat([prompt, answer])
    rows = expected(ids)[len(PREFIX) :]
    assert [one.token for one in logprobs.tokens] == ids[len(PREFIX) :].tolist()
    assert (logprobs.tokens[0].logprob, logprobs.tokens[0].most_likely) == (None, ())
    own = rows[range(len(rows)), ids[len(PREFIX) + 1 :]].tolist()
    assert [one.logprob for one in logprobs.tokens[1:]] == pytest.approx(own, abs=0.05)
    for one, row in zip(logprobs.tokens[1:], rows, strict=True):
        assert [logprob for _, logprob in one.most_likely] == pytest.approx(row.topk(3).values.tolist(), abs=0.05)


def test_a_prompt_may_be_read_without_an_answer_and_is_read_whole_only_if_it_is_echoed(private):
    for echo, read in ((True, 11), (True, 11), (False, 1)):
        logprobs = Logprobs(echo=echo)
        assert private.answer(PROMPT, logprobs=logprobs, max_new_tokens=0).tolist() == []
        assert (len(logprobs.tokens), private.rows.asked) == (11 if echo else 0, read)


def test_where_only_tokens_are_revealed_there_are_none(private):
    private.rows.words = 128
    with pytest.raises(GenerationError, match="logprobs: the model reveals only the token"):
        private.answer(PROMPT, logprobs=Logprobs(), max_new_tokens=1)
    assert private.rows.passes == 0


def test_tokens_are_spelled_to_the_byte():
    tokenizer = byte_tokenizer()
    spelling = Spelling(tokenizer)
    text = "a \u00e9\u20ac\n\x7f</s>"
    ids = tokenizer(text)["input_ids"]
    assert b"".join(map(spelling, ids)) == text.encode()
    assert [spelling(token) for token in ids[-1:]] == [b"</s>"]
    assert spelling(100_000) == b""
    assert {tokenizer.decode([token]) for token in spelling.special} == set(SPECIAL)


def test_pieces_keep_the_space_that_decoding_drops():
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "\u2581the": 1, "<0xE2>": 2, "re": 3}
    inner = Tokenizer(models.BPE(vocab=words, merges=[], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    spelling = Spelling(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"))
    assert [spelling(token) for token in range(4)] == [b"<unk>", b" the", b"\xe2", b"re"]
