"""Where rescales are placed, and what they leave to be sent."""

import math

import blindformer as bf
import pytest
import torch
from blindformer.models.program.block import stacked
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.pricing import price
from blindformer.models.program.program import ProgramError
from blindformer.models.program.widths import is_opened
from blindformer.tests.models.conftest import batches, build, clear
from torch import nn


def compiled(model: nn.Module, *shape: int, plan: str = "fast") -> bf.Compiled:
    generator = torch.Generator().manual_seed(0)
    return bf.compile(model.eval(), [{"input": torch.randn(shape, generator=generator)} for _ in range(3)], plan)


def test_what_a_weight_reads_is_short_where_that_takes_no_message():
    torch.manual_seed(0)
    program = compiled(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4)), 8, 16).program
    items = program.instructions
    second = max(number for number, item in enumerate(items) if item.op == "linear")
    read = items[items[second].args[0]]
    assert items[read.args[0]].op == "polynomial"
    assert read.op == "rescale"
    assert not is_opened(read)
    assert read.width <= 48


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(8, 8)

    def forward(self, input, keep):
        x = self.into(input)
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=keep[:, None])


def test_what_a_small_product_of_large_matrices_is_read_for_widens_no_factor():
    """The sum of a row's numerators, which is mixed beside the values, wants more bits than these do."""
    torch.manual_seed(0)
    keep = torch.arange(64)[None] < 60
    batches = [{"input": 3 * torch.randn(1, 64, 8), "keep": keep} for _ in range(3)]
    plan = bf.Plan.preset("faithful").replace(a_round=1.0)  # which divides step by step
    items = bf.compile(Attention().eval(), batches, plan).program.instructions
    mixed = max(number for number, item in enumerate(items) if item.op == "matmul")
    assert items[mixed].shape == (1, 64, 9)
    assert items[items[mixed].args[0]].width <= 48


class Shares(nn.Module):
    """Of a row's sum, times a factor that a quotient does not see."""

    def __init__(self, factor):
        super().__init__()
        self.into, self.factor = nn.Linear(8, 8), factor

    def forward(self, input):
        y = (self.into(input) ** 2 + 0.1) * self.factor
        return y / y.sum(-1, keepdim=True)


@pytest.mark.parametrize("factor", [1.0, 2.0**16, 2.0**20])
def test_a_division_by_large_numbers_is_right(factor):
    """Of many rows one table's answer counts, times a bit: how small it is must not be taken from the bit."""
    torch.manual_seed(0)
    model, batches = Shares(factor).eval(), [{"input": 2 * torch.randn(1, 300, 8)} for _ in range(3)]
    (got,) = clear(bf.compile(model, batches, "faithful"), batches[0]).values()
    with torch.no_grad():
        assert (got - model(**batches[0])).abs().max() < 2.0**-12


@pytest.mark.parametrize("size", [100.0, 300.0])
def test_scores_that_no_table_reaches_are_refused_in_one_line(size):
    torch.manual_seed(0)
    keep = torch.arange(16)[None] < 12
    batches = [{"input": size * torch.randn(1, 16, 8), "keep": keep} for _ in range(3)]
    with pytest.raises(ProgramError, match=r"scores span about .*, too much for fixed point; calibrate on") as caught:
        bf.compile(Attention().eval(), batches, "faithful")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("features", [1, 64])
@pytest.mark.parametrize("rows", [3, 200])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (8.0, 0.125), (30.0, 0.5)])
def test_layer_norm_is_right_whatever_the_mean(features, rows, mean, deviation):
    """And whichever tables suit the rows."""
    norm, generator = nn.LayerNorm(features), torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(features, features), norm)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(features))
        model[0].bias.zero_()
    x = mean + deviation * torch.randn(rows, features, generator=generator)
    (got,) = clear(bf.compile(model.eval(), [{"input": x}], "faithful"), {"input": x}).values()
    torch.testing.assert_close(got, model(x), atol=2e-3, rtol=1e-3)


def test_a_comparison_of_a_sum_is_covered_by_the_opening_of_its_summand():
    class Attention(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift, self.project = shift, nn.Linear(8, 24)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            q, k, v = self.project(input).chunk(3, -1)
            scores = torch.relu(q @ k.transpose(-1, -2) + self.shift)
            return torch.relu(scores * scores * scores) @ v

    for shift in (1.0, 50.0, 300.0):
        torch.manual_seed(0)
        model = Attention(shift).eval()
        assert price(bf.compile(model, [{"input": torch.randn(24, 8)}], "faithful").program).rounds > 0


def test_several_runs_open_what_one_opens():
    """A summand of fewer dimensions, and a public number of more."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project, self.shift = nn.Linear(8, 16), nn.Buffer(torch.randn(1, 12, 12))

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            q, k = self.project(input).chunk(2, -1)
            scores = q @ k.transpose(-1, -2) + self.shift
            return scores * scores

    torch.manual_seed(0)
    shifted = bf.compile(Shifted().eval(), [{"input": torch.randn(12, 8)}], "faithful", weights="public")
    correlations = Correlations(shifted.program, runs=2)
    assert sum(correlations.layout) == sum(Correlations(stacked(shifted.program, 2)).layout)
    assert len(correlations.layout) == len(Correlations(stacked(shifted.program, 2)).layout)


@pytest.mark.parametrize("rows", [256, 1536])
def test_a_slow_network_has_fewer_rounds_and_more_numbers(rows):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Softmax(-1)).eval(), torch.randn(rows, 16)
    plans = [bf.Plan.preset("faithful"), bf.Plan.preset("faithful").for_network(0.04, 1e8)]
    near, far = (bf.compile(model, [{"input": x}], plan) for plan in plans)
    assert price(far.program).rounds < price(near.program).rounds
    assert price(far.program).offline_bytes > price(near.program).offline_bytes
    for each in (near, far):
        (got,) = clear(each, {"input": x}).values()
        torch.testing.assert_close(got, model(x), atol=2e-3, rtol=1e-3)


# All parties have the Program, so nothing in it is an equation of a private weight.


class SingleNumbers(nn.Module):
    """A factor and a summand of one element, and a threshold that no value comes near."""

    def __init__(self, gain: float):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.tensor(gain)), nn.Parameter(torch.tensor([gain / 4]))

    def forward(self, input):
        return (input * self.gain).clamp(-90.0, 90.0) + self.shift


def test_a_program_does_not_tell_a_number_of_the_servers():
    batch = {"input": torch.linspace(-1, 1, 16)}  # so that ranges are alike, to a power of two
    programs = [bf.compile(SingleNumbers(gain), [batch], "fast").program for gain in (0.75, 0.7431, 0.625)]
    assert len({program.hash() for program in programs}) == 1
    for item in programs[0].instructions:
        assert item.bound == 0 or (item.op != "weight" and math.log2(item.bound).is_integer())


@pytest.mark.parametrize("plan", ["faithful", "fast", "he"])
def test_weights_that_differ_in_their_last_digits_have_one_program(plan):
    """Each is calibrated by itself."""
    model = build("bert-labels")
    hashes = set()
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.data *= 1 + 1e-4 * torch.rand_like(parameter)
        hashes.add(bf.compile(model, batches("bert-labels"), plan).program.hash())
    assert len(hashes) == 1
