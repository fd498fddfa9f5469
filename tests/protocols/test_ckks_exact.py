"""The circuit itself, on real numbers and without keys: planning, packing and rotations of every kind of model."""

import numpy as np
import pytest
from blindformer.models.compile import compile
from blindformer.models.encrypted import real_values
from blindformer.models.loading.heads import SentenceEncoder
from blindformer.protocols.ckks.circuit import Mix, QueryMix, QueryScores, Scores
from blindformer.protocols.ckks.exact import Exact
from blindformer.tests.models.conftest import clear, make
from blindformer.tests.protocols.test_ckks import ERROR, small


def exact(name):
    """(circuit, its results, those of `clear`) for a padded text, or an image."""
    compiled, batch = make(name, "he").compiled, make(name, "he").batches[1]
    circuit, _ = small(compiled)
    values = real_values(compiled, compiled.encode_inputs(batch))
    return circuit, Exact(circuit, values).run(), clear(compiled, batch)


# Padding, eager attention, a causal mask, rotary positions and grouped queries, an image and its concatenated token.
@pytest.mark.parametrize("name", ["bert-labels", "bert-eager", "gpt2", "llama", "vit-labels"])
def test_a_circuit_computes_what_clear_does(name):
    _, computed, expected = exact(name)
    for output, value in expected.items():
        size = max(1.0, float(value.abs().max()))
        assert np.abs(computed[output] - value.numpy()).max() < 2 * ERROR * size


def test_the_mean_of_a_text_without_its_padding():
    """The denominator is the client's own, so nothing is divided by."""
    model = SentenceEncoder(make("bert", "he").model, "mean")
    batches = make("bert", "he").batches
    compiled = compile(model, batches, "he")
    circuit, _ = small(compiled)
    computed = Exact(circuit, real_values(compiled, compiled.encode_inputs(batches[1]))).run()
    (expected,) = clear(compiled, batches[1]).values()
    (value,) = computed.values()
    assert np.abs(value - expected.numpy()).max() < 2 * ERROR * max(1.0, float(expected.abs().max()))


def test_attention_of_one_query_is_one_product_with_all_keys():
    """The first layer is for all tokens of a text, the last one for the token that the pooler reads."""
    circuit, _, _ = exact("bert-labels")
    kinds = {
        kind: [step for step in circuit.steps if type(step) is kind] for kind in (Scores, Mix, QueryScores, QueryMix)
    }
    assert [len(steps) for steps in kinds.values()] == [1, 1, 1, 1]
    assert len(kinds[Scores][0].results) == 8
    assert len(kinds[QueryScores][0].results) == 1
