"""What cannot be compiled is refused at compile time, in one line that names the place and the remedy."""

import logging
import math

import pytest
import torch
import torch.nn.functional as F
from blindformer.approximations import CalibrationError
from blindformer.models.compile import compile
from blindformer.models.graph.ranges import CalibrationFailure
from blindformer.models.lowering.values import LoweringError
from blindformer.models.program.program import ProgramError
from blindformer.protocols.errors import BlindformerError
from blindformer.protocols.ring import RangeError
from blindformer.tests.models.conftest import batches, build, clear
from torch import nn


class Block(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.dense, self.function = nn.Linear(6, 6), function

    def forward(self, x):
        return self.function(self.dense(x))


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Block(torch.relu), Block(function)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return {"y": x}


BATCHES = [{"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(i))} for i in range(3)]

UNSUPPORTED = {
    "a secret made whole": (
        lambda x: (x * 4).long(),
        r"operation to makes torch.int64 of a secret's torch.float32; c",
    ),
    "bits of numbers": (lambda x: torch.logical_and(x, x > 0), r"operation logical_and of a secret's torch.float32"),
    "bits of places": (lambda x: x.argmax(-1) & 1, r"operation __and__ of a secret's torch.int64"),
    "none of a number": (torch.logical_not, r"operation logical_not of a secret's torch.float32"),
    "transforms one by one": (
        lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=0).real,
        r"operation fft_fft of complex numbers that are secret; transform all dimensions at once",
    ),
    "a complex size": (lambda x: torch.fft.fft(x).abs(), r"operation abs of complex numbers that are secret"),
    "a long row to sort": (lambda x: x.reshape(1, 24).repeat(1, 6).sort().values, r"the order of 144 secrets has no"),
    "log": (
        lambda x: torch.log(x * x),
        r"operation log \(aten\.log\.default\) has no private form; return what it is taken of, and take the log",
    ),
    "parts without a rule": (lambda x: F.cross_entropy(x, torch.arange(4)), r"operation \w+ .*has no private form"),
    "random numbers": (lambda x: x + torch.rand(6), r"operation rand .*draws random numbers; give them to the model"),
    "dropout that is on": (
        lambda x: nn.functional.dropout(x, 0.5, training=True),
        r"operation dropout .*draws random numbers; call it with training=False",
    ),
    "number over what may be 0": (lambda x: 1 / x, "a divisor is 0 or less in calibration"),
    "division by what may be 0": (lambda x: x / (x - 1), "a divisor is 0 or less in calibration"),
    "root of what may be 0": (lambda x: torch.relu(x).sqrt(), "a root's argument is 0 or less in calibration"),
    "a matrix's norm": (lambda x: torch.linalg.norm(x, ord=2) * x, r"operation _linalg_svd .*has no private form"),
    "high power": (lambda x: x**9, r"a secret to the power 9 has no rule; take halves and whole numbers up to 8"),
    "comparison": (lambda x: (x < x[0]).to(x.dtype), "comparison of two tensors"),
    "places that are secret": (
        lambda x: torch.zeros(4, 6).scatter_add(1, x.argmax(-1, keepdim=True), x),
        r"operation scatter_add .*has no private form",
    ),
    "a place that may be past the end": (
        lambda x: x[x.argmax(0) + (x > 9).sum()],
        r"a secret index may be 0 to 27, of 4 rows; clamp it to -4 to 3 first",
    ),
    "a place that may be before the first": (
        lambda x: x.gather(1, x.argmax(-1, keepdim=True) - (x < -9).sum()),
        r"a secret index may be -24 to 5, of 6 rows; clamp it to 0 to 5 first",
    ),
    "integer division": (
        lambda x: torch.div(x, 3, rounding_mode="floor"),
        "a secret's integer division may pass at most",
    ),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_an_unsupported_operation_names_module_operation_and_alternative(what, capfd, caplog):
    function, message = UNSUPPORTED[what]
    with pytest.raises(LoweringError, match=rf"^layers\.1: .*?{message}") as caught:
        compile(Model(function), BATCHES, "faithful")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "torch tells nothing beside it"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


REMEDIES = {
    "log": (lambda x: torch.log1p(x * x), lambda x: x * x + 1, torch.log),
    "high power": (lambda x: x**9, lambda x: x**8 * x, None),
    "a power that is secret": (lambda x: 2**x, lambda x: torch.exp(x * math.log(2)), None),
    "a fraction of a power": (lambda x: x.square() ** 0.3, lambda x: (x.square() + 0.1) ** 0.5, None),
    "root of what may be 0": (lambda x: torch.relu(x) ** 1.5, lambda x: (x.square() + 0.1) ** 1.5, None),
    "division by what may be 0": (lambda x: x**-1, lambda x: (x.square() + 0.1) ** -1, None),
    "comparison": (lambda x: x < x[:1] + 2, lambda x: x - x[:1] - 2 < 0, None),
    "equality": (lambda x: x == 1, lambda x: (x > 0.999) & (x < 1.001), None),
    "bits of numbers": (lambda x: torch.logical_or(x, x > 0), lambda x: torch.logical_or(x > 1, x < 0), None),
    "integer division": (lambda x: x // 0.7, lambda x: x.clamp(-9, 9) // 0.7, None),
    "truncation": (
        lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
        lambda x: torch.div(x.clamp(-9, 9), 0.7, rounding_mode="floor"),
        None,
    ),
    "a place past the end": (
        lambda x: x[x.argmax(0) + (x > 99).sum()],
        lambda x: x[(x.argmax(0) + (x > 99).sum()).clamp(-4, 3)],
        None,
    ),
    "two places": (
        lambda x: x[x.argmax(0), x.argmin(0)],
        lambda x: (x[x.argmax(0)] * F.one_hot(x.argmin(0), 6)).sum(-1),
        None,
    ),
}


@pytest.mark.parametrize("what", REMEDIES)
def test_the_remedy_of_an_error_holds(what):
    refused, remedy, at_client = REMEDIES[what]
    with pytest.raises(LoweringError):
        compile(Model(refused), BATCHES, "faithful")
    model = Model(remedy)
    compiled = compile(model, BATCHES, "faithful")
    with torch.no_grad():
        expected = model(**BATCHES[1])["y"].float()
    got = clear(compiled, BATCHES[1])["y"].float()
    if at_client is not None:
        with torch.no_grad():
            got, expected = at_client(got), Model(refused)(**BATCHES[1])["y"]
    assert (got - expected).abs().max() < 2.0**-10 * max(1.0, float(expected.abs().max()))


def test_a_number_that_differs_between_batches_is_refused():
    class Scaled(nn.Module):
        def forward(self, x, k):
            return x * k

    batches = [{"x": torch.ones(2), "k": k} for k in (1, 2)]
    with pytest.raises(ProgramError, match="input k: is 1 and other numbers; give one, or a tensor"):
        compile(Scaled(), batches)


def test_all_that_has_no_rule_is_named_at_once():
    def several(x):
        kept = torch.where(x > 0, torch.log(x), torch.lgamma(x))
        return torch.digamma(kept) + torch.log(kept)

    model = Model(several)
    model.layers[0].function = torch.log
    with pytest.raises(LoweringError) as caught:
        compile(model, BATCHES, "faithful")
    line = str(caught.value)
    assert line.startswith("layers.0: operation log (aten.log.default) has no private form (and in 1 other modules); ")
    assert "also layers.1: operation lgamma " in line
    assert "also layers.1: operation digamma " in line
    assert line.count("rewrite the module without it, or write a rule (models/lowering/rules)") == 1
    assert "\n" not in line


def larger(x):
    for _ in range(8):
        x = torch.nn.functional.silu(30 * x)  # about 30 x; with the plan, about x^2
    return x


def bert(bad=None):
    model = build("bert")
    if bad is not None:
        with torch.no_grad():
            model.encoder.layer[1].output.dense.weight[3, 4] = bad
    return model


def with_buffer():
    model = Model(torch.relu)
    model.layers[1].register_buffer("offset", torch.tensor([float("nan")]))
    model.layers[1].function = lambda x: x + model.layers[1].offset
    return model


class LogGamma(Block):
    def forward(self, x):
        return {"y": self.dense(torch.lgamma(x))}


class Counts(Block):
    def forward(self, x):
        return {"y": self.dense(x) + torch.full((6,), (x > 0).sum().item() + 1)}


NAN = {"x": torch.full((4, 6), float("nan"))}
HUGE = lambda x: x * 1e30 * 1e30 * 1e30 * x * 1e30 * 1e30 * 1e30 * 1e30 * x * 1e30 * 1e30 * 1e30 * 1e30  # noqa: E731
HIDDEN = lambda x: x.masked_fill(torch.ones(4, 6, dtype=torch.bool).triu(1), -float("inf"))  # noqa: E731
UNTRACEABLE = lambda x: x * 2 if float(x.sum()) > 0 else x  # noqa: E731
WEIGHT = r"^encoder\.layer\.1\.output\.dense\.weight: holds NaN or infinite"
REFUSED = {
    "minus infinity as an answer": (
        lambda: compile(Model(HIDDEN), BATCHES),
        LoweringError,
        r"^output y: holds a mask's minus infinity",
    ),
    "values that grow under a plan": (
        lambda: compile(Model(larger), BATCHES, "he"),
        CalibrationError,
        r"NaN or infinity: the model itself does not; distil",
    ),
    "NaN in a weight": (lambda: compile(bert(float("nan")), batches("bert"), "fast"), LoweringError, WEIGHT),
    "infinity in a weight": (lambda: compile(bert(float("inf")), batches("bert"), "fast"), LoweringError, WEIGHT),
    "NaN in a buffer": (lambda: compile(with_buffer(), BATCHES), BlindformerError, r"layers\.1"),
    "NaN in an input": (lambda: compile(Model(lambda x: x * x), [NAN, *BATCHES]), BlindformerError, "NaN"),
    "a range that overflows": (
        lambda: compile(Model(HUGE).double(), [{"x": batch["x"].double()} for batch in BATCHES]),
        (CalibrationFailure, ProgramError),
        r"layers\.1: .*(NaN or infinity|too few bits)",
    ),
    "no such output": (
        lambda: compile(bert(), batches("bert"), "fast", outputs=["logits"]),
        LoweringError,
        r"output logits: the model returns last_hidden_state, pooler_output",
    ),
    "no example": (lambda: compile(bert(), [], "fast"), ProgramError, "there is no example; give at least one batch"),
    "no such embedding": (
        lambda: compile(bert(), batches("bert"), "fast", embedding="public"),
        ProgramError,
        "choose client or private",
    ),
    "what the client may not run on its own": (
        lambda: compile(LogGamma(None), BATCHES),
        LoweringError,
        r"operation lgamma .* of the inputs alone cannot run at the client",
    ),
    "a place that is not there": (
        lambda: compile(Model(lambda x: x[:, 9]), BATCHES),
        LoweringError,
        r"^Model: does not run on these inputs: index 9 is out of bounds",
    ),
    "inputs of other sizes": (
        lambda: compile(Model(torch.relu), [*BATCHES, {"x": torch.ones(4, 5)}]),
        LoweringError,
        r"^Model: does not run on these inputs: mat1 and mat2 shapes",
    ),
    "a number read of an input": (
        lambda: compile(Counts(None), BATCHES),
        LoweringError,
        r"operation item .* of the inputs alone cannot run at the client; also .*operation full cannot be computed",
    ),
    "what cannot be traced": (
        lambda: compile(Model(UNTRACEABLE), BATCHES),
        LoweringError,
        r"^Model: torch\.export cannot trace it, in layers\.1: Could not guard .*; branch on nothing .* inputs hold",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_compiled_is_one_line(what, capfd):
    compiling, error, message = REFUSED[what]
    with pytest.raises(error, match=message) as caught:
        compiling()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == "", "torch tells nothing beside it"


def test_inputs_too_large_for_the_ring_are_refused_at_query_time():
    compiled = compile(Model(torch.relu), BATCHES, "faithful")
    with pytest.raises(RangeError, match=r"x: holds entries that are too large for the fixed point"):
        compiled.encode_inputs({"x": torch.full((4, 6), 1e30)})
    with pytest.raises(RangeError, match=r"x: holds entries that are NaN or infinite"):
        compiled.encode_inputs({"x": torch.full((4, 6), float("nan"))})


def test_an_answer_that_is_always_0_is_in_range():
    compiled = compile(Model(lambda x: F.layer_norm(x, (6,)).mean(-1)), BATCHES, "faithful")
    assert clear(compiled, BATCHES[1])["y"].abs().max() < 2.0**-10


def test_only_wanted_outputs_are_computed():
    compiled = compile(build("bert"), batches("bert"), "fast", outputs=["last_hidden_state"])
    assert list(compiled.program.outputs) == ["last_hidden_state"]
    assert not any(item.path.startswith("pooler") for item in compiled.program.instructions)


def test_the_model_is_left_as_it_was():
    model = build("bert").train()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    compile(model, batches("bert"), "fast")
    assert model.training
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    with pytest.raises(BlindformerError):
        compile(model, batches("bert"), "fast", outputs=["nothing"])
    assert model.training
    assert all("forward" not in module.__dict__ for module in model.modules())
