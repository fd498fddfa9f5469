"""Modules drawn from pieces: each is torch's, or is refused in one line. None is wrong, and none ends in a traceback.

`pytest tests/models/lowering/test_modules.py --hypothesis-show-statistics` says how many were which.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from blindformer.errors import BlindformerError
from blindformer.models.compile import compile
from blindformer.models.loudness import AnswerOutOfRange, InputOutOfRange
from blindformer.tests.models.lowering.test_operations import drawn
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case
from hypothesis import event, given, reject
from hypothesis import strategies as st
from torch import nn

BETWEEN = {
    "twice": lambda m, h: h + h,
    "linear": lambda m, h: F.linear(h, m.square),
    "relu": lambda m, h: torch.relu(h),
    "tanh": lambda m, h: torch.tanh(h),
    "sigmoid": lambda m, h: torch.sigmoid(h),
    "square": lambda m, h: h * h,
    "absolute": lambda m, h: h.abs() - 0.5,
    "softmax": lambda m, h: 4 * torch.softmax(h, -1),
    "norm": lambda m, h: F.layer_norm(h, (6,)),
    "clipped": lambda m, h: h.clamp(-1, 0.7),
    "sums": lambda m, h: h.cumsum(-1) / 3,
    "gated": lambda m, h: torch.cat([F.glu(h), h[:, 3:]], -1),
    "pooled": lambda m, h: F.max_pool1d(h, 3, 1, 1),
    "flipped": lambda m, h: h.flip(0),
    "logarithm of softmax": lambda m, h: F.log_softmax(h, -1),
    "root": lambda m, h: (h.square() + 1) ** 0.5,
    "its largest": lambda m, h: h - h.amax(-1, keepdim=True),
}
PLACES = {  # of one of 4 rows for each of 6 columns
    "argmax": lambda m, h: h.argmax(0),
    "argmin": lambda m, h: h.argmin(0),
    "second": lambda m, h: h.topk(2, 0)[1][1],
    "a count": lambda m, h: (h > 0).sum(0),
    "a bit": lambda m, h: (h > 0)[0].long(),
    "a choice": lambda m, h: torch.where(h[0] > 0, h.argmax(0), 1),
    "of another": lambda m, h: torch.maximum(h.argmax(0), h.argmin(0)),
    "the client's": lambda m, h: m.client.argmax(0),
    "the server's": lambda m, h: m.side.argmax(0),
}
MOVED = {
    "as it is": lambda i: i,
    "less 1": lambda i: i - 1,
    "less 4": lambda i: i - 4,
    "less 5": lambda i: i - 5,
    "and 1": lambda i: i + 1,
    "negative": lambda i: -i,
    "twice": lambda i: 2 * i,
    "to the last": lambda i: (i + 1).clamp(max=3),
    "from the first": lambda i: (i - 1).clamp(min=0),
    "between": lambda i: (2 * i - 3).clamp(-4, 3),
    "the rest": lambda i: (i + 3) % 4,
    "half": lambda i: i // 2,
    "distance": lambda i: (i - 2).abs(),
}
READ = {
    "rows": lambda m, h, i: h[i],
    "a row": lambda m, h, i: h[i[0]],
    "own rows": lambda m, h, i: h.t()[torch.arange(6), i],
    "columns": lambda m, h, i: h[:, i],
    "gathered": lambda m, h, i: h.gather(0, i[None]),
    "along": lambda m, h, i: h.take_along_dim(i[None], 0),
    "a table's": lambda m, h, i: m.side[i],
    "embedded": lambda m, h, i: F.embedding(i, m.side),
    "one-hot": lambda m, h, i: F.one_hot(i, 4),
    "scattered": lambda m, h, i: h.scatter(0, i[None], 0.5),
    "selected": lambda m, h, i: h.index_select(0, i),
    "itself": lambda m, h, i: i,
    "compared": lambda m, h, i: i > 1,
    "equal": lambda m, h, i: i == 2,
}
REDUCED = {
    "not": lambda y: y,
    "sum": lambda y: y.sum(),
    "mean": lambda y: y.float().mean(),
    "largest": lambda y: y.amax(),
    "place": lambda y: y.float().argmax(),
    "any": lambda y: (y > 0).any(),
    "all": lambda y: (y > 0).all(-1),
    "bits": lambda y: (y > 0) ^ (y > 1),
    "small": lambda y: (y > 0).to(torch.int8),
    "norm": lambda y: y.float().norm(),
    "first": lambda y: y.flatten()[0],
    "product": lambda y: y.float().flatten() @ y.float().flatten(),
}
CHAIN = st.lists(st.sampled_from(sorted(BETWEEN)), max_size=2)
ANY = st.tuples(CHAIN, *(st.sampled_from(sorted(pieces)) for pieces in (PLACES, MOVED, READ, REDUCED)))
INPUTS = [torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]


class Drawn(nn.Module):
    def __init__(self, pieces):
        super().__init__()
        self.weight, self.side, self.square = drawn(4, 6, seed=3), drawn(4, 6, seed=4), drawn(6, 6, seed=5)
        self.pieces, self.noise = pieces, None

    def forward(self, x):
        between, place, moved, read, reduced = self.pieces
        self.client, h = x, x * self.weight
        for name in between:
            h = BETWEEN[name](self, h)
        h = self.moved(h)
        places = MOVED[moved](PLACES[place](self, h))
        return {"y": REDUCED[reduced](self.moved(READ[read](self, h, places)))}

    def moved(self, h):
        """By a little, of which torch's own answer must not depend."""
        if self.noise is None or not h.is_floating_point():
            return h
        return h + 2.0**-9 * torch.randn(h.shape, generator=self.noise)


def alike(ours, theirs):
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        return False
    ours, theirs = ours.double(), theirs.double()
    return bool((ours - theirs).abs().max() < 2.0**-6 * max(1.0, float(theirs.abs().max())))


def outcome(pieces, beaver):
    """right, refused, wrong; or "unsteady", where torch's own answer jumps if what is read moves by a little."""
    model = Drawn(pieces)
    try:
        compiled = compile(model, [{"x": x} for x in INPUTS], "faithful")
    except BlindformerError as error:
        return "wrong" if "\n" in str(error) else "refused"
    for x in INPUTS[3:]:
        case = Case.of(compiled, {"x": x})
        with torch.no_grad():
            model.noise = None
            expected = model(x)["y"]
            model.noise = torch.Generator().manual_seed(0)
            if not all(alike(model(x)["y"], expected) for _ in range(24)):
                return "unsteady"
        answers = [case.clear(), *([run_beaver(case).outputs] if beaver else [])]
        try:
            if not all(alike(compiled.decode(answer)["y"], expected) for answer in answers):
                return "wrong"
        except AnswerOutOfRange:
            return "refused"
    return "right"


@given(ANY, st.booleans())
def test_a_module_is_torchs_or_refused(pieces, beaver):
    what = outcome(pieces, beaver)
    event(what)
    if what == "unsteady":
        reject()
    assert what != "wrong", pieces


@given(CHAIN, st.floats(0.75, 16))
def test_an_input_of_any_loudness_is_answered_right_or_refused(between, factor):
    model = Drawn((between, "argmax", "as it is", "rows", "not"))
    model.forward = lambda x: {"y": chained(model, between, x)}
    compiled = compile(model, [{"x": x} for x in INPUTS[:4]], "faithful")
    x = INPUTS[0] * factor  # whose levels are calibration's, or less
    case = None
    with suppress(InputOutOfRange):
        case = Case.of(compiled, {"x": x})
    event("refused" if case is None else "answered")
    ((_, _, most),) = compiled.levels.values()
    assert case is not None or factor > most
    assert case is None or factor < 1.33 * most
    with torch.no_grad():
        try:
            assert case is None or alike(compiled.decode(case.clear())["y"], model(x)["y"])
        except AnswerOutOfRange:
            event("its answer refused")


def chained(model, between, x):
    h = x * model.weight
    for name in between:
        h = BETWEEN[name](model, h)
    return h


@pytest.mark.parametrize("value", [torch.tensor(True), torch.tensor(3), torch.tensor(2.5)])
def test_what_is_alike_has_one_type(value):
    assert alike(value, value)
    assert not alike(value, value.to(torch.float64))
