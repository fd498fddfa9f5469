"""Counting truncations that go wrong: none of ours, and those that are there are seen."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from blindformer.models.compile import compile

from bench import wraps
from bench.crypten_plain import TruncationCount


def test_an_exact_rescale_is_right_and_one_that_wraps_is_seen():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU()).eval()
    batches = [{"input": torch.randn(2, 4)} for _ in range(8)]
    compiled = compile(model, batches)
    total = wraps.Counted("ours")
    checker = wraps.Checker(compiled, total)
    wraps.infer(compiled, batches[0], checker.observe)
    assert total.truncations == sum(item.op == "rescale" for item in compiled.program.instructions) > 0
    assert (total.wrong, total.outside) == (0, 0)

    item = next(item for item in compiled.program.instructions if item.op == "rescale")
    value = torch.full(item.shape, 5 << item.attributes["bits"])
    checker.exact[item.args[0]] = value
    checker.check(item, torch.full(item.shape, 6))
    assert total.wrong == 0, "the carry"
    checker.check(item, torch.full(item.shape, 5 + (1 << item.width - 2)))
    assert total.wrong == value.numel()


class Shown:
    """Party 0's communicator, on which the other's share comes."""

    def __init__(self, share):
        self.share = share

    def recv(self, like, src):
        return like.copy_(self.share)


def test_shares_whose_sum_leaves_64_bits_are_counted():
    """Value 3 in four sharings: two that wrap, once up and once down, and two that do not."""
    mine = torch.tensor([1, -5, (1 << 63) - 1, -(1 << 63)])
    theirs = 3 - mine  # modulo 2^64: the last two leave it
    count = TruncationCount(Shown(theirs), 0)
    with count:
        halves = mine.clone().div_(2, rounding_mode="trunc")
        mine.float().div_(2.0)
    wrong = (halves + theirs.div(2, rounding_mode="trunc") - 1).abs() > 1
    assert count.found == {"truncations": 1, "elements": 4, "wrong": int(wrong.sum())}
    assert 0 < count.found["wrong"] < 4
