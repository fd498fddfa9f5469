"""`bf.pipeline` stands in for transformers' own: it takes the same, and gives the same, one by one and together."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import blindformer as bf
import pytest
import torch
import transformers
from blindformer.models.cached import known_models
from blindformer.models.loading.huggingface import InputError
from blindformer.models.loading.packaged import PACKAGED, packaged_students
from blindformer.parties.client import pipeline as pipeline_module
from blindformer.parties.client.pipeline import TASKS
from blindformer.tests.models.loading.test_task import nested
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]
MADE = {"protocol": "clear", "lengths": [16], "calibration": TEXTS}  # the tiny models know few words
TOLERANCE = 5e-3
GREEDY = {"max_new_tokens": 6, "do_sample": False}
pytestmark = pytest.mark.usefixtures("module_home")


@pytest.fixture
def make():
    """`make(task, model, ...)` is a pipeline, which ends with the test."""
    pipes = []

    def new(task: str | None, model: Any, **options: Any):
        pipes.append(bf.pipeline(task, model=model, **{**MADE, **options}))
        return pipes[-1]

    yield new
    for pipe in pipes:
        pipe.close()


def plain(answer: Any) -> Any:
    """transformers' answer with Python's own numbers."""
    if isinstance(answer, dict):
        return {name: plain(value) for name, value in answer.items()}
    return [plain(one) for one in answer] if isinstance(answer, list) else getattr(answer, "item", lambda: answer)()


def alike(mine, theirs, *asked: Any, **options: Any) -> None:
    """Each of them alone, all in a list, and all from an iterator."""
    for inputs in (*asked, list(asked), list(asked[:1])):
        nested(mine(inputs, **options), plain(theirs(inputs, **options)), TOLERANCE)
    nested(list(mine(iter(asked), **options)), plain(list(theirs((one for one in asked), **options))), TOLERANCE)


# --- each task -------------------------------------------------------------------------------------------------------
def test_text_classification(make, tiny_classifier):
    mine = make("sentiment-analysis", tiny_classifier)
    theirs = transformers.pipeline("text-classification", str(tiny_classifier))
    asked = TEXTS[0], {"text": "how good ?", "text_pair": "bad"}, {"text": TEXTS[1]}
    alike(mine, theirs, *asked)
    for top_k in (1, 2, 9, None):
        alike(mine, theirs, *asked, top_k=top_k)
    encoded = AutoTokenizer.from_pretrained(tiny_classifier)(TEXTS[0], return_tensors="pt")
    assert mine(encoded) == mine({"text": TEXTS[0]})
    assert mine.task == "text-classification"


@pytest.mark.parametrize("top_k", [1, 2, None])
def test_how_many_labels_may_be_said_of_the_whole_pipeline(make, tiny_classifier, top_k):
    """transformers then puts the labels of a single text into one more list."""
    mine = make("text-classification", tiny_classifier, top_k=top_k)
    theirs = transformers.pipeline("text-classification", str(tiny_classifier), top_k=top_k)
    alike(mine, theirs, TEXTS[0], {"text": TEXTS[1]})
    alike(mine, theirs, TEXTS[0], top_k=2)
    assert len(mine(TEXTS[:1])[0]) == (top_k or 3)


@pytest.mark.parametrize("task", ["fill-mask", "token-classification"])
def test_tasks_of_tokens(make, tiny_heads, task):
    folder = tiny_heads(TASKS[task])
    asked = ["how [MASK] my password ?", "[MASK] good !"] if task == "fill-mask" else ["how unheard is it", TEXTS[1]]
    mine, theirs = make(task, folder), transformers.pipeline(task, str(folder))
    alike(mine, theirs, *asked)
    for top_k in (2, None) if task == "fill-mask" else ():
        alike(mine, theirs, *asked, top_k=top_k)


@pytest.mark.parametrize("kind", ["features", "encoder", "masked"])
def test_feature_extraction_takes_any_model_of_texts_without_its_head(make, request, tiny_heads, kind):
    folder = tiny_heads(kind) if kind == "masked" else request.getfixturevalue(f"tiny_{kind}")
    mine = make("feature-extraction", folder, protocol="beaver" if kind == "features" else "clear")
    alike(mine, transformers.pipeline("feature-extraction", str(folder)), *TEXTS[:2])


def test_image_classification(make, tiny_vision, pictures):
    files = [str(file) for file in sorted(pictures.iterdir())[:2]]
    mine = make("image-classification", tiny_vision, lengths=None, calibration=[pictures])
    theirs = transformers.pipeline("image-classification", str(tiny_vision))
    alike(mine, theirs, *files, Image.open(files[0]))
    pixels = torch.arange(16 * 16 * 3, dtype=torch.uint8).reshape(3, 16, 16)
    for top_k in (1, None):
        alike(mine, theirs, *files, top_k=top_k)
    nested(mine(pixels, top_k=2), theirs(pixels, top_k=2), TOLERANCE)
    assert mine.query(files[0]).length == 0
    for wrong, words in ((torch.zeros(2, 2, 2, 2, 2), "image: cannot be used"), (TEXTS[0], "there is no such file")):
        with pytest.raises(InputError, match=words):
            mine(wrong)


def test_next_tokens_of_a_model_that_is_compiled_for_whole_texts(make, tiny_causal, tmp_path):
    folder = bf.compile_folder(tiny_causal, tmp_path, lengths=[8], calibration=TEXTS)
    mine = make(None, folder, lengths=None, calibration=None)
    assert (len(mine("how good")), len(mine("how good", top_k=3))) == (5, 3)


def test_question_answering(make, tiny_heads):
    """As transformers had it, up to its version 4."""
    mine, question, context = make("question-answering", tiny_heads("span")), "what is it ?", "it is not my password ."
    answer = mine(question=question, context=context)
    assert answer.keys() == {"score", "start", "end", "answer"}
    assert answer["answer"] == context[answer["start"] : answer["end"]]
    assert mine([{"question": question, "context": context}]) == [answer] == [mine((question, context))]
    assert mine({"question": question, "context": context}, top_k=2)[0] == answer
    assert mine({"question": question, "context": context}, top_k=None) == answer


def test_text_generation(make, tmp_path):
    folder = tiny_llama(tmp_path)
    mine = make("text-generation", folder, lengths=None, calibration=None, generation={"slots": 32})
    theirs = transformers.pipeline("text-generation", str(folder))
    for options in (GREEDY, {**GREEDY, "return_full_text": False}):
        wanted = theirs("<s>Hello", **options)[0]["generated_text"].removeprefix("<s>")
        assert mine("Hello", **options) == [{"generated_text": wanted}]
    assert [len(answers) for answers in mine(["Hello", "Hi"], **GREEDY)] == [1, 1]
    drawn = {"max_new_tokens": 6, "do_sample": True, "temperature": 5.0}  # of one token there is nothing to draw
    assert mine("Hello", **drawn, top_k=1) == mine("Hello", **GREEDY)


def test_text_generation_in_a_chat(make, tmp_path):
    folder = tiny_llama(tmp_path, TEMPLATE)
    mine = make(None, folder, lengths=None, calibration=None, generation={"slots": 32})
    chat = [{"role": "user", "content": "Hello"}]
    wanted = transformers.pipeline("text-generation", str(folder))(chat, **GREEDY)
    assert mine(chat, **GREEDY) == wanted
    assert (
        mine([chat, 3, "Hello", ""], return_full_text=False, **GREEDY)[::2]
        == [[{"generated_text": wanted[0]["generated_text"][-1]["content"]}]] * 2
    )
    assert [str(error).partition(":")[0] for error in mine([3, ""], **GREEDY)] == [
        "a text is a string, or a chat's list of messages, not int", "message",
    ]  # fmt: skip


# --- many, and errors ------------------------------------------------------------------------------------------------
def test_through_parties_a_bad_item_leaves_the_others(make, tiny_classifier):
    mine = make("text-classification", tiny_classifier, protocol="beaver")
    theirs = transformers.pipeline("text-classification", str(tiny_classifier))
    asked = [TEXTS[0], "", 3, {"txt": "good"}, "good " * 40, TEXTS[1]]
    for answers in (mine(asked), list(mine(iter(asked)))):
        nested([answers[0], answers[-1]], theirs([TEXTS[0], TEXTS[1]]), TOLERANCE)
        assert [isinstance(one, InputError) for one in answers[1:-1]] == [True] * 4
    assert [str(one).partition(":")[0] for one in answers[1:4]] == [
        "a text is empty",
        "a text is a string, not int",
        'a dictionary holds "text", "text_pair" here, and not \'txt\'',
    ]
    with pytest.raises(InputError, match="a text is empty"):
        mine("")
    assert mine([]) == []


def test_a_module_and_its_tokenizer_are_a_model_too(make, tiny_classifier):
    module = AutoModelForSequenceClassification.from_pretrained(tiny_classifier)
    mine = make("text-classification", module, tokenizer=AutoTokenizer.from_pretrained(tiny_classifier))
    assert mine(TEXTS[0])[0].keys() == {"label", "score"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "summarisation"}, "^task 'summarisation': is not known; choose one of feature-extraction, "),
        ({"task": "fill-mask"}, "answers text-classification, not fill-mask; leave the task out, or give another"),
        (
            {"model": None},
            "^model: none was given; give a folder, a hub id, or a packaged model",
        ),
        ({"model": "./nowhere"}, "^./nowhere: there is no such folder"),
        ({"model": torch.nn.Linear(1, 1), "task": None}, "^Linear: is a module; give its task and its tokenizer"),
        ({"protocol": "secret"}, "^protocol secret: no session runs on it; choose one of beaver"),
        ({"protocol": "ckks", "task": "text-generation"}, "^protocol ckks: keeps no state between queries; "),
        ({"device": 0}, "^device 0: protocol clear computes on processors; use beaver or crypten$"),
        ({"device_map": "auto", "protocol": "beaver"}, "^device_map: the parties of protocol beaver have no "),
        ({"batch_size": 8}, "^batch_size: the parties of protocol clear have no use for it; leave it out$"),
        ({"dealer": "there:2", "protocol": "beaver"}, '^dealer: "local" starts its parties and makes their '),
        ({"embedding": "mine"}, "^embedding='mine': choose client or private$"),
        ({"lengths": 32}, "^lengths: is one number; give a list: lengths=\\[32\\]$"),
        (
            {"generation": {"slot": 32}, "task": None},
            "^generation: is for models that generate, and text-classification",
        ),
        ({"server": "there:1"}, "^protocol clear: its parties run on this machine here; leave server out"),
        ({"server": "there:1", "protocol": "beaver"}, "^server there:1: is asked with the client's part of what "),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_compiled(tiny_classifier, options, words, monkeypatch):
    monkeypatch.setattr(pipeline_module, "compile_folder", None)
    asked = {"task": "text-classification", "model": tiny_classifier, **MADE, **options}
    with pytest.raises(bf.BlindformerError, match=words) as caught:
        bf.pipeline(**asked)
    assert "\n" not in str(caught.value)


def test_an_option_of_another_task_is_refused(make, tiny_classifier, tiny_encoder):
    with pytest.raises(bf.BlindformerError, match="top_k: answers of sentence-embedding have no rows to choose"):
        make("sentence-embedding", tiny_encoder)(TEXTS[0], top_k=3)
    with pytest.raises(bf.BlindformerError, match="max_new_tokens: is not an option of text-classification"):
        make("text-classification", tiny_classifier)(TEXTS[0], max_new_tokens=3)


def test_a_long_text_is_refused_with_the_ways_out_or_cut_as_transformers_cuts_it(make, tiny_classifier):
    long, mine = "how is my password , " + "not good " * 20, make("text-classification", tiny_classifier)
    theirs = transformers.pipeline("text-classification", str(tiny_classifier))
    (refused,) = mine([long])
    ways = 'give truncation=True or "windows", compile with lengths=[16,64], shorten it, or split it into several'
    assert str(refused).endswith(f" tokens, the model is compiled for 16 at most: {ways}")
    expected = plain(theirs(long, truncation=True, max_length=16))
    nested(mine(long, truncation=True), expected, TOLERANCE)
    for cut in (True, "longest_first", "end"):
        nested(make("text-classification", tiny_classifier, truncation=cut)(long), expected, TOLERANCE)
    theirs.tokenizer.truncation_side = "left"
    other = make("text-classification", tiny_classifier, truncation="start")
    nested(other(long), plain(theirs(long, truncation=True, max_length=16)), TOLERANCE)
    assert other.query(long).truncated == other.part.task.tokens(long) - 16
    assert isinstance(other([long], truncation=False)[0], InputError)


# --- compiled once ---------------------------------------------------------------------------------------------------
def test_a_model_is_compiled_once_and_listed(make, tiny_classifier, module_home, call):
    make("text-classification", tiny_classifier)
    cache = module_home / ".cache" / "blindformer"
    listed = known_models(cache)
    assert [model.name for model in listed[: len(PACKAGED)]] == list(PACKAGED)
    alike = {model.name: model.likeness for model in listed if model.likeness}
    assert alike.keys() == packaged_students().keys()
    both = re.compile(r"0\.9\d on public_texts.*; 0\.\d\d on imdb, another kind$")
    assert all(map(both.search, alike.values()))
    (cached,) = [model for model in listed if model.task == "text-classification" and model.lengths == (16,)]
    assert (cached.name, cached.plan) == (tiny_classifier.name, "faithful")
    again = make("text-classification", tiny_classifier)
    assert str(again.part.folder.parent) == cached.where
    assert make(None, cached.where, lengths=None, calibration=None).task == "text-classification"
    assert str(make(None, tiny_classifier).part.folder.parent) == cached.where
    assert [replace(model, used=None) for model in known_models(cache)] == [replace(one, used=None) for one in listed]
    (old,) = Path(cached.where).glob("client/lengths/16/program.json")
    old.write_text(re.sub(r'"format":\d+', '"format":0', old.read_text()))
    for file in Path(cached.where).glob("*/versions.json"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "files": {}}))
    assert "compile the model again" in {model.where: model for model in known_models(cache)}[cached.where].problem
    make("text-classification", tiny_classifier)  # compiles it again
    (cache / "compiled" / "cut" / "client").mkdir(parents=True)
    code, out, _ = call("models")
    assert code == 0
    assert ["text-classification", "faithful", "16"] in [line.split()[1:4] for line in out.splitlines()]
    assert any("holds no compiled model" in model.problem for model in known_models(cache))
