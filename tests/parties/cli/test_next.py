"""What a command prints as the next one runs as it is printed, whatever the paths are called."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest


@pytest.fixture
def mails(here):
    """A table whose path has a space and a bracket, and whose columns have names of their own."""
    folder = here / "my [mails]"
    folder.mkdir()
    rows = [f"{i},it is {'good' if i % 2 else 'bad'} {'the ' * (i // 2)},{'ab'[i % 2]}" for i in range(60)]
    (folder / "of June.csv").write_text("\n".join(["id,what,queue", *rows]) + "\n")
    return "my [mails]/of June.csv"


def advised(printed):
    """The commands that are printed for somebody to run, each in one line."""
    lines = [line.strip() for line in printed.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("blindformer ")]


NAMED = ("--text-column", "what", "--label-column", "queue", "--seed", 3)
OUT = (
    "a classifier of mails, in a folder whose name is so long that a terminal of a hundred columns would break its line"
)


def test_from_a_head_to_an_answer(call, mails, tiny_encoder):
    code, printed, _ = call("train", tiny_encoder, "--data", mails, *NAMED, "--out", OUT)
    assert code == 0
    first, judge, compile_ = advised(printed)
    assert first == ["query", OUT, "--server", "local", "I forgot my login."]
    code, printed, _ = call(*first)
    assert code == 0
    assert "I forgot my login." in printed
    assert judge == ["evaluate", OUT, "--data", mails]
    assert call(*judge, "--protocol", "torch")[0] == 0
    assert compile_ == ["compile", OUT, "--out", "compiled"]
    code, printed, _ = call(*compile_, "--lengths", 16)
    assert code == 0
    ask, *apart = advised(printed)
    code, printed, errors = call(*ask)
    assert (code, errors) == (0, "")
    assert "I forgot my login." in printed
    serve = ["serve", "compiled/server", "--certs", "certs"]
    assert apart == [["certs", "make", "certs"], ["dealer", "--certs", "certs"], serve]


def test_a_model_of_joined_columns_is_asked_as_it_was_trained(call, here, tiny_encoder):
    rows = [f"the password,{'good' if i % 2 else 'bad'} {'how ' * (i // 2)},{'ab'[i % 2]}" for i in range(40)]
    Path("mails.csv").write_text("\n".join(["subject,body,label", *rows]) + "\n")
    joined = ("--data", "mails.csv", "--text-column", "subject,body")
    assert call("train", tiny_encoder, *joined, "--out", "moods")[0] == 0
    Path("asked.csv").write_text("body,subject\nhow bad !,lost\n")
    asked = ("--file", "asked.csv", "--format", "json")
    assert call("compile", "moods", "--lengths", 16, "--weights", "private-head", "--out", "open")[0] == 0
    commands = [("query", "moods", "--server", "local"), ("run", "moods"), ("query", "open", "--server", "local")]
    for command in commands:
        code, printed, errors = call(*command, *asked)
        assert code == 0, errors
        assert json.loads(printed)["results"][0]["text"] == "lost\nhow bad !"
        assert "texts from" not in errors  # all columns are read
    Path("asked.csv").write_text("body,subject,from,id\nhow bad !,lost,me,1\n")
    code, _, errors = call("query", "moods", "--server", "local", "--file", "asked.csv", "--out", "answers.jsonl")
    assert code == 0, errors
    assert "note: asked.csv: texts from subject, body, not from from; --field names others\n" in errors
    assert json.loads(Path("answers.jsonl").read_text())["label"] in ("a", "b")


def test_what_is_compiled_next_goes_into_a_folder_of_its_own(call, mails, tiny_encoder, here):
    (here / "compiled").mkdir()
    _, printed, _ = call("train", tiny_encoder, "--data", mails, *NAMED, "--out", "moods")
    assert advised(printed)[-1] == ["compile", "moods", "--out", "moods-compiled"]


def test_from_a_student_to_an_encrypted_answer(call, mails, tiny_encoder):
    few = ("--set", "teacher_epochs=1", "--set", "logit_epochs=1")
    compact = ("--plan", "he", "--set", "hidden=8", "--set", "heads=2", *few)
    code, printed, _ = call(
        "distill", "--teacher", tiny_encoder, "--data", mails, *NAMED, *compact, "--out", "a student"
    )
    assert code == 0
    judge, compile_ = advised(printed)
    assert call(*judge, "--protocol", "torch")[0] == 0
    code, printed, _ = call(*compile_, "--lengths", 8)
    assert code == 0
    ask, _, serve = advised(printed)
    assert serve[-2:] == ["--protocol", "ckks"]
    assert call(*ask)[0] == 0


def test_a_student_of_embeddings_is_not_to_be_judged_by_classes(call, mails, tiny_encoder):
    options = ("--embeddings", "--set", "texts=8", "--out", "student")
    code, printed, _ = call("distill", "--teacher", tiny_encoder, "--data", mails, *NAMED, *options)
    assert code == 0
    assert [words[0] for words in advised(printed)] == ["compile"]


def test_from_a_tuned_plan_to_a_student(call, mails, tiny_encoder):
    few = ("--set", "teacher_epochs=1", "--set", "hidden_epochs=1", "--set", "logit_epochs=1")
    assert call("distill", "--teacher", tiny_encoder, "--data", mails, *NAMED, *few, "--out", "a student")[0] == 0
    look = ("--data", mails, "--length", 16, "--texts", 10, "--out", "the plan.json")
    code, printed, errors = call("tune", "a student", *look)
    assert (code, errors) == (0, f"note: {Path(mails).name}: texts from what, labels from queue\n")
    assert "from plan fast" in printed
    assert "accuracy of plan fast" in printed
    assert "float32" not in printed
    compile_, distill = advised(printed)
    assert call(*compile_, "--lengths", 16)[0] == 0
    assert distill[:3] == ["distill", "--teacher", "a student/teacher"]
    code, _, errors = call(*distill, *few)
    assert (code, errors) == (0, "")


@pytest.mark.parametrize("kind", ["span", "masked", "causal"])
def test_a_model_is_asked_what_it_takes(call, here, tiny_heads, tiny_causal, kind):
    code, printed, _ = call(
        "compile", tiny_causal if kind == "causal" else tiny_heads(kind), "--lengths", 32, "--out", "it"
    )
    assert code == 0
    ask, *_ = advised(printed)
    assert ("--pair" in ask) == (kind == "span")
    assert ("[MASK]" in " ".join(ask)) == (kind == "masked")
    assert call(*ask)[0] == 0


def test_a_model_of_images_is_asked_with_one_of_those_it_was_calibrated_on(call, here, tiny_vision, pictures):
    code, printed, _ = call("compile", tiny_vision, "--calibrate", pictures, "--out", "it")
    assert code == 0
    ask, *_ = advised(printed)
    assert ask == ["query", "it", "--server", "local", str(pictures / "0.png")]
    assert call(*ask)[0] == 0


def test_a_language_model_continues_a_text(call, here):
    from blindformer.tests.shared.tiny import tiny_llama

    code, printed, _ = call("compile", tiny_llama(here / "model"), "--chat", "--tokens", 96, "--out", "it")
    assert code == 0
    ask, *_ = advised(printed)
    assert ask == ["chat", "it", "I forgot my login."]
    assert call(*ask, "--max-new-tokens", 2)[0] == 0
