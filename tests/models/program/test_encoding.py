"""Weights of eight bits are eight bits in the Program too: exactly those that were trained, at a lower price."""

import math
from dataclasses import replace

import pytest
import torch
from blindformer.approximations import Plan, calibrate, quantise, round_weights
from blindformer.models.compile import compile
from blindformer.models.program.encoding import answer_bits, quantised_scale, weight_scale
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.protocols.matmul import byte_columns
from blindformer.tests.models.conftest import answer, batches, build, clear

SIXTEEN = Plan.preset("fast").replace(linear_bits=16)


def linears(compiled):
    """(path, weight integers, scale) of every product with a matrix of the server's."""
    instructions = compiled.program.instructions
    for item in instructions:
        if item.op == "linear":
            source = instructions[item.args[1]]
            yield item.path, compiled.weights[source.attributes["name"]], source.scale


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "gpt2", "vit-labels", "albert"])
def test_every_linear_is_of_bytes(tiny, name):
    """Behind norms (whose gain is folded in), beside each other (Q, K, V) and after slices alike."""
    encoded = list(linears(tiny(name, "fast").compiled))
    assert len(encoded) >= 8 or name == "albert"
    for path, weight, scale in encoded:
        if "patch_embeddings" in path:  # a convolution is no linear layer
            continue
        assert byte_columns(weight) is not None, path
        assert scale <= 12, path  # of 17 to 24 at sixteen bits


@pytest.mark.parametrize("name", ["bert-eager", "distilbert", "gpt2", "llama", "vit"])
def test_eight_bits_never_cost_more_than_sixteen(tiny, name):
    case = tiny(name, "fast")
    model, inputs = build(name), batches(name)
    wide = price(compile(model, inputs, calibrate(model, inputs, SIXTEEN)).program)
    narrow = price(case.compiled.program)
    # Ranges differ a little with the weights, tables come in powers of two, and not all values can be shortened.
    assert narrow.rounds <= wide.rounds + 1
    assert narrow.online_bytes <= 1.04 * wide.online_bytes
    assert narrow.offline_bytes <= 1.03 * wide.offline_bytes


def test_the_integers_are_those_of_the_trained_weight():
    """LayerNorm's gain g goes into the weight, so W g is what is quantised, and g W of the Program is just that."""
    model, inputs = build("bert"), batches("bert")
    layer = model.encoder.layer[0]
    with torch.no_grad():
        layer.attention.output.LayerNorm.weight.uniform_(0.3, 1.7)
        layer.attention.output.LayerNorm.weight[3] = 0.0
        layer.attention.output.LayerNorm.bias.normal_()
    compiled = compile(model, inputs, calibrate(model, inputs, "fast"))
    weights = {path: weight for path, weight, _ in linears(compiled)}
    gain = layer.attention.output.LayerNorm.weight.detach()
    expected, exponents = quantise(layer.intermediate.dense.weight.detach() * gain, 8)
    columns = byte_columns(weights["encoder.layer.0.intermediate.dense"])
    own = columns.integers.long() << (torch.zeros(64).long() if columns.shifts is None else columns.shifts)
    assert torch.equal(own, (expected.long() << (exponents - exponents.min()).long()).t())
    expected, exponents = quantise(layer.output.dense.weight.detach(), 8)
    own = weights["encoder.layer.0.output.dense"]
    assert torch.equal(own, (expected.long() << (exponents - exponents.min()).long()).t())
    trained = answer(model, inputs[0], compiled.plan)
    for name, value in clear(compiled, inputs[0]).items():
        assert (value - trained[name]).abs().max() < 2.0**-10


def test_bits_by_layer():
    model, inputs = build("bert"), batches("bert")
    plan = Plan.preset("fast").replace(bits={"encoder.layer.0.*": 16, "*.output.dense": 12})
    assert plan.bits_of("encoder.layer.0.intermediate.dense") == 16
    assert plan.bits_of("encoder.layer.0.output.dense") == 12
    assert plan.bits_of("encoder.layer.1.intermediate.dense") == 8
    compiled = compile(model, inputs, calibrate(model, inputs, plan))
    narrow = {path for path, weight, _ in linears(compiled) if byte_columns(weight) is not None}
    assert "encoder.layer.1.intermediate.dense" in narrow
    assert "encoder.layer.0.intermediate.dense" not in narrow
    assert "encoder.layer.1.output.dense" not in narrow
    assert Plan.from_json(compiled.plan.to_json()) == compiled.plan


def test_scales_of_quantised_and_of_other_weights():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    integers, exponents = quantise(weight, 8)
    exact = integers * torch.exp2(exponents.float())
    assert quantised_scale(exact, 40) == -int(exponents.min())
    assert weight_scale(exact, 16) == -int(exponents.min())
    assert weight_scale(exact * 3 / 3 * 1.7 / 1.7, 16) == -int(exponents.min())  # float32's rounding does not count
    assert weight_scale(weight, 16) == 15 - 3  # up to 4.3
    assert weight_scale(exact * 1.1, 16) == 15 - 3
    assert quantised_scale(torch.zeros(3), 40) == -64
    assert quantised_scale(torch.tensor([4.0, 12.0]), 40) == -2


def test_rounding_on_inputs_beats_the_nearest_and_is_final():
    """Weights rounded after training give smaller errors of the layers, and are found unchanged by the plan."""
    model, inputs = build("bert"), batches("bert", 24)
    plan = Plan.preset("exact").replace(linear_bits=8)
    outputs = lambda chosen=None: [answer(model, batch, chosen).last_hidden_state for batch in inputs]  # noqa: E731
    kept, before, nearest = {n: v.clone() for n, v in model.state_dict().items()}, outputs(), outputs(plan)
    steps = []
    errors = round_weights(model, inputs[:16], plan, lambda done, total: steps.append((done, total)))
    assert steps[-1] == (len(errors), len(errors))
    assert all(rounded <= to_nearest for to_nearest, rounded in errors.values())
    assert sum(rounded for _, rounded in errors.values()) < 0.6 * sum(to_nearest for to_nearest, _ in errors.values())
    rounded = outputs()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(rounded, outputs(plan), strict=True))
    error = lambda results: sum(((a - b) ** 2).mean().item() for a, b in zip(before[16:], results[16:], strict=True))  # noqa: E731
    assert error(rounded) < error(nearest)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, kept[name])}
    assert all(name.endswith("weight") and "embeddings" not in name and "LayerNorm" not in name for name in changed)


# What is revealed of a model's outputs: integers of as few bits as an answer needs, in every protocol. That a model has
# no more of them is held for every configuration, in models/test_configurations.py.


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_it_costs_a_round_at_most_and_a_few_bytes_an_element(tiny, name):
    program = tiny(name, "fast").compiled.program
    priced, bare = price(program), price(whole(program))
    elements = sum(math.prod(program.instructions[number].shape) for number in program.outputs.values())
    assert bare.rounds <= priced.rounds <= bare.rounds + 1
    assert priced.up - bare.up <= 8 * elements
    assert priced.down < bare.down
    assert priced.offline_bytes - bare.offline_bytes <= 3 * elements


def whole(program: Program) -> Program:
    """With its results revealed as they are."""
    instructions = [
        x if x.op != "reveal" else replace(
            x, attributes={"to": "client"}, width=program.instructions[x.args[0]].width
        )
        for x in program.instructions
    ]  # fmt: skip
    return program.model_copy(update={"instructions": tuple(instructions)})


@pytest.mark.parametrize(
    ("largest", "bits"), [(0.0, 13), (0.05, 17), (0.2, 15), (1.0, 13), (1.1, 12), (30.0, 12), (4096.0, 12), (1e6, 4)]
)
def test_the_policy(largest, bits):
    assert answer_bits(largest) == bits
    assert 2.0**-bits <= max(2.0**-12, 2.0**-23 * largest)
