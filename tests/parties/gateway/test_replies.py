"""A text to stop at is never shown, however the answer comes in pieces."""

from __future__ import annotations

from blindformer.parties.gateway.replies import StopTexts
from hypothesis import given
from hypothesis import strategies as st

WORDS = st.text("ab", max_size=12)


@given(WORDS, st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.lists(st.integers(1, 4), max_size=12))
def test_an_answer_ends_before_the_first_text_to_stop_at(text, stops, sizes):
    until, said, left = StopTexts(stops), "", text
    for size in [*sizes, len(text)]:
        said, left = said + until.feed(left[:size]), left[size:]
        assert not any(stop in said for stop in stops)
    first = min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)
    assert said + until.rest() == text[:first]
    assert until.over == (first is not None)
