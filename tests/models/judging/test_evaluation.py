"""Figures with their intervals, and answers that do not depend on how texts are batched."""

import math

import numpy as np
import pytest
import torch
from blindformer.approximations import calibrate
from blindformer.models.compile import decode_outputs
from blindformer.models.judging.evaluation import (
    OUTPUT,
    REFUSED,
    EvaluationError,
    Predictions,
    by_bucket,
    clear_answers,
    compile_bucket,
    encode,
    macro_f1,
    score,
    torch_answers,
    wilson,
)
from blindformer.models.judging.perplexity import PlacedTokens, Window, compared, text_score, windows
from blindformer.models.loading.load import load
from blindformer.tests.protocols.programs import Case

TEXTS = ["good", "my password is lost", "how bad is the red , red , blue", "what is it ?", "not good . " * 8, "the a"]


def test_wilson_is_the_published_interval():
    """E. B. Wilson's own formula, solved for p: the ends are where the normal test just rejects."""
    for hits, count in ((0, 10), (1, 10), (81, 263), (299, 300), (300, 300)):
        interval = wilson(hits, count)
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
        for end in (interval.low, interval.high):
            if 0.0 < end < 1.0:
                z = (hits / count - end) / math.sqrt(end * (1 - end) / count)
                assert abs(z) == pytest.approx(1.959964, abs=1e-5)
    assert wilson(81, 263).low == pytest.approx(0.2553, abs=2e-4)  # a textbook's example
    assert wilson(81, 263).high == pytest.approx(0.3662, abs=2e-4)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_macro_f1_by_hand():
    labels, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    assert macro_f1(labels, predicted, 3) == pytest.approx((2 / 4 + 4 / 5 + 0) / 3)
    assert macro_f1(labels, predicted, 4) == macro_f1(labels, predicted, 3)  # a class that nobody names does not count


def test_a_score_counts_refusals_as_wrong_and_compares_what_both_answered():
    labels = [0, 1, 1, 0, 1]
    answers = Predictions({0: 0, 1: 1, 2: REFUSED, 4: 0}, {"online": 0.5})
    row = score("student", "beaver", answers, labels, 2, {"teacher": Predictions(dict(enumerate([0, 1, 1, 1, 1])))})
    assert (row.count, row.refused, row.accuracy.value) == (4, 1, 0.5)
    assert row.confusion == [[1, 0], [1, 1]]
    assert row.agreement["teacher"].value == 0.5
    assert row.f1.low <= row.f1.value <= row.f1.high
    assert row == score(
        "student", "beaver", answers, labels, 2, {"teacher": Predictions(dict(enumerate([0, 1, 1, 1, 1])))}
    )


def test_a_text_goes_to_the_least_bucket_that_holds_it_and_is_cut_at_the_longest(tiny_classifier, tiny_features):
    loaded = load(tiny_classifier)
    assert by_bucket(loaded, TEXTS, 20) == {16: [0, 1, 2, 3, 5], 20: [4]}
    assert by_bucket(loaded, TEXTS, 64) == {16: [0, 1, 2, 3, 5], 32: [4]}
    assert encode(loaded, TEXTS, 20)["input_ids"].shape == (6, 20)
    with pytest.raises(EvaluationError, match="no classifier"):
        by_bucket(load(tiny_features), TEXTS, 16)


@pytest.mark.parametrize("plan", ["faithful", "fast"])
def test_many_rows_give_the_integers_of_one(tiny_classifier, plan):
    """A program for several texts computes, bit for bit, what the program for one computes of each, where the same
    tables suit both: from 128 divisions on, others do."""
    loaded = load(tiny_classifier)
    fitted = calibrate(loaded.model, [encode(loaded, TEXTS, 16)], plan)
    one, three = (compile_bucket(loaded, 16, fitted, TEXTS, rows=rows) for rows in (1, 3))
    assert one.plan == three.plan

    def integers(compiled, texts):
        return Case.of(compiled, encode(loaded, texts, 16)).clear()[OUTPUT]

    together = integers(three, TEXTS[:3])
    assert torch.equal(together, torch.cat([integers(one, [text]) for text in TEXTS[:3]]))
    decoded = [decode_outputs(program, {OUTPUT: together})[OUTPUT] for program in (one.program, three.program)]
    assert torch.equal(*decoded)


def test_torch_and_clear_give_the_same_answers(tiny_classifier):
    loaded = load(tiny_classifier)
    fitted = calibrate(loaded.model, [encode(loaded, TEXTS, 16), encode(loaded, TEXTS, 32)], "faithful")
    seen = []
    exact = torch_answers(loaded, TEXTS, 32, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    approximated = torch_answers(loaded, TEXTS, 32, fitted)
    fixed = clear_answers(loaded, TEXTS, 32, fitted, TEXTS, rows=4)
    assert exact.predicted == approximated.predicted == fixed.predicted
    assert list(fixed.seconds) == ["clear"]
    assert all("forward" not in module.__dict__ for module in loaded.model.modules())  # the plan is gone again


# Windows of a text, and the figures of what was predicted in them.

TEXT = list(range(10, 20))


@pytest.mark.parametrize(
    ("size", "most", "lengths"), [(4, None, [4, 4, 1]), (3, None, [3, 3, 3]), (4, 5, [4, 1]), (20, 99, [9])]
)
def test_every_token_but_the_last_is_read_once_and_judged_by_the_next(size, most, lengths):
    cut = windows(TEXT, size, most)
    assert [len(window.ids) for window in cut] == lengths
    read = [token for window in cut for token in window.ids]
    assert read == TEXT[: sum(lengths)]
    assert [token for window in cut for token in window.following] == TEXT[1 : sum(lengths) + 1]


@pytest.mark.parametrize("ids", [[], [7]])
def test_a_text_in_which_nothing_follows_is_too_short(ids):
    with pytest.raises(EvaluationError, match="at least 2"):
        windows(ids, 4)


def test_the_divergence_is_that_of_the_words():
    wanted = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    agree, divergence = compared(wanted, wanted)
    assert (agree.tolist(), divergence.tolist()) == ([True, True], [0.0, 0.0])
    agree, divergence = compared(torch.tensor([[0.0, 1.0], [0.0, 2.0]]), wanted)
    assert agree.tolist() == [True, False]
    p = 1 / (1 + math.exp(-2.0))
    assert divergence.tolist() == pytest.approx([0.0, 2 * (p - (1 - p))])


def test_figures_are_of_the_places_that_were_read():
    """Of four words a model that knows nothing has perplexity 4; one that is sure and right, 1."""
    sure = torch.eye(4)[[1, 2, 3, 0]] * 50
    window, later = Window([0, 1], [1, 2]), Window([2, 3], [3, 0])
    exact, ours = PlacedTokens(), PlacedTokens(seconds=3.0, refused=2)
    exact.add(0, window, sure[:2], sure[:2])
    exact.add(2, later, torch.zeros(2, 4), torch.zeros(2, 4))
    ours.add(0, window, torch.zeros(2, 4), sure[:2])
    row = text_score("mine", "clear", ours, exact, {"float32": exact})
    assert (row.count, row.refused, row.seconds) == (2, 2, 1.5)
    assert row.perplexity == pytest.approx(4.0)
    assert row.float32 == pytest.approx(1.0)
    assert row.ratio == pytest.approx(4.0)
    assert row.kl == pytest.approx(math.log(4))
    assert row.agreement["float32"].value == 0.0
    assert text_score("float32", "torch", exact, exact, {}).perplexity == pytest.approx(2.0)
