"""A task gives what transformers' own pipelines give, from the outputs of the model alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from blindformer.models.loading.answers import read_answer
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.models.loading.media import media_files, open_image
from blindformer.models.loading.task import Task, score_function
from transformers import BertForMaskedLM, pipeline

TEXTS = ["how is my password ?", "not good , bad !", "good"]


def answer(loaded, *of, **named):
    return read_answer(loaded.task, *of, **named)


def nested(ours, expected, tolerance: float = 1e-4) -> None:
    """The same dictionaries and lists, with numbers that are close."""
    assert type(ours) is type(expected)
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys()
        for key in expected:
            nested(ours[key], expected[key], tolerance)
    elif isinstance(expected, list):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            nested(one, other, tolerance)
    else:
        assert ours == (pytest.approx(expected, abs=tolerance) if isinstance(expected, float) else expected)


def outputs(loaded, inputs):
    with torch.no_grad():
        return {name: value for name, value in loaded.model(**inputs).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_text_classification(tiny_classifier, problem):
    loaded = load(tiny_classifier)
    loaded.model.config.problem_type = problem
    expected = pipeline("text-classification", model=loaded.model, tokenizer=loaded.processor)
    for text in TEXTS:
        inputs = loaded.encode(text, 16)
        for top_k in (1, 2, None):
            nested(answer(loaded, outputs(loaded, inputs), inputs, top_k), expected(text, top_k=top_k))
    assert loaded.task.pipeline == "text-classification"


def test_sentence_embeddings_are_of_length_one_and_padding_does_not_matter(tiny_encoder):
    loaded = load(tiny_encoder)
    short, long = (loaded.encode(TEXTS[0], length) for length in (8, 32))
    given = answer(loaded, outputs(loaded, short), short)
    assert sum(x * x for x in given) == pytest.approx(1)
    nested(answer(loaded, outputs(loaded, long), long), given)


def test_next_tokens_are_those_of_the_last_real_position(tiny_causal):
    loaded = load(tiny_causal)
    inputs = loaded.encode("how good", 16)
    given = answer(loaded, outputs(loaded, inputs), inputs, 3)
    with torch.no_grad():
        bare = loaded.model.model(input_ids=inputs["input_ids"][:, : int(inputs["attention_mask"].sum())])
    best = torch.softmax(bare.logits[0, -1], -1).topk(3)
    assert [row["token"] for row in given] == best.indices.tolist()
    assert [row["score"] for row in given] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert given[0]["token_str"] == loaded.processor.decode([given[0]["token"]])
    every = {"logits": bare.logits}
    assert answer(loaded, every, {}, 3)[0]["token"] == given[0]["token"]  # a model with a row for each position


def test_filling_a_mask(tiny_heads):
    loaded, whole = load(tiny_heads("masked")), BertForMaskedLM.from_pretrained(tiny_heads("masked")).eval()
    expected = pipeline("fill-mask", model=whole, tokenizer=loaded.processor)
    inputs = loaded.encode("how [MASK] my password ?", 16)
    for raw in (outputs(loaded, inputs), {"logits": whole(**inputs).logits.detach()}):
        nested(answer(loaded, raw, inputs, 3), expected("how [MASK] my password ?", top_k=3))
    for text, words in {"good": "has 0 times", "[MASK] is [MASK]": "has 2 times"}.items():
        with pytest.raises(InputError, match=rf"^text {words} \[MASK\]: write it once"):
            loaded.encode(text, 16)
    assert all("[MASK]" in text for text in loaded.task.typical(TEXTS))


def test_an_answer_is_a_span_of_the_second_text(tiny_heads):
    """The most likely span that begins and ends in it, by all that there are."""
    loaded = load(tiny_heads("span"))
    question, text = "what is it ?", "the unheard-of password is lost , not good !"
    inputs = loaded.encode((question, text), 32)
    raw = outputs(loaded, inputs)
    (given,) = answer(loaded, raw, inputs, item=(question, text))
    encoding = loaded.processor(question, text)
    inside = [i for i, part in enumerate(encoding.sequence_ids()) if part == 1]
    start, end = (torch.softmax(raw[f"{name}_logits"][0, inside], -1).tolist() for name in ("start", "end"))
    spans = {(i, j): start[i] * end[j] for i in range(len(inside)) for j in range(i, min(i + 15, len(inside)))}
    (i, j), score = max(spans.items(), key=lambda item: item[1])
    places = [encoding.word_to_chars(encoding.token_to_word(inside[k]), sequence_index=1) for k in (i, j)]
    assert given["score"] == pytest.approx(score, abs=1e-5)
    assert (given["start"], given["end"]) == (places[0].start, places[1].end)
    assert given["answer"] == text[given["start"] : given["end"]]
    assert len(answer(loaded, raw, inputs, 3, item=(question, text))) == 3
    with pytest.raises(InputError, match=r"answers a question about a text; give both: .*--pair"):
        loaded.encode(question, 32)


def test_pairs_are_encoded_as_the_tokenizer_does(tiny_classifier, tiny_causal):
    loaded = load(tiny_classifier)
    encoded = loaded.encode(("how good ?", "not bad"), 16)
    expected = loaded.processor("how good ?", "not bad", padding="max_length", max_length=16, return_tensors="pt")
    assert {name: value.tolist() for name, value in encoded.items()} == {n: v.tolist() for n, v in expected.items()}
    assert encoded["token_type_ids"].sum() == 3
    assert loaded.length_for([("how good ?", "not bad")], "exact") == loaded.tokens(("how good ?", "not bad")) == 8
    with pytest.raises(InputError, match="takes one text at a time, not a pair"):
        load(tiny_causal).encode(("how", "good"), 16)
    for wrong in (("a", "b", "c"), ("a", 3)):
        with pytest.raises(InputError, match="a pair of texts is two strings in a tuple"):
            loaded.encode(wrong, 16)


def test_projections_are_the_answer(tiny_heads):
    loaded = load(tiny_heads("clip-text"))
    inputs = loaded.encode("good", 8)
    raw = outputs(loaded, inputs)
    nested(answer(loaded, raw, inputs), {"text_embeds": raw["text_embeds"][0].tolist()})


def test_scores_follow_the_configuration():
    for fields, expected in (
        ({"problem_type": "regression", "num_labels": 1}, "none"),
        ({"num_labels": 1}, "sigmoid"),
        ({"num_labels": 3}, "softmax"),
    ):
        assert score_function(SimpleNamespace(**fields)) == expected
    assert score_function(None) == "softmax"


def test_threads_that_encode_at_different_lengths_do_not_disturb_each_other(tiny_classifier):
    task = load(tiny_classifier).task

    def lengths(length: int) -> set[int]:
        encoded = [task.encode_text("how good is my password ?", length) for _ in range(300)]
        return {one["input_ids"].shape[-1] for one in encoded} | {task.tokens("how good")}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lengths, (8, 12, 16, 20))) == [{8, 4}, {12, 4}, {16, 4}, {20, 4}]


def test_wrong_inputs_are_explained(tmp_path):
    image = pytest.importorskip("PIL.Image")
    text, images = Task("m", "classifier"), Task("m", "image")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "empty").mkdir()
    script = BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # for which Pillow would start Ghostscript
    image.new("1", (10_000, 6_000)).save(huge := BytesIO(), "PNG")
    for ask, words in (
        (lambda: text.encode_text("good", 8), "has no tokenizer"),
        (lambda: images.encode_file(tmp_path / "none.png"), "came without what makes numbers of images"),
        (lambda: text.encode_file(tmp_path), "takes texts, not files of images or recordings"),
        (lambda: open_image(3), "a file's path, a PIL image or a tensor, not int"),
        (lambda: open_image(tmp_path / "cut.png"), r"cut\.png: is no image that can be read"),
        (lambda: open_image(script), "the image: is no image that can be read"),
        (lambda: open_image(huge), "the image: has more than 50 million pixels"),
        (lambda: media_files("image", [tmp_path / "none"]), "there is no such file"),
        (lambda: media_files("image", [tmp_path / "empty"]), "holds no images"),
    ):
        with pytest.raises(InputError, match=words):
            ask()
    image.new("L", (3, 3)).save(tmp_path / "grey.gif")
    assert media_files("image", [tmp_path / "grey.gif"]) == [tmp_path / "grey.gif"]
    assert open_image(tmp_path / "grey.gif").mode == "RGB"


@pytest.mark.parametrize("text", ["", " \n\t", 3, ["good"], {"text": "good"}])
def test_what_is_no_text_is_refused(tiny_classifier, text):
    task = load(tiny_classifier).task
    with pytest.raises(InputError, match="a text is"):
        task.encode_text(text, 8)
    with pytest.raises(InputError, match="a text is"):
        task.tokens(text)
