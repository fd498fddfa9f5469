"""A text that is too long is refused with every way out, or cut at one end, with its special tokens and a count."""

from __future__ import annotations

import pytest
import torch
from blindformer.models.artifacts import load_client
from blindformer.models.building import compile_folder
from blindformer.models.loading.answers import read_answer
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.models.loading.truncation import IN_COMMANDS, IN_PYTHON, TooLong, truncation_of

WORDS = "how is my password , not good , bad ! what a good red"


@pytest.fixture(scope="module")
def part(tiny_classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    return load_client(compile_folder(tiny_classifier, folder, lengths=[4, 8], calibration=["good", "bad"]))


@pytest.mark.parametrize(("truncate", "side"), [("end", "right"), ("start", "left")])
def test_one_end_is_cut_as_transformers_cuts_it_and_special_tokens_stay(part, truncate, side):
    tokenizer = part.task.processor
    before = tokenizer.truncation_side
    asked = part.encode(WORDS, truncate=truncate)
    assert tokenizer.truncation_side == before
    expected = type(tokenizer).from_pretrained(part.folder, truncation_side=side)(
        WORDS, truncation=True, max_length=8, return_tensors="pt"
    )
    assert torch.equal(asked.inputs["input_ids"], expected["input_ids"])
    ids = asked.inputs["input_ids"][0].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (asked.length, asked.left_out) == (8, part.task.tokens(WORDS) - 8)


def test_what_fits_is_not_cut_and_a_length_that_was_asked_for_is_kept(part):
    for truncate in ("off", "start", "end"):
        asked = part.encode("how good ?", truncate=truncate)
        assert (asked.length, asked.left_out) == (8, 0)
    assert [part.encode(WORDS, length, "end").length for length in (4, 8, None)] == [4, 8, 8]
    assert part.encode("how good ?", 4, "end").left_out == 1


def test_the_longer_text_of_a_pair_is_cut(part):
    tokenizer = part.task.processor
    asked = part.encode(("how good", WORDS), truncate="end")
    expected = tokenizer("how good", WORDS, truncation="longest_first", max_length=8, return_tensors="pt")
    assert torch.equal(asked.inputs["input_ids"], expected["input_ids"])
    assert asked.left_out == part.task.tokens(("how good", WORDS)) - 8


def test_a_question_is_kept_and_the_answer_says_where_it_stood_in_the_whole_text(tiny_heads):
    loaded = load(tiny_heads("span"))
    question, words = "what is it", ["good", "bad"] * 10 + ["the", "password", "is", "lost"]
    item = question, " ".join(words)
    for truncate, kept in (("end", words[:7]), ("start", words[-7:])):
        inputs = loaded.encode(item, 13, truncate)
        texts = loaded.processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
        assert texts.startswith(question)
        assert texts.removeprefix(question).split() == kept
        with torch.no_grad():
            raw = {name: value for name, value in loaded.model(**inputs).items() if isinstance(value, torch.Tensor)}
        (answer,) = read_answer(loaded.task, raw, inputs, item=item, truncate=truncate)
        assert answer["answer"] == item[1][answer["start"] : answer["end"]]
        assert (answer["start"] < len(item[1]) / 2) is (truncate == "end")
    with pytest.raises(InputError, match=r"^the question leaves nothing of 6 tokens to the text; shorten it, or "):
        loaded.encode(item, 6, "end")
    assert loaded.encode(item, 7, "end")["input_ids"].shape == (1, 7)


def test_a_mask_that_was_cut_off_and_a_length_without_room_are_errors(tiny_heads, part):
    masked = load(tiny_heads("masked"))
    text = f"{WORDS} [MASK]"
    with pytest.raises(InputError, match=r"^text has 0 times \[MASK\]"):
        masked.encode(text, 8, "end")
    assert masked.processor.mask_token_id in masked.encode(text, 8, "start")["input_ids"]
    assert masked.encode(text, 8, truncate=True), "an example to calibrate on may lose it"
    with pytest.raises(InputError, match="the special tokens leave nothing of 2 tokens to the text"):
        part.task.encode_text(WORDS, 2, "end")


def test_an_error_says_what_can_be_given_where_it_is_read(part):
    for ways, words in (
        (IN_PYTHON, 'give truncate="end" or "windows", compile with'),
        (IN_COMMANDS, "give --truncate"),
    ):
        with pytest.raises(TooLong, match=f"the model is compiled for 8 at most: {words}"):
            part.encode(WORDS, ways=ways)
    with pytest.raises(TooLong, match=f"the model takes {part.task.positions} at most and is compiled for 8"):
        part.encode("good " * 99, ways=IN_COMMANDS)
    tokenized = part.task.processor(WORDS, return_tensors="pt")
    with pytest.raises(TooLong, match="give truncation=True to the tokenizer"):
        part.encode(tokenized, truncate="end")


def test_other_names_of_transformers_are_known():
    names = {"off": ("off", False, None, "do_not_truncate"), "end": ("end", True, "longest_first"), "start": ("start",)}
    assert all(truncation_of(name) == wanted for wanted, some in names.items() for name in some)
    for wrong in ("only_first", "left", 3, 1, ["end"]):
        with pytest.raises(InputError, match=r"^truncation .*: is not known; choose one of off, start, end, windows$"):
            truncation_of(wrong)
