"""Windows of a text, and the figures of what was predicted in them."""

import math

import pytest
import torch
from blindformer.models.judging.evaluation import EvaluationError
from blindformer.models.judging.perplexity import PlacedTokens, Window, compared, text_score, windows

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
