"""A text to stop at is never shown, and a token is told once with its text, however the answer comes in pieces."""

from __future__ import annotations

from types import SimpleNamespace

from blindformer.models.generation.logprobs import Logprobs, Spelling, TokenLogprob
from blindformer.parties.gateway.replies import AnswerText, StopTexts
from blindformer.tests.shared.tiny import byte_tokenizer
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.text("ab", max_size=12)


@given(WORDS, st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.integers(1, 4), max_size=12))
def test_an_answer_ends_before_the_first_text_to_stop_at(text, stops, sizes):
    until, shown, left = StopTexts(stops), "", text
    for size in [*sizes, len(text)]:
        shown, left = shown + until.feed(left[:size]), left[size:]
        assert not any(stop in shown for stop in stops)
    first = min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)
    assert shown + until.rest() == text[:first]
    assert until.over == (first is not None)


SPELLING = Spelling(TOKENIZER := byte_tokenizer())


@given(
    WORDS,
    st.text("ab\u00e9", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
    st.integers(1, 4),
)
def test_a_token_is_told_once_with_the_text_that_it_begins_in(lead, text, stops, size):
    ids, ahead = TOKENIZER(lead + text)["input_ids"], TOKENIZER(lead)["input_ids"]
    answer = AnswerText(stops, lead, 0, SPELLING)
    assert isinstance(answer.logprobs, Logprobs)
    answer.logprobs.prompt_tokens, sent, likely = len(ahead), "", []
    answer.logprobs.tokens += [TokenLogprob(token) for token in (*ids, TOKENIZER.eos_token_id)]
    for start in range(0, len(text), size):
        sent += answer.feed(text[start : start + size])
        likely += answer.likely() or []
        assert all(offset < len(sent) for offset, _ in likely)
    sent, likely = sent + answer.rest(), likely + (answer.likely(last=True) or [])
    offsets = [at for at, sign in enumerate(lead + text) for _ in sign.encode()]
    shown = [(at, token) for at, token in zip(offsets, ids, strict=True) if at < len(sent)]
    cut = answer.finish(SimpleNamespace(finish="length")) == "stop"
    assert [(at, one.token) for at, one in likely] == shown + ([] if cut else [(len(sent), TOKENIZER.eos_token_id)])
