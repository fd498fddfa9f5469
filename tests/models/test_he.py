"""Plan `he`: any architecture becomes sums and products, and computes what the approximated model computes."""

import pytest
import torch
from blindformer.approximations import approximate, restore
from blindformer.models.program.interpreter import interpret
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.models.conftest import CONFIGURATIONS

UNIT = 2.0**-10
LARGER = {
    "vit-labels": 4.0
}  # a residual stream that nothing normalises grows to 7e5, and the head sees an affine map of it


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_answer_is_the_approximated_models(tiny, name):
    made = tiny(name, "he")
    approximate(made.model, made.plan)
    with torch.no_grad():
        expected = [made.model(**batch) for batch in made.batches]
    restore(made.model)
    compiled = made.compiled
    for batch, wanted in zip(made.batches, expected, strict=True):
        sources = {**compiled.encode_inputs(batch), **compiled.weights, **compiled.constants}
        got = compiled.decode(interpret(compiled.program, ClearEngine(sources)).outputs)
        # An untrained student's values grow, and bits go to the largest of the calibration's.
        size = max(1.0, *(float(each[output].abs().max()) for each in expected for output in got))
        for output, value in got.items():
            assert (value - wanted[output]).abs().max() < 2 * UNIT * size * LARGER.get(name, 1.0)


@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name != "distilbert-labels"])
def test_nothing_is_compared(tiny, name):
    assert "less" not in tiny(name, "he").compiled.program.needs()


def test_what_is_no_kind_stays_a_comparison(tiny):
    """The head of DistilBERT's classifier is a ReLU, for which a plan has no choice."""
    program = tiny("distilbert-labels", "he").compiled.program
    assert {item.path for item in program.instructions if item.op == "less"} == {""}


def test_a_mask_meets_the_values_alone(tiny):
    """Nothing is divided by, so no column of the mask is mixed beside them."""
    program = tiny("bert", "he").compiled.program
    masked = [item for item in program.instructions if item.op == "mul_private" and len(item.shape) == 4]
    assert {item.shape for item in masked} == {(1, 4, 8, 8)}
    assert not any(item.op == "concat" for item in program.instructions)
