"""A write is a new value to all that read after it, and to every view of what it writes to."""

import pytest
import torch
from blindformer.models.lowering import export as exporting
from torch import nn

X = torch.arange(12.0).reshape(3, 4) - 5


def own(x):
    y = x * 2
    before = y + 1
    y += 1
    y.mul_(3).add_(x)
    return before, y, y.relu_() + y


def half(x):
    y = x * 2
    part = y[:, :2]
    y += 1
    return part, y


def through_a_view(x):
    y = x * 2
    y[:, 1:].mul_(3)
    return y


def narrow(x):
    y = (x * 2).int()
    y += torch.ones(4, dtype=torch.int64)
    return y, x.double().add_(x).sub_(1)


class Writing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("function", [own, half, through_a_view, narrow])
def test_what_is_written_is_read_as_torch_reads_it(function):
    model = Writing(function).eval()
    exported, _ = exporting.export(model, {"x": X})
    assert not any(exporting._writes(item) for item in exported.graph.nodes)
    results = exported.module()(x=X)
    for mine, wanted in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (results, model(X))), strict=True):
        assert (mine.dtype, mine.tolist()) == (wanted.dtype, wanted.tolist())


def test_writes_to_values_of_their_own_are_not_traced_anew(monkeypatch):
    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", None)
    exporting.export(Writing(own).eval(), {"x": X})
