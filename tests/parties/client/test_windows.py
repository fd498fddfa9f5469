"""A text that is longer than the model takes: asked in windows that overlap, answered by their mean."""

import json

import blindformer as bf
import pytest
import torch
from blindformer.models.artifacts import load_client
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.load import load
from blindformer.parties.cli.app import app
from blindformer.tests.shared.tiny import WORDS
from typer.testing import CliRunner

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


def test_every_token_is_read_and_neighbours_share_some(tiny_classifier):
    loaded = load(tiny_classifier)
    rows = [row["input_ids"][0] for row in loaded.task.windows(LONG, LENGTH)]
    inner = [[int(i) for i in row[1:] if i not in (0, row[0], loaded.processor.sep_token_id)] for row in rows]
    shared = (LENGTH - 2) // 8
    whole = inner[0] + [i for row in inner[1:] for i in row[shared:]]
    assert whole == loaded.processor(LONG, add_special_tokens=False)["input_ids"]


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


def test_embeddings_have_a_mean_too(tiny_encoder):
    with bf.pipeline("sentence-embedding", model=tiny_encoder, truncation="windows", **MADE) as pipe:
        assert abs(sum(value * value for value in pipe(LONG)) - 1) < 1e-6


def test_what_has_no_mean_is_refused(tiny_classifier, tiny_features, pipe):
    part = load_client(pipe.part.folder)
    with pytest.raises(InputError, match=r"^truncation windows: a pair of texts has no mean"):
        part.encode((LONG, LONG), truncate="windows")
    with bf.pipeline("feature-extraction", model=tiny_features, **MADE) as features:
        (refused,) = features([LONG], truncation="windows")
        assert str(refused).startswith("truncation windows: feature-extraction has no mean of several answers; cut it")


def test_a_query_costs_what_its_windows_cost(tiny_classifier):
    """Through parties: bytes and rounds are those of all windows."""
    options = {**MADE, "protocol": "beaver", "truncation": "windows"}
    with bf.pipeline("text-classification", model=tiny_classifier, **options) as pipe:
        short, long = pipe.query(SHORT), pipe.query(LONG)
        assert long.windows > 2
        assert long.report.online_bytes == long.windows * short.report.online_bytes
        assert long.report.rounds == long.windows * short.report.rounds


def test_run_says_where_windows_are(tiny_classifier):
    done = CliRunner().invoke(app, ["run", str(tiny_classifier), LONG, "--truncate", "windows"])
    assert done.exit_code
    assert json.dumps("--truncate windows: is of `query` and of pipelines")[1:-1] in str(done.exception or done.output)
