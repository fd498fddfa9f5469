"""What a module may be made of: each operation, compiled alone, is torch's on `clear` and on `beaver`."""

import pytest
import torch
import torch.nn.functional as F
from blindformer.models.compile import compile
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case
from torch import nn


def drawn(*shape: int, seed: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def written(m, x):
    """Every way of writing into a value, and into a view of it."""
    h, own = m.hide(x), x * 2
    h[:, :4].mul_(2)
    h[1] = x[0]
    h[torch.tensor([3, 0])] = own[:2]
    h[:, torch.arange(6) > 4] = 7.0
    own[0].add_(h[0, 0])
    return h + own


def checked(m, x):
    """What only a check reads of the inputs is not part of the answer."""
    torch._check((x > 100).sum().item() <= 6)
    return m.hide(x)


def unwritten(m, x):
    """Memory that holds whatever it held, until all of it is written."""
    torch.full((4, 6), torch.inf)  # which the next such tensor is given
    h = m.hide(x).new_empty(4, 6)
    h[:, :3], h[:, 3:] = m.hide(x)[:, 3:], x[:, :3]
    return h + torch.empty_like(h).copy_(x)


OPERATIONS = {
    "memory that is not written yet": unwritten,
    "a check of the inputs": checked,
    "writes to views": written,
    "number over secret": lambda m, x: 3.0 / (m.hide(x).square() + 0.5),
    "number over the client's": lambda m, x: m.hide(x) * (2 / (x.sum() - 50)),
    "batch of the server's": lambda m, x: m.side.view(2, 2, 6)[:, :, :3] @ m.hide(x).view(2, 3, 4),
    "sum of everything": lambda m, x: m.hide(x) + m.side + x + 1.5,
    "difference": lambda m, x: (1.0 - m.hide(x)) - m.side,
    "product": lambda m, x: m.hide(x) * (x + m.side),
    "square": lambda m, x: m.hide(x).pow(2),
    "cube": lambda m, x: m.hide(x) ** 3,
    "public factors": lambda m, x: m.hide(x) * 0.3 / 7 * torch.arange(6.0),
    "powers of two": lambda m, x: m.hide(x) * 0.125 - m.hide(x) * -4,
    "mean and sum": lambda m, x: m.hide(x).mean(-1, keepdim=True) + m.hide(x).sum((0, 1)),
    "matmul": lambda m, x: m.hide(x) @ (x + m.side).transpose(-1, -2),
    "batched matmul": lambda m, x: m.hide(x).view(2, 2, 2, 3) @ (x + m.side).view(2, 2, 3, 2),
    "linear": lambda m, x: F.linear(x, m.side[:, :6], m.side[:, 0]),
    "linear of a square": lambda m, x: F.linear(m.hide(x) * m.hide(x), m.side),
    "left weight": lambda m, x: m.side.t() @ m.hide(x),
    "relu": lambda m, x: torch.relu(m.hide(x)),
    "clamp": lambda m, x: m.hide(x).clamp(-0.5, 0.5),
    "comparison": lambda m, x: (m.hide(x) < 0.25).to(x.dtype) + (m.hide(x) > -0.5).to(x.dtype),
    "where": lambda m, x: torch.where(m.hide(x) > 0, x + m.side, m.hide(x)),
    "max": lambda m, x: m.hide(x).amax(-1, keepdim=True),
    "max of an odd number": lambda m, x: m.hide(x)[:, :5].amax(-1),
    "argmax": lambda m, x: m.hide(x).argmax(-1).to(x.dtype),
    "argmax of an odd number": lambda m, x: m.hide(x)[:3].argmax(0).to(x.dtype),
    "argmax of all": lambda m, x: m.hide(x).argmax().to(x.dtype),
    "beside nothing": lambda m, x: torch.cat([torch.zeros(0), m.hide(x), x], -1),
    "shapes": lambda m, x: (
        torch.cat([m.hide(x).t()[::2], x.flatten().view(6, 4)[1:2]], 0).unsqueeze(0).expand(2, -1, -1)
    ),
    "split and stack": lambda m, x: torch.stack(m.hide(x).split([1, 2, 3], -1)[1:2] + m.hide(x).chunk(3, -1)[:2]),
    "select and index": lambda m, x: m.hide(x)[1] + m.hide(x)[:, torch.tensor([5, 0, 0, 2, 1, 1])][0],
    "running sums": lambda m, x: m.hide(x).cumsum(-1),
    "sum of products": lambda m, x: torch.einsum("ij,kj->ik", m.hide(x), x + m.side),
    "rolled, flipped, repeated": lambda m, x: m.hide(x).roll((1, -2), (0, 1)).flip(0) + m.hide(x)[:2, :3].repeat(2, 2),
    "rolled as one row": lambda m, x: m.hide(x).roll(5),
    "padded and cut": lambda m, x: F.pad(m.hide(x), (1, -2, -1, 2), value=0.5),
    "pairs of public indices": lambda m, x: m.hide(x)[torch.tensor([[0, 3]]), torch.tensor([[1], [5]])],
    "indices with a gap": lambda m, x: m.hide(x).view(2, 2, 6)[torch.tensor([1, 0]), :, torch.tensor([5, 2])],
    "gather, public": lambda m, x: m.hide(x).gather(-1, torch.arange(24).view(4, 6) % 5),
    "gather, alike in rows": lambda m, x: m.hide(x).gather(-1, torch.tensor([[4, 0]]).expand(4, 2)),
    "gather, the client's": lambda m, x: m.hide(x).gather(1, x.argsort(-1)[:3, :4]),
    "gather, secret": lambda m, x: m.hide(x).gather(1, m.hide(x).argmax(-1, keepdim=True)),
    "rows, the client's": lambda m, x: m.hide(x)[x[:, 0].argsort()],
    "one-hot of a secret": lambda m, x: F.one_hot(m.hide(x).argmax(-1), 6) * 0.5,
    "the first of a row": lambda m, x: m.hide(x).topk(3)[0] + m.hide(x).topk(3, largest=False)[0],
    "places of the first": lambda m, x: m.hide(x).topk(2, dim=0)[1].to(x.dtype),
    "sorted": lambda m, x: m.hide(x).sort(0, descending=True)[0] + m.hide(x).argsort(0),
    "min with its place": lambda m, x: m.hide(x).min(-1)[0] + m.hide(x).min(-1)[1],
    "of a secret's shape": lambda m, x: torch.full_like(m.hide(x), 0.5) * m.side + m.hide(x).new_full((6,), 2.0),
    "zeros of a secret's shape": lambda m, x: torch.zeros_like(m.hide(x)) + m.hide(x),
    "the larger of two": lambda m, x: torch.max(m.hide(x), x) + torch.min(m.hide(x), m.side),
    "the larger of a secret and the least number": lambda m, x: torch.max(
        m.hide(x), torch.full((2, 1, 1), torch.finfo(x.dtype).min)
    ),
    "windows of a line": lambda m, x: (
        m.hide(x).unfold(-1, 3, 2) + x.unfold(1, 3, 2) + m.hide(x).unfold(0, 3, 1)[:1, :2]
    ),
    "rows from the end, by a secret": lambda m, x: (
        m.hide(x)[-m.hide(x).argmax(0)] + m.hide(x)[m.hide(x)[:3].argmax(0) - 1] + m.side[m.hide(x).argmax(0) - 4]
    ),
    "own rows from the end, by a secret": lambda m, x: m.hide(x)[torch.arange(4), m.hide(x).argmax(-1) - 1],
    "rows from the end, by the client's and the server's": lambda m, x: (
        m.hide(x)[x[:, 0].argsort() - 2]
        + m.hide(x)[torch.arange(4), x.argmax(-1) - 3][:, None]
        + m.hide(x)[m.side[:, 0].argsort() - 2]
        + m.side[x[:, 0].argsort() - 2]
    ),
    "rows by clipped places": lambda m, x: m.hide(x)[(m.hide(x).argmax(0) - 1).clamp(min=0)].gather(
        1, (m.hide(x).argmax(-1, keepdim=True) + 1).clamp(-3, 5).clamp(min=0)
    ),
    "rows by counts, choices and the first": lambda m, x: (
        m.hide(x)[(m.hide(x) > 0).sum(0) - 1]
        + m.hide(x)[torch.where(m.hide(x)[0] > 0, m.hide(x).argmax(0), -4)]
        + m.hide(x)[torch.maximum(m.hide(x).argmax(0), m.hide(x).argmin(0)) - m.hide(x).topk(2, dim=0)[1][1]]
    ),
    "the one row, by a secret": lambda m, x: m.hide(x)[:1][m.hide(x)[:1].argmax(0) - 1] + m.hide(x)[:1],
    "rows of a table, by a secret": lambda m, x: F.embedding(m.hide(x).argmax(0), m.side),
    "along a dimension, by a secret": lambda m, x: m.hide(x).take_along_dim(m.hide(x).argmax(-1, keepdim=True), 1),
    "columns, and rows by one place, by a secret": lambda m, x: (
        m.hide(x)[:, m.hide(x).argmax(-1) - 2] + m.hide(x)[:, m.hide(x)[0].argmax() - 1, None]
    ),
    "whole numbers": lambda m, x: m.hide(x).argmax(-1) % 4 - m.hide(x).argmax(-1) // 4 + (m.hide(x) > 0).sum(-1),
    "remainders": lambda m, x: m.hide(x).clamp(-1, 1) % 0.3 + m.hide(x).clamp(-1, 1) // 0.3,
    "bits": lambda m, x: (m.hide(x) > 0) ^ (x > 0) | (m.hide(x).argmax(-1, True) == 2) & (m.hide(x) > -1),
    "sums of bits": lambda m, x: (m.hide(x) > 0) + (m.hide(x) > 1),
    "any and all": lambda m, x: (m.hide(x) > 0.5).any(-1) + (m.hide(x) > -0.2).all(1),
    "one number of all": lambda m, x: (m.hide(x) > 1).any(),
    "one place of all": lambda m, x: m.hide(x).argmax(),
    "of one number": lambda m, x: m.hide(x).sum().topk(1)[0] + m.hide(x).mean().cumsum(0) * m.hide(x).sum().argmax(),
    "products with vectors": lambda m, x: (
        (m.hide(x) @ m.side[0])[:, None]
        + m.hide(x)[:, 0] @ m.side
        + m.hide(x)[0] @ x[1]
        + F.linear(m.hide(x)[0], m.side)[0]
    ),
    "gated": lambda m, x: F.glu(m.hide(x)) + torch.nn.GLU(0)(m.hide(x))[:1, :3],
    "logarithms of softmax": lambda m, x: F.log_softmax(m.hide(x), -1) + torch.logsumexp(m.hide(x), 0, keepdim=True),
    "logarithm of a sigmoid": lambda m, x: F.logsigmoid(m.hide(x)) + F.tanhshrink(m.hide(x)),
    "largest of windows of a line": lambda m, x: (
        F.max_pool1d(m.hide(x), 2)
        + F.max_pool1d(m.hide(x)[None], 3, 2, 1)[0]
        + F.max_pool1d(m.hide(x), 2, 2, 1, 2, True)[:, 1:]
    ),
    "powers": lambda m, x: (
        (m.hide(x).square() + 0.5) ** 0.5
        + (m.hide(x).square() + 0.5) ** -1.5
        + m.hide(x) ** 5
        + m.hide(x) ** 0
        + (m.hide(x).square() + 0.5).pow(-2)
        + (m.hide(x).square() + 0.5).pow(1.5)
    ),
    "exp less 1": lambda m, x: torch.expm1(-m.hide(x).square()),
    "the client's logarithms": lambda m, x: m.hide(x.square().log1p() + x.expm1() + (x.square() + 1).log()),
    "scatter, public": lambda m, x: m.hide(x).scatter(1, torch.tensor([[5, 0]]).expand(3, 2), x),
    "scatter, the client's": lambda m, x: m.hide(x).scatter(0, x.argsort(0)[:2], m.side),
    "scatter, secret": lambda m, x: torch.zeros(4, 6).scatter(1, m.hide(x).topk(3)[1], 1.0) * x,
    "scatter to the only place": lambda m, x: x[:, :1].scatter(1, m.hide(x)[:, :1].topk(1)[1], 0.5) + m.hide(x),
    "scatter to one place": lambda m, x: m.hide(x).scatter(1, (m.hide(x) > 0)[:, :2].long(), 0.5),
    "larger and smaller": lambda m, x: torch.maximum(m.hide(x), x) + torch.minimum(m.hide(x), m.side).clamp_min(-1),
    "hard activations": lambda m, x: F.hardswish(m.hide(x) * 4) + F.hardsigmoid(m.hide(x) * 4) + F.relu6(m.hide(x)),
    "clamp from below, and to no end": lambda m, x: m.hide(x).clamp(-0.5, torch.inf) + m.hide(x).clamp(-torch.inf, 1.0),
    "leaky": lambda m, x: F.leaky_relu(m.hide(x), 0.1) + F.prelu(m.hide(x), m.side[0, :1]),
    "division by the client's": lambda m, x: m.hide(x) / (x.square() + 1),
    "division by a secret": lambda m, x: m.hide(x) / (m.hide(x).square() + 1),
    "division by a root": lambda m, x: m.hide(x) / torch.sqrt(m.hide(x).square().mean(-1, keepdim=True) + 0.1),
    "root": lambda m, x: torch.sqrt(m.hide(x).square() + 0.5),
    "public and the client's own roots of 0": lambda m, x: m.hide(x) + torch.arange(6.0).sqrt() + x.relu().sqrt(),
    "exp of a public minus infinity": lambda m, x: m.hide(x) * torch.tensor([0.0, -torch.inf, 1, 1, 0, 0]).exp(),
    "a row of zeros of length one": lambda m, x: F.normalize(m.hide(x) * (torch.arange(4.0) > 0)[:, None], dim=-1),
    "of length one": lambda m, x: F.normalize(m.hide(x), dim=-1) + m.hide(x).norm(dim=-1, keepdim=True),
    "cosine": lambda m, x: F.cosine_similarity(m.hide(x), m.side, dim=-1),
    "exp, softplus, erf": lambda m, x: m.hide(x).clamp(max=0).exp() + F.softplus(m.hide(x)) + m.hide(x).erf(),
    "other activations": lambda m, x: F.elu(m.hide(x)) + F.selu(m.hide(x)) + F.mish(m.hide(x)) + F.softsign(m.hide(x)),
    "Fourier": lambda m, x: torch.fft.fft2(m.hide(x)).real + torch.fft.fft(m.hide(x), norm="ortho").imag,
    "grouped convolution": lambda m, x: F.conv2d(
        m.hide(x).view(1, 4, 2, 3), m.side.view(4, 2, 3)[:, :1, :2, None], groups=4, padding="same"
    ),
    "convolution with holes": lambda m, x: F.conv2d(
        m.hide(x).view(1, 1, 4, 6), m.kernel[:, :1], m.side[0, :5], dilation=(2, 3), padding=(0, 2)
    ),
    "convolution of a line": lambda m, x: F.conv1d(m.hide(x).view(1, 4, 6), m.side.view(2, 4, 3), stride=2, padding=1),
    "convolution of the client's line": lambda m, x: F.conv1d(x.view(1, 4, 6), m.side.view(2, 4, 3), padding=1),
    "convolution of a film": lambda m, x: F.conv3d(
        m.hide(x).view(1, 2, 3, 2, 2), m.side.view(2, 1, 3, 2, 2), m.side[0, :2], (2, 1, 1), 1, (1, 2, 1), 2
    ),
    "convolution of the client's film": lambda m, x: F.conv3d(
        x.view(1, 1, 4, 2, 3), m.side.view(3, 1, 2, 2, 2), stride=(2, 2, 2)
    ),
    "transposed convolution without overlaps": lambda m, x: F.conv_transpose2d(
        m.hide(x).view(1, 2, 3, 4), m.side.view(2, 2, 2, 3), m.side[0, :2], stride=(2, 3)
    ),
    "transposed convolution": lambda m, x: F.conv_transpose2d(
        m.hide(x).view(1, 4, 2, 3), m.side.view(4, 1, 2, 3), m.side[0, :2], (3, 2), 1, (2, 0), 2, (2, 1)
    ),
    "transposed convolution of a line": lambda m, x: F.conv_transpose1d(
        m.hide(x).view(1, 4, 6), m.side.view(4, 2, 3), stride=2, padding=1
    ),
    "transposed convolution of the client's film": lambda m, x: F.conv_transpose3d(
        x.view(1, 2, 2, 3, 2), m.side.view(2, 1, 2, 3, 2), padding=(1, 0, 1)
    ),
    "batch norm": lambda m, x: F.batch_norm(m.hide(x), m.side[0], m.side[1].square() + 0.5, m.side[2], m.side[3]),
    "batch norm of a convolution": lambda m, x: F.batch_norm(
        F.conv2d(m.hide(x).view(1, 1, 4, 6), m.kernel[:, :1], m.side[0, :5]),
        m.side[1, :5],
        m.side[2, :5].square() + 0.5,
    ),
    "group norm": lambda m, x: F.group_norm(m.hide(x).view(1, 4, 6), 2, m.side[:, 0], m.side[:, 1]),
    "variance and deviation": lambda m, x: m.hide(x).var(-1) + m.hide(x).std(-1, correction=0),
    "largest of windows": lambda m, x: F.max_pool2d(m.hide(x).view(1, 1, 4, 6), 3, 2, padding=1),
    "mean of windows": lambda m, x: F.avg_pool2d(m.hide(x).view(1, 1, 4, 6), 3, 2, padding=1, ceil_mode=True),
    "mean of windows, padding aside": lambda m, x: F.avg_pool2d(
        m.hide(x).view(1, 1, 4, 6), (2, 3), padding=1, count_include_pad=False
    ),
    "resized": lambda m, x: (
        F.interpolate(m.hide(x).view(1, 1, 4, 6), scale_factor=2, mode="bilinear").view(8, 12)
        + F.interpolate(F.adaptive_avg_pool2d(m.hide(x).view(1, 1, 4, 6), 2), (8, 12), mode="nearest").view(8, 12)
    ),
    "numbers at a threshold": lambda m, x: torch.where(m.hide(x).relu() > 0, m.hide(x) + 3, m.side) * (m.side > 0),
    "bits of numbers and of counts": lambda m, x: (
        torch.where(m.hide(x).relu().bool(), m.hide(x), -1.0) + (m.hide(x) > 0.5).sum(-1, keepdim=True).bool() * m.side
    ),
    "the largest but for a mask": lambda m, x: m.hide(x).masked_fill(x > 0.7, -1e9).amax(-1) + m.side[:, 0],
    "powers of what is scaled": lambda m, x: (
        (m.hide(x) * 0.05) ** 3 * 8000 + (m.hide(x) - m.hide(x).mean(-1, True)) ** 4
    ),
    "softplus with a low threshold": lambda m, x: F.softplus(m.hide(x), 1.0, 0.5),
    "one number for a row": lambda m, x: F.linear(m.hide(x)[:, :1] * m.side[0], m.side),
    "counts at a threshold": lambda m, x: (
        ((m.hide(x) > 0).sum(-1) > 3) * 1.0 + (m.hide(x).argmax(-1) <= 2) * m.side[0, 0]
    ),
    "ends of a range at its ends": lambda m, x: (m.hide(x).clamp(0, 1) <= 0) * 1.0 + (m.hide(x).clamp(0, 1) >= 1) * 2.0,
    "a range whose ends are exchanged": lambda m, x: m.hide(x).clamp(0.5, -0.5) + m.side,
    "variance of all": lambda m, x: m.hide(x).var(unbiased=False) + m.hide(x).var(-1, False, True),
    "values repeated in one row": lambda m, x: m.hide(x).repeat_interleave(2),
    "the place of the largest of all": lambda m, x: m.hide(x).argmax(keepdim=True) + 0.5 * m.side[:1, :1],
    "norms by their defaults": lambda m, x: (
        F.linear(x, m.side / torch.linalg.norm(m.side)) + torch.norm(m.hide(x), keepdim=True)
    ),
    "written into": lambda m, x: F.silu(z := m.hide(x) + 0.0, inplace=True) + z,
    "written into through a dropout": lambda m, x: F.dropout(z := m.hide(x) + 0.0, 0.1, False).add_(m.side) + z,
    "written into after a dropout": lambda m, x: (F.dropout(z := m.hide(x) + 0.0, 0.1, False), z.add_(m.side))[0],
    "a root written into": lambda m, x: m.hide(x) / m.hide(x).norm(dim=-1, keepdim=True).add_(1.0),
    "a few of several products": lambda m, x: torch.bmm(
        m.hide(x)[None].expand(3, 4, 6), m.side.view(1, 6, 4) * m.side[0, :3, None, None]
    )[1:].mean(1),
    "a count and a fraction": lambda m, x: (m.hide(x) > 0).sum(-1, keepdim=True) + 0.3 + m.side.mean(),
    "attention of torch": lambda m, x: F.scaled_dot_product_attention(m.hide(x)[None], x[None], (x + m.side)[None]),
    "convolution": lambda m, x: F.conv2d(x.view(1, 1, 4, 6).expand(1, 3, 4, 6), m.kernel, stride=2, padding=(1, 0)),
    "convolution of a secret": lambda m, x: F.conv2d(m.hide(x).view(1, 1, 4, 6).expand(1, 3, 4, 6), m.kernel),
}


class Module(nn.Module):
    """Holds the parameters, so that they are the server's."""

    def __init__(self, name):
        super().__init__()
        self.weight, self.side, self.kernel = drawn(4, 6, seed=3), drawn(4, 6, seed=4), drawn(5, 3, 2, 2, seed=5)
        self.function = OPERATIONS[name]

    def hide(self, x):
        """A shared value: the client's times the server's."""
        return x * self.weight

    def forward(self, x):
        return {"y": self.function(self, x)}


@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_is_torch(name):
    generator = torch.Generator().manual_seed(0)
    batches = [{"x": torch.randn(4, 6, generator=generator)} for _ in range(3)]
    model = Module(name)
    compiled = compile(model, batches, "faithful")
    for batch in batches:
        case = Case.of(compiled, batch)
        with torch.no_grad():
            expected = model(**batch)["y"]
        for outputs in (case.clear(), run_beaver(case).outputs):
            got = compiled.decode(outputs)["y"]
            assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
            assert (got.float() - expected.float()).abs().max() < 2.0**-10 * max(
                1.0, float(expected.float().abs().max())
            )


def test_the_reach_of_a_maximum_does_not_depend_on_where_words_end():
    """Calibrated on a row whose last half is padding, asked with padding everywhere but at one place."""

    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64))

        def forward(self, x):
            scores = x * self.weight
            return {"largest": scores.amax(-1), "place": scores.argmax(-1)}

    padding = torch.full((1, 64), -200.0)
    long = torch.cat([torch.linspace(0.5, -0.5, 32)[None], padding[:, :32]], -1)
    compiled = compile(Largest(), [{"x": long}], "faithful")
    for place in (0, 1, 31, 32, 62, 63):
        short = padding.index_fill(1, torch.tensor(place), 0.5)
        case = Case.of(compiled, {"x": short})
        for outputs in (case.clear(), run_beaver(case).outputs):
            decoded = compiled.decode(outputs)
            assert abs(float(decoded["largest"]) - 0.5) < 2.0**-4
            assert int(decoded["place"]) == place
