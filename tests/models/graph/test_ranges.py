"""What calibration sees decides how many bits values get: from tails, from what can be, and never without a word."""

import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from blindformer.approximations import Plan, calibrate
from blindformer.models.building import compile_lengths
from blindformer.models.compile import CalibrationWarning, check_room, compile
from blindformer.models.graph.graph import Node
from blindformer.models.graph.ranges import Range, measure
from blindformer.models.loading.calibration_texts import ODD, TEXTS, calibration_texts
from blindformer.models.loading.load import load
from blindformer.models.program.program import Instruction, ProgramError
from blindformer.models.program.widths import near_width
from blindformer.tests.models.conftest import clear
from torch import nn


def test_the_largest_of_all_inputs_but_one_tells_how_far_the_next_may_go():
    def seen(*highs):
        range_ = Range(0.0, highs[0])
        for high in highs[1:]:
            range_.widen(0.0, high)
        return range_.reach

    assert seen(4, 3, 1, 1, 1, 1, 1, 1) == 4
    assert seen(1, 16, 2, 1, 1, 1, 1, 1) == 64
    assert seen(1, 1e9, 2, 1, 1, 1, 1, 1) == 8e9
    assert seen(1, 16, 2, 1, 1, 1, 1) == 16  # too few to tell


def test_inputs_are_measured_alike_on_however_many_cores(monkeypatch):
    x = Node("client", shape=(4, 1), name="x")
    nodes = [x, Node("mul", [x, x], shape=(4, 1))]
    inputs = [{"x": torch.tensor([[float(n)], [2.0], [3.0], [4.0]])} for n in (1, 30, 5, 8, 2, 1, 1, 1, 1)]
    for many in (1, 4):
        monkeypatch.setattr("blindformer.models.graph.ranges.cores", lambda many=many: many)
        measured = measure(nodes, inputs)
        assert measured[id(nodes[1])] == Range(1.0, 900.0, 64.0, 9)


class Attention(nn.Module):
    def forward(self, x, mask):
        return nn.functional.scaled_dot_product_attention(x, x, x, mask.bool()[:, None, None])


@pytest.mark.parametrize("softmax", ["table", "exp"])
def test_a_softmax_is_divided_rightly_whatever_repeats(softmax):
    """Denominators lie between bounds that the number of keys sets, whatever calibration saw of them."""
    generator = torch.Generator().manual_seed(0)
    x = 6 * torch.randn(1, 1, 64, 8, generator=generator)
    seen = {"x": x, "mask": torch.ones(1, 64)}
    plan = calibrate(Attention(), [seen], Plan(softmax=softmax))
    if softmax == "exp":
        (low, high) = plan.ranges["/softmax/denominator"]
        assert low >= 0.99
        assert high == pytest.approx(64 * 1.1)
    same = {"x": x[:, :, :1].expand(1, 1, 64, 8), "mask": torch.ones(1, 64)}
    compiled = compile(Attention(), [seen], plan)
    (got,) = clear(compiled, same).values()
    assert (got - same["x"]).abs().max() < 2.0**-7


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.Tanh()])
@pytest.mark.parametrize("seen", [1.0, 3.0, 6.4])
def test_a_piece_holds_up_to_its_cut_whatever_calibration_saw_of_it(activation, seen):
    """Powers of what is twice as large as all that was seen leave the headroom of a result far behind."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), activation)
    nn.init.ones_(model[0].weight)
    example = {"input": torch.linspace(-seen, seen, 101).reshape(1, -1, 1)}
    compiled = compile(model, [example], calibrate(model, [example], "faithful"))
    batch = {"input": 2 * example["input"]}
    (got,) = clear(compiled, batch).values()
    assert (got - activation(batch["input"])).abs().max() < 2.0**-7


@pytest.mark.parametrize("ring", [37, 36, 35, 34])
def test_values_that_nearly_fill_their_width_are_named(ring):
    """A rescale takes less than 2^(ring-2): of values up to 7.9 at scale 30, that is 2^(ring-32) / 7.9."""
    source = Instruction(op="mul", shape=(1,), scale=30, bound=7.9)
    moved = Instruction(op="shift", args=(0,), attributes={"bits": 0}, shape=(1,), scale=30, bound=7.9)
    rescale = Instruction(op="rescale", args=(1,), attributes={"bits": 10, "ring": ring}, shape=(1,), path="encoder.2")
    near = near_width([source, moved, rescale], set())
    assert near == ({"encoder.2": 2.0 ** (ring - 32) / 7.9} if ring < 36 else {})
    assert near_width([source, moved, rescale], {0}) == {}


def test_a_program_without_room_is_refused_and_one_with_little_is_warned_of():
    with pytest.warns(CalibrationWarning, match=r"encoder.2: inputs 1.4 times as large .* calibrate on more inputs"):
        check_room({"encoder.2": 1.4})
    with pytest.raises(ProgramError, match=r"encoder.3: values of the calibration inputs do not fit the ring; cal"):
        check_room({"encoder.2": 1.4, "encoder.3": 0.7})


class Sums(nn.Module):
    """Sums of many values, at a scale that a few of them would fit."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.linspace(0.5, 0.7, 4096)) for _ in range(2))

    def forward(self, x):
        return {"y": (x * self.first * self.second).sum(-1)}


def test_a_sum_of_many_keeps_its_headroom():
    batches = [{"x": torch.full((1, 4096), value)} for value in (1.0, 0.9)]
    model = Sums()
    compiled = compile(model, batches, Plan())
    larger = {"x": batches[0]["x"] * 1.5}
    assert torch.allclose(clear(compiled, larger)["y"], model(**larger)["y"], rtol=2.0**-10)


def test_built_in_texts_are_of_all_kinds():
    """One token to the full length, digits, symbols, emoji, repeated words, other scripts; and sentences."""
    for most in (1, 8, 20, 40, 60):
        texts = calibration_texts(most)
        assert len(texts) == len(set(texts)) == most
        if most == 1:
            continue
        assert set(texts) & set(ODD)
        assert set(texts) & set(TEXTS)
    assert len(TEXTS) == len(set(TEXTS)) >= 55
    assert min(len(text) for text in ODD) == 1
    assert max(len(text.split()) for text in ODD) > 512


def test_inputs_that_leave_a_plans_own_ranges_are_left_out_with_a_warning(tiny_classifier):
    loaded = load(tiny_classifier)
    known = [loaded.encode(text, 16, truncate=True) for text in TEXTS[:6]]
    narrow = calibrate(loaded.model, known, Plan(margin=1.001))
    with pytest.warns(
        CalibrationWarning, match=r"\d+ of 60 calibration inputs leave the plan's ranges, first at bert\."
    ):
        compile_lengths(loaded, [16], narrow)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        compile_lengths(loaded, [16], narrow, texts=TEXTS[:6])


def test_threads_may_compile_one_loaded_model_at_once(tiny_encoder):
    """While one traces it, none may calibrate it."""
    loaded = load(tiny_encoder)
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(lambda _: compile_lengths(loaded, [8], texts=TEXTS[:6])[8].program.hash(), range(8)))
    assert len(set(hashes)) == 1
