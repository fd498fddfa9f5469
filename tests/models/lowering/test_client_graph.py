"""What the client runs in the clear: listed operations only, on inputs of the compiled shapes."""

import pytest
import torch
from blindformer.models.compile import compile
from blindformer.models.lowering.client_graph import ALLOWED, run_prelude
from blindformer.models.program.program import PreludeStep, Program, ProgramError
from blindformer.tests.models.conftest import clear
from torch import nn

X = {"x": torch.tensor([[1.0, 2.0]])}


def program(*steps: PreludeStep) -> Program:
    return Program(inputs={"x": (1, 2)}, prelude=steps)


def test_steps_run_in_order_on_inputs_and_tensors():
    steps = (
        PreludeStep(name="twice", target="aten.mul.Tensor", args=[{"ref": "x"}, 2.0]),
        PreludeStep(
            name="sum", target="aten.add.Tensor", args=[{"ref": "twice"}, {"ref": "table"}], kwargs={"alpha": 3}
        ),
        PreludeStep(name="bits", target="aten.to.dtype", args=[{"ref": "sum"}, {"dtype": "bool"}]),
        PreludeStep(name="parts", target="aten.split.Tensor", args=[{"ref": "sum"}, 1, -1]),
        PreludeStep(name="second", target="getitem", args=[{"ref": "parts"}, 1]),
    )
    values = run_prelude(program(*steps), {"table": torch.tensor(1.0)}, X)
    assert values["sum"].tolist() == [[5.0, 7.0]]
    assert values["bits"].dtype == torch.bool
    assert values["second"].tolist() == [[7.0]]


@pytest.mark.parametrize(
    "target",
    ["aten.from_file.default", "aten.resize_.default", "os.system.default", "aten.__class__", "prims.add.default",
     "aten._linalg_det.default", "builtins.eval", "aten.set_.source_Tensor", "load.library", ""],
)  # fmt: skip
def test_anything_else_is_refused(target):
    with pytest.raises(ProgramError, match=r"prelude: operation .* is not allowed at the client"):
        run_prelude(program(PreludeStep(name="y", target=target, args=[{"ref": "x"}])), {}, X)


def test_no_allowed_operation_writes_to_its_argument_or_to_the_machine():
    assert not [name for name in ALLOWED if name.endswith("_") and not name.startswith("__")]
    assert not ALLOWED & {"from_file", "save", "load", "print", "set_", "resize_", "copy_"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y": torch.zeros(1)}, r"^input x: is missing; the program takes x$"),
        ({"x": torch.zeros(1, 3)}, r"input x: has shape \[1, 3\], the program takes \[1, 2\]; pad to that"),
    ],
)
def test_inputs_that_do_not_fit_are_named_with_the_remedy(given, message):
    with pytest.raises(ProgramError, match=message):
        run_prelude(program(), {}, given)


class Namesakes(nn.Module):
    """Released parameters are called as an input, and as the step that reads them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.scale = nn.Parameter(torch.randn(20, 8)), nn.Parameter(torch.rand(8) + 1)
        self.head = nn.Linear(8, 3)

    def forward(self, ids, scale):
        words, next_words = (nn.functional.embedding(row, self.embedding) for row in (ids, ids + 1))
        return self.head((words + next_words) * self.scale * scale)


def test_a_released_parameter_an_input_and_a_step_may_have_one_name():
    model = Namesakes().eval()
    inputs = [{"ids": torch.randint(19, (1, 5)), "scale": torch.rand(1, 5, 8)} for _ in range(3)]
    compiled = compile(model, inputs)
    assert compiled.program.released == ("embedding", "scale")
    (answer,) = clear(compiled, inputs[0]).values()
    torch.testing.assert_close(answer, model(**inputs[0]), atol=1e-3, rtol=0)


def test_inputs_are_left_as_they_are(tiny):
    case = tiny("bert", "fast")
    batch = {name: value.clone() for name, value in case.batches[1].items()}
    case.compiled.encode_inputs(batch)
    assert all(torch.equal(batch[name], case.batches[1][name]) for name in batch)


def test_a_program_takes_the_inputs_it_was_compiled_with(tiny):
    case = tiny("bert", "fast")
    assert set(case.compiled.program.inputs) == {"input_ids", "attention_mask"}
    with pytest.raises(ProgramError, match="input attention_mask: is missing"):
        case.compiled.encode_inputs({"input_ids": case.batches[0]["input_ids"]})


# An embedding that is made narrower right away is the client's part, projection and all; no other layer is.

TOKENS = {"input_ids": torch.tensor([[1, 2, 3]])}


class Narrow(nn.Module):
    """`residual`: something else reads the embedding, too; `deep`: layers follow."""

    def __init__(self, residual: bool = False, deep: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.project = nn.Embedding(10, 8), nn.Linear(8, 4)
        self.layer = nn.Linear(4, 4) if deep else nn.Identity()
        self.residual = residual

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.words(input_ids)
        out = self.layer(self.project(x))
        return out + x[..., :4] if self.residual else out


def released(model: nn.Module) -> set[str]:
    return set(compile(model.eval(), TOKENS, "he").program.released)


def test_a_projection_that_alone_reads_the_words_is_released_with_them():
    assert released(Narrow()) == {"words.weight", "project.weight", "project.bias"}


def test_a_layer_beside_other_readers_is_not():
    assert released(Narrow(residual=True)) == {"words.weight"}


def test_a_model_s_only_layer_is_not():
    assert released(Narrow(deep=False)) == {"words.weight"}
