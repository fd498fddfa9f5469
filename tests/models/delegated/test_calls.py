"""Each call of a linear layer is answered where it is made; other readers of a parameter keep it with the client."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from blindformer.models.delegated.sequences import DelegationError
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

WIDE = 40


class Of(nn.Module):
    """A module of parameters by name, and a function of these and x."""

    def __init__(self, function, **parameters) -> None:
        super().__init__()
        self.function = function
        for name, value in parameters.items():
            if isinstance(value, nn.Module):
                setattr(self, name, value)
            else:
                self.register_parameter(name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape) * 0.2


CALLS = {
    "linear": lambda m, x: F.linear(x, m.w, m.b),
    "linear by name": lambda m, x: F.linear(input=x, weight=m.w, bias=m.b),
    "transposed": lambda m, x: F.linear(x, m.v.t()),
    "at": lambda m, x: x @ m.w.T + m.b,
    "at, stored transposed": lambda m, x: x @ m.v,
    "torch.matmul": lambda m, x: torch.matmul(x, m.w.t()),
    "tensor.matmul": lambda m, x: x.matmul(m.w.mT),
    "torch.mm": lambda m, x: torch.mm(x.flatten(0, 1), m.v),
    "tensor.mm": lambda m, x: x[0].mm(m.v),
    "addmm": lambda m, x: torch.addmm(m.b, x[0], m.v),
    "rows of one parameter": lambda m, x: F.linear(x, m.w[8:32], m.b[8:32]),
    "chunks of one parameter": lambda m, x: sum(F.linear(x, part) for part in m.w.chunk(4)),
    "one vector": lambda m, x: F.linear(x[0, 0], m.w),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_answered_without_the_weights(delegate, name):
    x = torch.randn(2, 5, WIDE)
    delegated = delegate(Of(CALLS[name], w=weight(WIDE, WIDE), v=weight(WIDE, WIDE), b=torch.randn(WIDE)), x=x)
    delegated.check(x=x)
    assert delegated.carrier.calls >= 1
    assert sum(map(len, delegated.names)) == len(delegated.carrier.sequences[0]) or len(delegated.shapes) == 1


def test_gpt2s_conv1d(delegate):
    x = torch.randn(1, 6, WIDE)
    delegated = delegate(Of(lambda m, x: m.layer(x), layer=Conv1D(3 * WIDE, WIDE)), x=x)
    delegated.check(x=x)
    assert delegated.shapes == [(3 * WIDE, WIDE)]
    (layer,) = delegated.runner.groups[0].layers
    assert layer.transposed


CONVOLUTIONS = {
    "1d": (nn.Conv1d(8, 12, 5), (2, 8, 17)),
    "1d, stride, padding": (nn.Conv1d(8, 12, 3, stride=2, padding=1), (1, 8, 17)),
    "1d, same": (nn.Conv1d(8, 12, 4, padding="same"), (1, 8, 17)),
    "1d, valid": (nn.Conv1d(8, 12, 4, padding="valid"), (1, 8, 17)),
    "1d, dilation": (nn.Conv1d(8, 12, 3, dilation=3, bias=False), (1, 8, 17)),
    "2d": (nn.Conv2d(3, 16, 4), (2, 3, 9, 11)),
    "2d, patches": (nn.Conv2d(3, 16, 4, stride=4), (2, 3, 16, 16)),
    "2d, all of them": (nn.Conv2d(3, 16, (3, 4), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (1, 3, 12, 13)),
    "2d, same, dilation": (nn.Conv2d(3, 16, (3, 4), padding="same", dilation=(2, 1)), (1, 3, 12, 13)),
    "2d, points": (nn.Conv2d(32, 16, 1), (1, 32, 4, 4)),
    "3d": (nn.Conv3d(3, 16, (2, 3, 3), stride=(2, 1, 1), padding=(0, 1, 1)), (1, 3, 4, 6, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_a_product_of_its_unfolded_input(delegate, name):
    convolution, shape = CONVOLUTIONS[name]
    x = torch.randn(shape)
    delegated = delegate(Of(lambda m, x: m.layer(x), layer=convolution), x=x)
    delegated.check(x=x)
    ((group, rows),) = delegated.carrier.sequences[0]
    assert (group, rows) == (0, convolution(x)[:, 0].numel())
    assert delegated.shapes == [(len(convolution.weight), convolution.weight[0].numel())]


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDE, 4, batch_first=True, **options)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attention(x, x, x)[0] + self.attention(x, y, y, need_weights=False)[0]


def test_attention_of_torch_is_answered_in_its_parts(delegate):
    inputs = {"x": torch.randn(2, 5, WIDE), "y": torch.randn(2, 7, WIDE)}
    delegated = delegate(Attention(), **inputs)
    delegated.check(**inputs)
    assert delegated.runner.delegated == {"attention.in_proj_weight", "attention.out_proj.weight"}


def test_attention_with_keys_of_another_width(delegate):
    inputs = {"x": torch.randn(2, 5, WIDE), "y": torch.randn(2, 7, 24)}
    module = nn.MultiheadAttention(WIDE, 4, kdim=24, vdim=24, batch_first=True)
    delegated = delegate(Of(lambda m, x: m.layer(x[..., :WIDE], x[..., WIDE:], x[..., WIDE:])[0], layer=module),
                         x=torch.cat([inputs["x"], inputs["y"][:, :5]], -1))  # fmt: skip
    delegated.check(x=torch.cat([inputs["x"], inputs["y"][:, :5]], -1))
    assert delegated.names[1] == ["layer.k_proj_weight", "layer.v_proj_weight"]


KEPT = {
    "grouped convolution": lambda m, x: m.grouped(x.transpose(1, 2)).transpose(1, 2),
    "transposed convolution": lambda m, x: m.turned(x.transpose(1, 2)).transpose(1, 2),
    "einsum": lambda m, x: torch.einsum("bli,oi->blo", x, m.e),
    "parameter on the left": lambda m, x: m.e @ x.transpose(1, 2),
    "weights that are computed": lambda m, x: F.linear(x, m.e / m.e.norm(dim=1, keepdim=True)),
    "columns of a parameter": lambda m, x: F.linear(x[..., :20], m.e[:, :20]),
    "also read as a table": lambda m, x: F.linear(x, m.e) + m.e[3],
    "a batch of matrices": lambda m, x: torch.matmul(x, m.batch),
    "few numbers": lambda m, x: F.linear(x, m.small),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_plain_layer_stays_with_the_client(delegate, name):
    def both(m, x):
        return KEPT[name](m, x).sum() + F.linear(x, m.w)

    parameters = {"w": weight(WIDE, WIDE), "e": weight(WIDE, WIDE), "batch": weight(2, WIDE, WIDE)}
    parameters |= {"small": weight(3, WIDE), "turned": nn.ConvTranspose1d(WIDE, WIDE, 3)}
    x = torch.randn(2, 5, WIDE)
    delegated = delegate(Of(both, grouped=nn.Conv1d(WIDE, WIDE, 3, groups=WIDE), **parameters), x=x)
    delegated.check(x=x)
    assert delegated.names == [["w"]]


def test_a_model_without_such_a_layer_is_refused_by_name(delegate):
    with pytest.raises(DelegationError, match="model: has no linear layer that is worth delegating"):
        delegate(Of(lambda m, x: x * m.s, s=torch.ones(WIDE)), x=torch.randn(2, WIDE))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(50, WIDE), nn.Linear(WIDE, WIDE)
        self.head = nn.Linear(WIDE, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.layer(self.table(ids)))


def test_a_tied_embedding_stays_with_the_client(delegate):
    ids = torch.arange(6)[None]
    delegated = delegate(Tied(), ids=ids)
    assert delegated.names == [["layer.weight"]]
    assert "table.weight" in delegated.model.kept
    delegated.check(ids=ids)


@pytest.mark.parametrize("name", ["Falcon", "GPT-2"])
def test_a_tiny_model_of_each_kind_of_call(delegate, name):
    from blindformer.bench.architecture_models import architectures

    row = architectures()[name]
    batch = row.batches()[0]
    delegated = delegate(row.build(), **batch, use_cache=False)
    delegated.check(**batch, use_cache=False)
    assert any("mlp" in name for name in delegated.runner.delegated)
