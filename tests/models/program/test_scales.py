"""Where rescales are placed, and what they leave to be sent."""

import blindformer as bf
import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.models.program.widths import is_opened
from blindformer.tests.models.conftest import clear
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


@pytest.mark.parametrize("features", [24, 30, 32, 65])
@pytest.mark.parametrize("rows", [3, 200])
def test_layer_norm_opens_its_argument_once_and_is_right(features, rows):
    """Whatever odd factor the number of features has, and whichever tables suit the rows."""
    torch.manual_seed(1)
    norm = nn.LayerNorm(features)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    model = nn.Sequential(nn.Linear(features, features), norm)
    made = compiled(model, rows, features, plan="faithful")
    x = torch.randn(rows, features)
    (got,) = clear(made, {"input": x}).values()
    torch.testing.assert_close(got, model(x), atol=2e-3, rtol=1e-3)
    items = made.program.instructions
    factors = {arg for item in items if item.op == "mul" for arg in item.args if items[arg].shape == (rows, features)}
    assert len(factors) == 1
    assert price(made.program).rounds <= 9


@pytest.mark.parametrize("rows", [16, 1536])
def test_a_slow_network_has_fewer_rounds_and_more_numbers(rows):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Softmax(-1)).eval(), torch.randn(rows, 16)
    plans = [bf.Plan.preset("faithful"), bf.Plan.preset("faithful").for_network(0.04, 1e8)]
    near, far = (bf.compile(model, [{"input": x}], plan) for plan in plans)
    assert price(far.program).rounds < price(near.program).rounds
    assert price(far.program).offline_bytes > price(near.program).offline_bytes
    for made in (near, far):
        (got,) = clear(made, {"input": x}).values()
        torch.testing.assert_close(got, model(x), atol=2e-3, rtol=1e-3)
