"""A language model judged on a text: in torch, in fixed point, and in private conversations of this machine."""

import math

import pytest
import torch
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.generation.rows import KVState
from blindformer.models.loading.load import load
from blindformer.parties.client.evaluation import evaluate_text
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama

TEXT = "Who's there? Nay, answer me: stand and unfold yourself. Long live the king!" * 2  # 150 bytes, so 150 tokens
ROOM = 96  # more than the 64 places of the first passes
pytestmark = pytest.mark.usefixtures("module_home")  # where models are compiled to


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), TEMPLATE)


@pytest.fixture(scope="module")
def found(folder):
    options = {"protocols": ("beaver", "clear", "torch"), "tokens": ROOM, "private": 110}
    return evaluate_text(load(folder), TEXT, **options)


def test_float32_is_the_models_own_in_windows_after_the_prefix(found, folder):
    loaded = load(folder)
    ids = loaded.processor(TEXT, add_special_tokens=False)["input_ids"]
    losses = []
    for start in (0, ROOM):
        window = [1, loaded.processor.convert_tokens_to_ids("<|user|>"), *ids[start : start + ROOM + 1]]
        with torch.no_grad():
            logits = loaded.model.model(torch.tensor([window[:-1]])).logits[0]
        losses += torch.nn.functional.cross_entropy(logits[1:], torch.tensor(window[2:]), reduction="none")[1:].tolist()
    assert len(losses) == 149
    assert found.row("torch").perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert (found.row("torch").ratio, found.row("torch").kl) == (1.0, 0.0)


def test_a_window_is_judged_in_float32_and_in_fixed_point(folder):
    evaluation = evaluate_text(load(folder), TEXT, protocols=("torch", "clear"), tokens=ROOM, window=32)
    whole, torch_row, clear = evaluation.rows
    assert [(row.name, row.protocol) for row in evaluation.rows][1:] == [
        ("float32 in the window", "torch"),
        ("approximated", "clear"),
    ]
    assert (evaluation.attended, evaluation.window, whole.kl) == (32, ROOM, 0.0)
    assert clear.perplexity == pytest.approx(torch_row.perplexity, rel=2e-3)
    assert torch_row.kl == pytest.approx(clear.kl, rel=0.02)
    assert torch_row.kl > 1e-3  # what is not read is lost


@pytest.mark.parametrize("protocol", ["clear", "beaver"])
def test_what_is_computed_in_private_predicts_as_float32_does(found, protocol):
    row = found.row(protocol)
    assert row.ratio == pytest.approx(1.0, abs=2e-3)
    assert 0 < row.kl < 1e-4
    assert row.agreement["float32"].value > 0.97
    assert row.seconds > 0
    assert row.refused == 0


def test_what_is_private_is_compared_at_its_own_places(found):
    private, clear = found.row("beaver"), found.row("clear")
    assert private.agreement["clear"].value > 0.99
    assert private.perplexity != clear.perplexity
    assert private.float32 != clear.float32 == found.row("torch").perplexity


def test_a_window_whose_answer_is_refused_is_not_the_others(folder, monkeypatch):
    read = KVState.read

    def refusing(rows, ids, *wanted):
        if len(ids) < ROOM:
            raise AnswerOutOfRange("out of range")
        return read(rows, ids, *wanted)

    monkeypatch.setattr(KVState, "read", refusing)
    row = evaluate_text(load(folder), TEXT, tokens=ROOM, protocols=("clear",)).row("clear")
    assert (row.count, row.refused) == (ROOM, 53)


def test_the_command_compiles_nothing_for_torch(call, report_of, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("blindformer.parties.client.evaluation.found_or_compiled", None)
    text = tmp_path / "text"
    text.write_text(TEXT)
    words = ("evaluate", folder, "--text", text, "--protocol", "torch", "--tokens", ROOM)
    (one,) = report_of(*words)["evaluations"]
    assert (one["text"], one["windows"], one["plan"]) == (str(text), 2, "")
    code, out, errors = call(*words)
    assert code == 0, errors
    assert "float32" in out
    assert f"{one['rows'][0]['perplexity']:.2f}" in out
    assert "2 windows of 96 tokens" in out


# --- one line for what is asked wrongly ------------------------------------------------------------------------------
WRONG = {
    "nothing": (("{folder}",), "give --data to judge a classifier, or --text to judge"),
    "both": (
        ("{folder}", "--data", "uci", "--text", "{text}"),
        "give --data to judge a classifier, or --text to judge",
    ),
    "one token": (("{folder}", "--text", "{text}", "--tokens", "64"), "text: has 1 tokens; give at least 2"),
    "a protocol": (("{folder}", "--text", "{text}", "--protocol", "ckks"), "choose among torch, clear, beaver"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong(refused, folder, tmp_path, case):
    words, expected = WRONG[case]
    (text := tmp_path / "text").write_text("a")
    assert expected in refused("evaluate", *(word.format(folder=folder, text=text) for word in words))
