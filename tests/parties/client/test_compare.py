"""Texts through a model on this machine: one without an answer leaves the others', and padding is nobody's error."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from blindformer.models.building import compile_folder
from blindformer.models.compile import ROUNDING, AnswerOutOfRange
from blindformer.models.loading.load import load
from blindformer.parties.cli.items import InputItem
from blindformer.parties.cli.query import ask_items
from blindformer.parties.client.client import open_here
from blindformer.parties.client.compare import Comparison, compare, encode_each
from blindformer.parties.client.local import find_local

TEXTS = ("good", "how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


def test_an_answer_out_of_range_leaves_the_others(tiny_classifier, tmp_path):
    loaded = load(tiny_classifier)
    folder = compile_folder(loaded, tmp_path, lengths=[8], calibration=list(TEXTS))
    size, encoded, refused = encode_each(loaded, dict(enumerate(["good " * 9, *TEXTS, ""])), 8)
    assert (size, list(encoded), [*refused]) == (8, [1, 2, 3, 4, 5], [0, 6])
    with open_here(find_local("clear"), folder) as client:
        before = client.query_many(TEXTS)
        largest = [float(result.outputs["logits"].abs().max()) for result in before]
        part = client.part.for_length(8)
        last, at = list(part.program.instructions), part.program.outputs["logits"]
        bound = sum(sorted(largest)[-2:]) / 2  # below the largest answer, above the others
        last[at] = replace(last[at], bound=(bound - ROUNDING) / 4)
        client.sessions.get(part).program = part.program.model_copy(update={"instructions": tuple(last)})
        items = [InputItem(text, number) for number, text in enumerate(TEXTS, 1)]
        results, broken = ask_items(client, items)
    spoilt = largest.index(max(largest))
    assert broken is None
    assert {n: type(one.error) for n, one in results.items() if one.error} == {spoilt: AnswerOutOfRange}
    good = sorted(results.keys() - {spoilt})
    assert all(torch.equal(results[n].outputs["logits"], before[n].outputs["logits"]) for n in good)
    comparison = compare(loaded, [encoded[n + 1] for n in good], [results[n] for n in good])
    assert (comparison.max_abs_error() < 0.02, len(comparison.reports)) == (True, len(good))


def test_errors_are_of_positions_that_hold_tokens():
    mask = torch.tensor([[1, 1, 0, 0]])
    clear, private = torch.ones(1, 4, 3), torch.ones(1, 4, 3)
    private[0, 0, 0], private[0, 2:] = 1.25, -9.0
    comparison = Comparison(
        [{"attention_mask": mask}], [{"last_hidden_state": private}], [{"last_hidden_state": clear}], [], 0.0
    )
    assert comparison.max_abs_error() == 0.25
    assert comparison.cosine_min() == pytest.approx(6.25 / math.sqrt(6 * (5 + 1.25**2)))
    comparison.private, comparison.clear = [{"end_logits": private[:, :, 0]}], [{"end_logits": clear[:, :, 0]}]
    assert comparison.max_abs_error() == 0.25
    # Classes, not tokens.
    comparison.private, comparison.clear = [{"logits": private[:, :, 0]}], [{"logits": clear[:, :, 0]}]
    assert comparison.max_abs_error() == 10.0
