"""Texts through a model on this machine: one without an answer leaves the others', and padding is nobody's error."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from blindformer.models.building import compile_lengths
from blindformer.models.compile import ROUNDING, AnswerOutOfRange
from blindformer.models.loading.load import load
from blindformer.parties.client.compare import Comparison, compare, encode_each
from blindformer.protocols.errors import BlindformerError

TEXTS = ("good", "how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


@pytest.mark.parametrize("rows", [1, 3])
def test_an_answer_out_of_range_leaves_the_others(tiny_classifier, rows):
    loaded = load(tiny_classifier)
    compiled = compile_lengths(loaded, [8], texts=list(TEXTS), rows=rows)[8]
    size, encoded, refused = encode_each(loaded, dict(enumerate(["good " * 9, *TEXTS, ""])), 8)
    assert (size, list(encoded), [*refused]) == (8, [1, 2, 3, 4, 5], [0, 6])
    inputs = list(encoded.values())
    clear = compare(loaded, compiled, inputs, protocol="clear")
    largest = [float(row["logits"].abs().max()) for row in clear.private]
    bound = sorted(largest)[-2:]
    program, last = compiled.program, list(compiled.program.instructions)
    at = program.outputs["logits"]
    last[at] = replace(last[at], bound=(sum(bound) / 2 - ROUNDING) / 4)  # below the largest answer, above the others
    compiled.program = program.model_copy(update={"instructions": tuple(last)})
    comparison = compare(loaded, compiled, inputs, protocol="clear")
    (spoilt,) = [index for index, value in enumerate(largest) if value == bound[1]]
    assert {index: type(error) for index, error in comparison.errors.items()} == {spoilt: AnswerOutOfRange}
    for index, (row, before) in enumerate(zip(comparison.private, clear.private, strict=True)):
        assert row == {} if index == spoilt else torch.equal(row["logits"], before["logits"])
    assert comparison.max_abs_error() < 0.02
    with pytest.raises(BlindformerError, match="far outside the calibrated range"):
        compare(loaded, compiled, inputs[spoilt : spoilt + 1], protocol="clear")


def test_errors_are_of_positions_that_hold_tokens():
    mask = torch.tensor([[1, 1, 0, 0]])
    clear, private = torch.ones(1, 4, 3), torch.ones(1, 4, 3)
    private[0, 0, 0], private[0, 2:] = 1.25, -9.0
    comparison = Comparison(
        None, [{"attention_mask": mask}], [{"last_hidden_state": private}], [{"last_hidden_state": clear}], [], 0.0
    )
    assert comparison.max_abs_error() == 0.25
    assert comparison.cosine_min() == pytest.approx(6.25 / math.sqrt(6 * (5 + 1.25**2)))
    comparison.private, comparison.clear = [{"end_logits": private[:, :, 0]}], [{"end_logits": clear[:, :, 0]}]
    assert comparison.max_abs_error() == 0.25
    # Classes, not tokens.
    comparison.private, comparison.clear = [{"logits": private[:, :, 0]}], [{"logits": clear[:, :, 0]}]
    assert comparison.max_abs_error() == 10.0
