"""Lies of a server or a dealer end the pass before anything else is sent, whatever they are; honest runs never do."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from blindformer.parties.session import delegated_client
from blindformer.parties.session.delegation import MANY
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.delegated.arithmetic import pack_ring, unpack_ring
from blindformer.protocols.errors import PeerDeviated
from blindformer.tests.parties.session.delegated_site import WIDE, DelegatedSite, Lying
from torch import Tensor

ROWS = 4
CALLS = 3


@pytest.fixture(params=RINGS)
def site(monkeypatch, request) -> Iterator[DelegatedSite]:
    """Its corrections are dealt for one pass at a time, so the dealer's frames are those of calls."""
    monkeypatch.setattr(delegated_client, "BLOCK_RUNS", 1)
    site = DelegatedSite(plan=request.param)
    yield site
    site.close()


def bit(y: Tensor, before: Tensor) -> None:
    y[1, 3] ^= 1


def high_bit(y: Tensor, before: Tensor) -> None:
    y[-1, -1] ^= -(2**23)  # and those above it, where there are any


def one_more(y: Tensor, before: Tensor) -> None:
    y[0, 0] += 1


def all_by_one(y: Tensor, before: Tensor) -> None:
    y += 1


def rows_swapped(y: Tensor, before: Tensor) -> None:
    y[[0, 1]] = y[[1, 0]].clone()


def cancelling(y: Tensor, before: Tensor) -> None:
    """The sum of all rows stays."""
    y[0, 5] += 1 << 16
    y[2, 5] -= 1 << 16


def cancelling_in_a_row(y: Tensor, before: Tensor) -> None:
    y[1, 2] += 77
    y[1, 3] -= 77


def zeros(y: Tensor, before: Tensor) -> None:
    y[:] = 0


def replayed(y: Tensor, before: Tensor) -> None:
    y[:] = before


def columns_swapped(y: Tensor, before: Tensor) -> None:
    y[:, :2] = y[:, :2].flip(1).clone()


LIES = [bit, high_bit, one_more, all_by_one, rows_swapped, cancelling, cancelling_in_a_row, zeros, replayed]
LIES += [columns_swapped]


def lying(site: DelegatedSite, role: str, lie: Any, at: int) -> None:
    """This role tells the truth in the first pass, and lies in call `at` of the second."""
    sent: list[Tensor] = []
    ring = site.model.manifest.ring

    def change(number: int, frame: bytearray) -> None:
        y = unpack_ring(frame, (ROWS, 8 * len(frame) // ring // ROWS), ring).clone()
        sent.append(y.clone())
        if number == CALLS + at:
            lie(y, sent[at])
            frame[:] = pack_ring(y, ring)

    def wrapped(me: str, peer: str, end: Any) -> Any:
        return Lying(end, change) if me == role and (peer == "client") == (role == "server") else end

    site.wrapped = wrapped


@pytest.mark.parametrize("at", range(CALLS))
@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("role", ["server", "dealer"])
def test_a_lie_is_found_before_another_message(site, role, lie, at):
    """In any call, the last one of a pass included: so no generation goes on from an answer that was not checked."""
    lying(site, role, lie, at)
    client = site.client()
    site.ask(client)
    before = len(site.received["server", "client"])
    with pytest.raises(PeerDeviated, match=r"the server or the dealer has sent a wrong product") as caught:
        site.runner.run(client, site.module, torch.randn(1, ROWS, WIDE))
    assert "\n" not in str(caught.value)
    assert not client.open
    site.ended()
    after = site.received["server", "client"][before:]
    assert after[0].startswith(b'{"query"')
    assert len(after) == 1 + at + 1  # the query, and the inputs up to the lie


@pytest.mark.parametrize("at", range(2 * CALLS))
def test_a_lie_about_either_half_of_many_rows_is_found_before_the_next_call(site, at):
    def change(number: int, frame: bytearray) -> None:
        if number == at:
            frame[-1] ^= 1

    site.wrapped = lambda me, peer, end: Lying(end, change) if (me, peer) == ("server", "client") else end
    client = site.client()
    with pytest.raises(PeerDeviated, match=r"the server or the dealer has sent a wrong product"):
        site.runner.run(client, site.module, torch.randn(1, MANY + 3, WIDE))
    assert not client.open
    site.ended()
    call = at // 2
    assert 2 * call < len(site.frames("server", "client")) <= 2 * (call + 1)


def other_weight(integers: list[Tensor]) -> None:
    integers[1][3, 4] += 1


def rows_of_weights_swapped(integers: list[Tensor]) -> None:
    integers[0][[2, 5]] = integers[0][[5, 2]].clone()


def other_model(integers: list[Tensor]) -> None:
    for matrix in integers:
        matrix.copy_(matrix.flip(0))


@pytest.mark.parametrize("change", [other_weight, rows_of_weights_swapped, other_model])
@pytest.mark.parametrize("roles", [("server",), ("dealer",), ("server", "dealer")], ids=" and ".join)
def test_other_weights_are_found_whoever_has_them(site, change, roles):
    """If both have the same ones, too: these are not the weights whose check the client holds."""
    for role in roles:
        site.with_weights(role, change)
    with pytest.raises(PeerDeviated, match="or computes with other weights; nothing more was sent"):
        site.ask(site.client())
    site.ended()


@pytest.mark.usefixtures("site")
def test_a_client_does_not_say_who_of_the_two_has_lied():
    """It cannot know, and asks nobody to reveal a mask to find out."""
    errors = set()
    for role in ("server", "dealer"):
        one = DelegatedSite()
        lying(one, role, bit, 0)
        client = one.client()
        one.ask(client)
        with pytest.raises(PeerDeviated) as caught:
            one.ask(client)
        errors.add(str(caught.value))
        one.ended()
        one.close()
    assert len(errors) == 1


@pytest.mark.usefixtures("site")
def test_a_lie_tells_the_liar_nothing_of_the_text():
    """Whether it is found does not depend on the answer: the same lie is found for each text, and at the same place."""
    sizes = []
    for text in (torch.zeros(1, ROWS, WIDE), torch.full((1, ROWS, WIDE), 1e20), torch.randn(1, ROWS, WIDE) * 1e-30):
        one = DelegatedSite()
        lying(one, "server", high_bit, 1)
        client = one.client()
        one.ask(client)
        with pytest.raises(PeerDeviated):
            one.runner.run(client, one.module, text)
        one.ended()
        sizes.append([len(payload) for payload in one.received["server", "client"]])
        one.close()
    assert all(one == other for one, other in pairwise(sizes))


def test_honest_runs_are_never_accused(site):
    """Of texts, zeros, numbers at the edges of float32, and rows that are none."""
    torch.manual_seed(0)
    client = site.client()
    for number in range(120):
        x = torch.randn(1, 1 + number % 5, WIDE) * 10.0 ** float(torch.randint(-44, 38, ()))
        if number % 7 == 0:
            x[0, 0, number % WIDE] = [torch.inf, torch.nan, 0.0, 3e38][number // 7 % 4]
        site.runner.run(client, site.module, x)
    client.close()
    assert site.ended() == []
