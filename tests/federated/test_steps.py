"""A private step: one example moves it by its clipped gradient at most, noise has the size that is accounted for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blindformer.federated import learning
from blindformer.federated.examples import LEAST, deal
from blindformer.federated.learning import clipped, drawn, flat, gradient, private_step, summed
from blindformer.federated.settings import FederateError, FederateSettings
from blindformer.federated.subject import begin

from .conftest import SMALL

# Parts are disjoint, complete, the same for the same seed; alpha decides how unlike they are.

LABELS = [i % 5 for i in range(400)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 100.0])
def test_every_example_has_one_client(alpha):
    parts = deal(LABELS, 8, alpha, seed=1)
    assert sorted(i for part in parts for i in part) == list(range(400))
    assert min(map(len, parts)) >= LEAST
    assert parts == deal(LABELS, 8, alpha, seed=1)
    assert parts != deal(LABELS, 8, alpha, seed=2)


def skew(alpha):
    """The largest share that one class has of a client's examples, on average."""
    parts = deal(LABELS, 8, alpha, seed=3)
    counts = [np.bincount([LABELS[i] for i in part], minlength=5) for part in parts]
    return float(np.mean([c.max() / c.sum() for c in counts]))


def test_a_small_alpha_gives_unlike_clients():
    assert skew(0.1) > skew(0.5) > skew(100.0) > 0.2
    assert len(set(map(len, deal(LABELS, 8, 0.0, seed=3)))) == 1


def test_too_many_clients_are_refused():
    with pytest.raises(FederateError, match="300 clients: there are 400 examples to share; give fewer"):
        deal(LABELS, 300, 0.0, seed=0)
    with pytest.raises(FederateError, match=r"alpha 0.001: some of 8 clients always had fewer than 2 examples"):
        deal(LABELS, 8, 0.001, seed=0)


CLIP = 0.5


@pytest.fixture(scope="module", params=["fast", "he"])
def subject_and_rows(request, data):
    subject, _, _ = begin(data, FederateSettings(**{**SMALL, "plan": request.param}))
    return subject, subject.encode(data.train.subset(12, 0))


@pytest.fixture
def moved(subject_and_rows):
    """`moved(rows, ...)`: by how much one step moves the weights."""
    subject, _ = subject_and_rows
    before = subject.state()

    def step(rows, rate=1.0, share=1.0, clip=CLIP, noise=0.0):
        total = summed(subject, rows, share=share, clip=clip)
        private_step(subject, total, rate=rate, expected=share * len(rows), clip=clip, noise=noise)
        change = flat(subject.state()) - flat(before)
        subject.set(before)
        return change

    return step


def test_without_clipping_and_noise_it_is_gradient_descent(subject_and_rows, moved):
    subject, rows = subject_and_rows
    loss = F.cross_entropy(subject.model(**rows.batch(range(12))).logits, rows.labels)
    parameters = subject.trained()
    whole = flat(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    torch.testing.assert_close(moved(rows, rate=0.1, clip=1e9), -0.1 * whole, atol=1e-6, rtol=1e-4)


def test_every_example_is_clipped_by_itself(subject_and_rows, moved):
    subject, rows = subject_and_rows
    gradients = [gradient(subject, rows, i) for i in range(12)]
    assert max(float(g.norm()) for g in gradients) > CLIP
    expected = sum(clipped(g, CLIP) for g in gradients) / 12
    torch.testing.assert_close(moved(rows), -expected, atol=1e-6, rtol=1e-4)


def test_one_example_more_moves_the_sum_by_the_norm_at_most(monkeypatch, subject_and_rows, moved):
    """Neighbours in the accountant's sense. The draw is held still, and the expected number."""
    _, rows = subject_and_rows
    monkeypatch.setattr(learning, "drawn", lambda count, share: list(range(12)))
    whole = moved(rows) * 12
    for left_out in (0, 5, 11):
        monkeypatch.setattr(learning, "drawn", lambda count, share, i=left_out: [j for j in range(12) if j != i])
        assert float((whole - moved(rows) * 12).norm()) <= CLIP * 1.0001


def test_the_noise_is_the_one_that_is_accounted_for(monkeypatch, subject_and_rows, moved):
    _, rows = subject_and_rows
    monkeypatch.setattr(learning, "drawn", lambda count, share: [])
    change = moved(rows, rate=2.0, share=0.25, noise=3.0)
    deviation = 2.0 * 3.0 * CLIP / (0.25 * 12)  # rate z C over the expected number
    assert float(change.std()) == pytest.approx(deviation, rel=5 / len(change) ** 0.5)
    assert not torch.equal(change, moved(rows, rate=2.0, share=0.25, noise=3.0))


def test_examples_are_drawn_each_by_itself_and_unforeseeably():
    counts = [len(drawn(200, 0.3)) for _ in range(200)]
    mean, deviation = torch.tensor(counts, dtype=torch.float64).mean(), torch.tensor(counts, dtype=torch.float64).std()
    assert float(mean) == pytest.approx(60, abs=5 * 6.5 / 200**0.5)
    assert float(deviation) == pytest.approx(42**0.5, rel=0.3)  # a binomial's, not that of a fixed number
    torch.manual_seed(0)
    first = drawn(200, 0.3)
    torch.manual_seed(0)
    assert drawn(200, 0.3) != first
    assert drawn(3, 1.0) == [0, 1, 2]


def test_a_gradient_that_is_not_finite_counts_as_none(monkeypatch, subject_and_rows, moved):
    """A refusal would tell of that example."""
    _, rows = subject_and_rows
    real = learning.gradient
    bad = lambda subject, rows, index: real(subject, rows, index) * (float("nan") if index == 3 else 1.0)  # noqa: E731
    without = [i for i in range(12) if i != 3]
    monkeypatch.setattr(learning, "drawn", lambda count, share: without)
    expected = moved(rows)
    monkeypatch.setattr(learning, "drawn", lambda count, share: list(range(12)))
    monkeypatch.setattr(learning, "gradient", bad)
    assert torch.equal(moved(rows), expected)
