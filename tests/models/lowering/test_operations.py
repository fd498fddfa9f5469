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


OPERATIONS = {
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
    "shapes": lambda m, x: (
        torch.cat([m.hide(x).t()[::2], x.flatten().view(6, 4)[1:2]], 0).unsqueeze(0).expand(2, -1, -1)
    ),
    "split and stack": lambda m, x: torch.stack(m.hide(x).split([1, 2, 3], -1)[1:2] + m.hide(x).chunk(3, -1)[:2]),
    "select and index": lambda m, x: m.hide(x)[1] + m.hide(x)[:, torch.tensor([5, 0, 0, 2, 1, 1])][0],
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
            assert got.shape == expected.shape
            assert (got - expected).abs().max() < 2.0**-10 * max(1.0, float(expected.abs().max()))


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
            found = compiled.decode(outputs)
            assert abs(float(found["largest"]) - 0.5) < 2.0**-4
            assert int(found["place"]) == place
