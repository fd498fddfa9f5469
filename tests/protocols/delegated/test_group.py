"""The client's side of a group: no product wraps whatever comes, each row is checked, and rho is its own."""

from __future__ import annotations

import math

import pytest
import torch
from blindformer.protocols.delegated import group as module
from blindformer.protocols.delegated.group import ClientGroup, GroupError, MaskedRows, largest_norm
from blindformer.tests import levels
from torch import Tensor

OUTPUTS, INPUTS = 24, 40
ROWS = {
    "usual": torch.randn(INPUTS),
    "zeros": torch.zeros(INPUTS),
    "one number": torch.eye(INPUTS)[3],
    "large": torch.full((INPUTS,), 3e19),
    "largest": torch.full((INPUTS,), torch.finfo(torch.float32).max),
    "denormal": torch.full((INPUTS,), 1e-42),
    "least": torch.full((INPUTS,), 1e-45),
    "of all sizes": torch.logspace(-40, 38, INPUTS),
}
BAD = {"infinite": math.inf, "negative": -math.inf, "no number": math.nan}


def product(q: Tensor, weight: Tensor) -> Tensor:
    return q.to(torch.int64) @ weight.to(torch.int64).t()


@pytest.fixture
def integers() -> Tensor:
    torch.manual_seed(0)
    drawn = torch.randint(-8000, 8001, (OUTPUTS, INPUTS)).to(torch.int16)
    drawn[3], drawn[4], drawn[5, 1:] = 2**15 - 1, -(2**15) + 1, 0
    return drawn


def opened(group: ClientGroup, sent: MaskedRows, product: torch.Tensor) -> torch.Tensor | None:
    """From a product without the dealer's s."""
    values = torch.empty(product.shape)
    return values if group.open(sent, product, torch.zeros_like(product), values) else None


@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
@pytest.mark.parametrize("name", ROWS)
def test_no_product_wraps_and_the_answer_is_the_layers(integers, level, name):
    """The rows that lean towards one row of weights are those that would wrap first."""
    x = torch.stack([ROWS[name], -ROWS[name], ROWS[name] * integers[3].sign(), integers[3].float() * 1e-3])
    group = ClientGroup(integers, torch.ones(OUTPUTS))
    with levels.at(level):
        sent = group.mask(x, torch.zeros(len(x), INPUTS, dtype=torch.int32))
        exact = product(sent.q, integers)
        assert exact.abs().max() < 2**31
        answer = opened(group, sent, exact.to(torch.int32))
    assert answer is not None
    wanted = x.double() @ integers.double().t()
    rounded = sent.step[:, None] * INPUTS**0.5 / 2 * integers.double().norm(dim=1)
    near = (answer.double() - wanted).abs() <= 1.001 * rounded + 1e-6 * wanted.abs() + 1e-44
    assert near[wanted.abs() < 3e38].all()


@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
@pytest.mark.parametrize("name", BAD)
def test_a_row_that_is_no_number_is_sent_as_zeros_and_answered_as_none(integers, level, name):
    x = torch.randn(3, INPUTS)
    x[1, 7] = BAD[name]
    r = torch.randint(-(2**31), 2**31, x.shape).to(torch.int32)
    group = ClientGroup(integers, torch.ones(OUTPUTS))
    with levels.at(level):
        sent = group.mask(x, r)
        assert not sent.q[1].any()
        assert torch.equal(sent.masked[1], -r[1])
        answer = opened(group, sent, product(sent.q, integers).to(torch.int32))
    assert answer is not None
    assert answer[1].isnan().all()
    assert answer[[0, 2]].isfinite().all()


def test_a_norm_is_exact_where_float32_overflows_and_where_it_rounds():
    assert largest_norm(torch.full((2, 10**6), 2**15 - 1, dtype=torch.int16)) == (2**15 - 1) * 1000
    assert largest_norm(torch.full((1, 3), -(2**15), dtype=torch.int16)) == 2**15 * math.sqrt(3)
    assert largest_norm(torch.zeros(5, 7, dtype=torch.int16)) == 1.0
    few = torch.zeros(3000, 4, dtype=torch.int16)
    few[2999, 1] = -77  # in the last piece
    assert largest_norm(few) == 77


@pytest.mark.parametrize(("inputs", "fits"), [(60_000, True), (65_600, False)])
def test_a_group_whose_bound_cannot_hold_is_refused(inputs, fits):
    """One unit in every input already takes the ring."""
    integers = torch.full((2, inputs), 2**15 - 1, dtype=torch.int16)
    if fits:
        group = ClientGroup(integers, torch.ones(2))
        sent = group.mask(torch.rand(2, inputs), torch.zeros(2, inputs, dtype=torch.int32))
        assert product(sent.q, integers).abs().max() < 2**31
    else:
        with pytest.raises(GroupError, match=rf"layer: {inputs} inputs and weights of so many bits do not fit"):
            ClientGroup(integers, torch.ones(2))


def test_more_inputs_than_sums_of_squares_have_room_for_are_refused():
    with pytest.raises(GroupError, match=r"layer: \d+ inputs"):
        ClientGroup(torch.zeros(1, 2**22 + 1, dtype=torch.int8), torch.ones(1))


def test_rho_comes_from_the_systems_randomness_and_nothing_else(integers, monkeypatch):
    """Not from torch's generator, whose seed others may know, and another one for each group and process."""
    torch.manual_seed(1)
    one = ClientGroup(integers, torch.ones(OUTPUTS))
    torch.manual_seed(1)
    other = ClientGroup(integers, torch.ones(OUTPUTS))
    assert not (one._rho == other._rho).any()
    asked: list[int] = []

    def bytes_of(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count % 256)) + bytes(count - count % 256)

    monkeypatch.setattr(module.secrets, "token_bytes", bytes_of)
    ClientGroup(integers, torch.ones(OUTPUTS))
    assert asked == [2 * 8 * OUTPUTS]


def test_norm_and_check_are_of_the_clients_own_pass_over_the_weights(integers):
    """Nothing else goes in: no norm, no rho, no u of a dealer."""
    import inspect

    assert list(inspect.signature(ClientGroup).parameters) == ["integers", "scale", "ring"]
    group = ClientGroup(integers, torch.ones(OUTPUTS))
    assert group.largest_norm == largest_norm(integers)
    wanted = group._rho.numpy().astype(object) @ integers.numpy().astype(object)
    assert [[n % 2**64 for n in row] for row in wanted.tolist()] == [
        [n % 2**64 for n in row] for row in group._u.tolist()
    ]


def test_whoever_knew_rho_could_lie(integers):
    """Why it is secret: an error that both rho miss passes."""
    group = ClientGroup(integers, torch.ones(OUTPUTS))
    sent = group.mask(torch.randn(2, INPUTS), torch.zeros(2, INPUTS, dtype=torch.int32))
    y = product(sent.q, integers).to(torch.int32)
    assert opened(group, sent, y) is not None
    group._rho[:, 0] = group._rho[:, 1]
    lie = y.clone()
    lie[0, 0] += 5
    lie[0, 1] -= 5
    group._u = torch.from_numpy(group._rho.numpy() @ integers.numpy().astype("int64"))
    assert opened(group, sent, y) is not None
    assert opened(group, sent, lie) is not None


@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
def test_each_row_is_checked_by_itself(integers, level):
    """Errors of two rows that cancel in their sum, and two rows that are swapped."""
    group = ClientGroup(integers, torch.ones(OUTPUTS))
    with levels.at(level):
        sent = group.mask(torch.randn(4, INPUTS), torch.zeros(4, INPUTS, dtype=torch.int32))
        y = product(sent.q, integers).to(torch.int32)
        assert opened(group, sent, y) is not None
        for place in range(OUTPUTS):
            lie = y.clone()
            lie[1, place] += 1 << place
            lie[2, place] -= 1 << place
            assert opened(group, sent, lie) is None
        assert opened(group, sent, y[[1, 0, 2, 3]]) is None
