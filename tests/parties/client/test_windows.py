"""A text that is longer than the model takes: asked in windows that overlap, answered by their mean."""

import itertools

import blindformer as bf
import pytest
import tokenizers
import torch
from blindformer.models.artifacts import load_client
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.models.loading.task import Task
from blindformer.models.loading.truncation import word_windows
from blindformer.parties.client.canaries import CanaryError
from blindformer.parties.client.pipeline import TASKS
from blindformer.parties.client.result import Windows
from blindformer.tests.shared.tiny import WORDS
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

LENGTH = 12
SHORT = "how is my password ?"
LONG = " ".join(word for word in WORDS.split() if word.isalpha()) + " the password is lost ."
MADE = {"protocol": "clear", "lengths": [LENGTH], "calibration": [SHORT, "not good , bad !", "what a good red !"]}


@pytest.fixture(scope="module")
def pipe(tiny_classifier):
    with bf.pipeline("text-classification", model=tiny_classifier, truncation="windows", **MADE) as pipe:
        yield pipe


def windows_of(loaded, text):
    """What transformers' tokenizer makes of a text with `stride`, and the tokens of each window."""
    rows = loaded.processor(
        text, max_length=LENGTH, stride=(LENGTH - 2) // 8, truncation=True, return_overflowing_tokens=True,
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    del rows["overflow_to_sample_mapping"]
    return rows, rows["attention_mask"].sum(1)


def test_the_answer_is_the_mean_of_the_windows_by_their_tokens(pipe, tiny_classifier):
    loaded = load(tiny_classifier)
    rows, tokens = windows_of(loaded, LONG)
    assert len(tokens) > 2
    with torch.no_grad():
        logits = loaded.model(**rows).logits
    expected = (logits * (tokens / tokens.sum())[:, None]).sum(0)
    result = pipe.query(LONG)
    assert torch.allclose(result.outputs["logits"][0], expected, atol=5e-3)
    assert result.value[0]["label"] == loaded.labels[int(expected.argmax())]
    assert (result.windows, result.tokens, result.truncated) == (len(tokens), int(tokens.sum()), 0)


@given(st.lists(st.integers(1, 14), min_size=1, max_size=40), st.integers(1, 17))
def test_windows_have_all_tokens_in_whole_words_and_neighbours_share_some(sizes, room):
    words = [number for number, size in enumerate(sizes) for _ in range(size)]
    windows, divided = word_windows(words, room), max(sizes) > room
    assert (windows[0][0], windows[-1][1]) == (0, len(words))
    for first, end in windows:
        assert 0 < end - first <= room
    for (before, end), (first, last) in itertools.pairwise(windows):
        assert before < first <= end < last
        assert end - first <= room // 8
        if not divided:
            assert words[first - 1] != words[first]
            assert words[end - 1] != words[end]


def test_one_long_word_is_divided_with_an_overlap():
    assert word_windows([0] * 40, 16) == [(0, 16), (14, 30), (28, 40)]
    assert word_windows([*range(8), *[8] * 8, 9], 8) == [(0, 8), (8, 16), (16, 17)]


def test_no_token_is_lost_where_a_part_has_more_than_it_had_in_the_text():
    """Pieces of a text without spaces, as of Japanese, begin with a mark of their own."""
    pieces = [("<pad>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in "abcdefgh")]
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    words = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    task, text = Task("letters", "classifier", words), "abcdefgh" * 7
    windows = task.windows(text, 16)
    assert all(task.tokens(window.item) <= 16 for window in windows)
    assert all(before.end >= after.start for before, after in itertools.pairwise(windows))
    assert (windows[0].start, windows[-1].end) == (0, len(text))


def test_windows_are_asked_one_after_the_other(pipe):
    """So that the first text's answer is there before the last one's first part is asked."""
    part, texts = pipe.part, [LONG, SHORT, LONG]
    asked = {number: part.encode(text, truncate="windows") for number, text in enumerate(texts)}
    windows = Windows(part, asked, 3, None)
    order = [windows.places.get(number, number) for number in windows.questions]
    assert order == sorted(order)


def test_canary_queries_do_not_go_with_windows(pipe, tmp_path):
    with pytest.raises(CanaryError, match=r"^canaries: do not go with texts in windows; cut long texts at one"):
        pipe.use_canaries(tmp_path / "known", 0.5)


def test_windows_are_those_of_the_text(tiny_classifier):
    loaded = load(tiny_classifier)
    windows = loaded.task.windows(LONG, LENGTH)
    ids = [loaded.processor(window.item, add_special_tokens=False)["input_ids"] for window in windows]
    whole = loaded.processor(LONG, add_special_tokens=False)["input_ids"]
    assert all(window.item == LONG[window.start : window.end] for window in windows)
    assert all(whole[window.before : window.before + len(row)] == row for window, row in zip(windows, ids, strict=True))


def test_short_and_long_texts_are_answered_in_their_places(pipe):
    """And as each is alone; a short one costs one query."""
    texts = [LONG, SHORT, f"{SHORT} {LONG}", SHORT]
    together = pipe.query_many(texts)
    assert [result.item for result in together] == texts
    for text, result in zip(texts, together, strict=True):
        assert torch.allclose(pipe.query(text).outputs["logits"], result.outputs["logits"], atol=2e-3)
    assert [result.windows for result in together][1::2] == [1, 1]


def test_a_refused_text_leaves_the_others(pipe):
    long, empty, short = pipe([LONG, " ", SHORT])
    assert isinstance(empty, InputError)
    assert {long["label"], short["label"]} <= {"calm", "glad", "cross"}


def test_labels_of_tokens_stand_where_they_are_in_the_whole_text(tiny_heads):
    with bf.pipeline("token-classification", model=tiny_heads(TASKS["token-classification"]), **MADE) as pipe:
        rows = pipe(LONG, truncation="windows")
        tokens = pipe.part.task.processor(LONG)
        windows = [(window.start, pipe(window.item)) for window in pipe.part.task.windows(LONG, LENGTH)]
    places = [(row["start"], row["end"]) for row in rows]
    assert places == sorted(set(places))
    assert len(rows) > LENGTH
    for row in rows:
        assert LONG[row["start"] : row["end"]] == row["word"]
        assert tuple(tokens.token_to_chars(row["index"])) == (row["start"], row["end"])
        alike = [one for start, own in windows for one in own if start + one["start"] == row["start"]]
        assert (row["entity"], round(row["score"], 2)) in [(one["entity"], round(one["score"], 2)) for one in alike]


def test_an_answer_is_the_most_likely_of_all_windows(tiny_heads):
    question = "what is lost ?"
    with bf.pipeline("question-answering", model=tiny_heads(TASKS["question-answering"]), **MADE) as pipe:
        best, *others = pipe(question=question, context=LONG, truncation="windows", top_k=3)
        windows = pipe.part.task.windows((question, LONG), LENGTH)
        alone = [pipe(question=question, context=window.item[1]) for window in windows]
    assert best["score"] == pytest.approx(max(answer["score"] for answer in alone), abs=0.01)
    assert [row["score"] for row in (best, *others)] == sorted((row["score"] for row in (best, *others)), reverse=True)
    for row in (best, *others):
        assert LONG[row["start"] : row["end"]] == row["answer"]


def test_what_has_no_mean_is_refused(tiny_classifier, tiny_features, pipe):
    part = load_client(pipe.part.folder)
    with pytest.raises(InputError, match=r"^truncation windows: answers for a pair of texts cannot be joined; cut the"):
        part.encode((LONG, LONG), truncate="windows")
    with bf.pipeline("feature-extraction", model=tiny_features, **MADE) as features:
        (refused,) = features([LONG], truncation="windows")
        assert str(refused).startswith("truncation windows: answers for feature-extraction cannot be joined; cut the")


def test_a_query_costs_what_its_windows_cost(tiny_classifier):
    """Through parties: bytes and rounds are those of all windows."""
    options = {**MADE, "protocol": "beaver", "truncation": "windows"}
    with bf.pipeline("text-classification", model=tiny_classifier, **options) as pipe:
        short, long = pipe.query(SHORT), pipe.query(LONG)
        assert long.windows > 2
        assert long.report.online_bytes == long.windows * short.report.online_bytes
        assert long.report.rounds == long.windows * short.report.rounds
