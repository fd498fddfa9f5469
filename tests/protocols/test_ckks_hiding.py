"""What a reply tells its client of the weights, beside the answer: its ciphertext and its noise are the server's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kstest

pytest.importorskip("tenseal")

from blindformer.models.encrypted import real_values
from blindformer.protocols.ckks.computing import divergence, hide
from blindformer.protocols.ckks.exact import Exact
from blindformer.protocols.ckks.parameters import DEVIATION
from blindformer.protocols.ckks.sealed import to_bytes
from blindformer.tests.models.conftest import make

MOMENT = 6.0  # standard errors


@pytest.fixture(scope="module")
def computed(encrypted):
    """(a model on ciphertexts, a request's real numbers, what its circuit makes of them)."""
    values = real_values(
        encrypted.compiled.program, encrypted.compiled.encode_inputs(make("bert-labels", "he").batches[0])
    )
    return encrypted, values, encrypted.evaluator.run(encrypted.keys.encrypt(values), encrypted.keys.evaluation)


def test_a_reply_is_another_each_time(computed):
    """Else a client compares it with what weights would give that it guesses."""
    encrypted, _, answers = computed
    replies = [hide(encrypted.evaluator.ring, answers, encrypted.keys.evaluation) for _ in range(2)]
    sealed = {to_bytes(*item.values()) for item in (answers, *replies)}
    assert len(sealed) == 3


def test_the_noise_that_decrypts_is_the_servers_own(computed):
    """In all slots and in both parts normal, of the stated deviation, and independent of the computation's."""
    encrypted, values, answers = computed
    exact, keys = Exact(encrypted.circuit, values), encrypted.keys
    exact.run()

    def noise(reply):
        ((number, slots),) = keys.slots(reply).items()
        return slots - exact.held[number]

    before, after = noise(answers), noise(hide(encrypted.evaluator.ring, answers, keys.evaluation))
    room = MOMENT / math.sqrt(len(after))
    assert divergence(float(np.sqrt((abs(before) ** 2).mean())), len(before)) < 1.0, "it drowns the computation's"
    for part in (after.real, after.imag):
        assert abs(part.std() / DEVIATION - 1) < room
        assert kstest(part / part.std(), "norm").pvalue > 1e-6
    beside = np.corrcoef([before.real, after.real, after.imag])
    assert np.abs(beside[np.triu_indices(3, 1)]).max() < room
