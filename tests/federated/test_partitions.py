"""Parts are disjoint, complete, the same for the same seed; alpha decides how unlike they are."""

import numpy as np
import pytest
from blindformer.federated.examples import LEAST, deal
from blindformer.federated.settings import FederateError

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
    with pytest.raises(FederateError, match=r"alpha 0.001: in 100 draws some client of 8 had fewer than 2 examples"):
        deal(LABELS, 8, 0.001, seed=0)
