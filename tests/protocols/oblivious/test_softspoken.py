"""Correlated rows: both parties' differ by Delta where the choice is one, at the stated price, and lies are found."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from blindformer.protocols.errors import PeerProtocolError
from blindformer.protocols.oblivious import softspoken
from blindformer.protocols.oblivious.softspoken import Correlated, receive_rows, rows_cost, send_rows
from blindformer.tests import levels
from blindformer.tests.uniformity import ALARM, log_p_values, sample
from torch import Tensor

from .parties import DIRECTION, SESSION, Changing, Ends, both, ends, failing

FAILS = r"^receiver: its oblivious transfers fail the check; end the session;"
COUNT = 700
CORRECTIONS = 15 * 1024 // 8  # bytes, of rows that fill vectors up


def rows(count: int, channels: Ends | None = None) -> tuple[Correlated, Correlated]:
    to_receiver, to_sender = channels or ends()
    return both(
        lambda: send_rows(to_receiver, SESSION, DIRECTION, count),
        lambda: receive_rows(to_sender, SESSION, DIRECTION, count),
    )


def check(sender: Correlated, receiver: Correlated, count: int) -> None:
    assert sender.bound == receiver.bound
    assert sender.rows.shape == receiver.rows.shape == (count, 2)
    assert sender.delta[0] & 1
    assert not (sender.rows[:, 0] & 1).any()
    choices = receiver.rows[:, :1] & 1
    assert torch.equal(receiver.rows ^ sender.rows, choices * sender.delta)


@pytest.mark.parametrize("count", [1, 384, 385, 5000])
def test_rows_differ_by_delta_where_the_choice_is_one(count):
    check(*rows(count), count)


@pytest.mark.parametrize("level", levels.EVERY)
def test_each_level_of_processors_makes_such_rows(level):
    with levels.at(level):
        check(*rows(COUNT), COUNT)


def test_choices_and_rows_are_balanced_and_fresh():
    (sender, receiver), (again, other) = rows(5000), rows(5000)
    assert len({*map(tuple, sender.rows.tolist()), *map(tuple, again.rows.tolist())}) == 10000
    assert not torch.equal(sender.delta, again.delta)
    for one in (receiver.rows, other.rows):
        ones = (one[..., None] >> torch.arange(64) & 1).sum(0).flatten()
        assert (ones - 2500).abs().max() < 6 * 1250**0.5


@pytest.mark.parametrize("count", [1, COUNT, 74164])
def test_the_price_is_what_a_channel_counts(count):
    channels = ends()
    rows(count, channels)
    price, meter = rows_cost(count), channels[0].meter
    assert (meter.received, meter.sent) == (price.from_receiver, price.from_sender)


def test_the_sender_receives_uniform_bytes_whatever_the_choices():
    """Corrections and the sum of the choices: each byte, and the differences of two calls."""
    messages: list[Tensor] = []
    for _ in range(2):
        seen: dict[str, list[bytes]] = {"sender": []}
        _, receiver = rows(60000, ends(seen))
        message = seen["sender"][-1]
        array = torch.frombuffer(bytearray(message[: len(message) // 8 * 8]), dtype=torch.int64)
        bits = (receiver.rows[:59968, 0] & 1).view(-1, 64) << torch.arange(64)
        messages += [array, array[: len(bits)] ^ bits.sum(1)]  # choices are no part of it, either
    tested = [*messages, messages[0] ^ messages[2]]
    assert min(log_p_values([sample(array, 8, xor=True) for array in tested])) > torch.tensor(ALARM / 100).log()


@pytest.mark.parametrize("right", [True, False])
def test_a_receiver_that_deviates_is_found_unless_it_guesses_delta(right, monkeypatch):
    """It changes a correction of the second tree, and its sums as if it knew the second byte of Delta."""
    delta, folded = bytes(range(101, 117)), softspoken._folded
    guess = delta[1] if right else delta[1] ^ 4

    def deviating(leaves: list[Tensor], known: bool, words: int) -> tuple[Tensor, Tensor]:
        planes, totals = folded(leaves, known, words)
        if known:
            totals[1, 3] ^= 1 << 17
            for bit in range(8):
                planes[8 + bit, 3] ^= (guess >> bit & 1) << 17
        return planes, totals

    monkeypatch.setattr(softspoken, "secrets", SimpleNamespace(token_bytes=lambda size: delta))
    monkeypatch.setattr(softspoken, "_folded", deviating)
    if right:
        rows(COUNT)
    else:
        with pytest.raises(PeerProtocolError, match=FAILS):
            rows(COUNT)


@pytest.mark.parametrize("at", [0, CORRECTIONS - 1, CORRECTIONS, CORRECTIONS + 15, CORRECTIONS + 16, CORRECTIONS + 47])
def test_any_changed_bit_of_a_message_is_found(at):
    """Of corrections, of the sum of choices, of the hash of the other sums."""
    channels = ends()
    channels[1].__class__ = Changing
    channels[1].size, channels[1].at = CORRECTIONS + 48, at
    with pytest.raises(PeerProtocolError, match=FAILS):
        rows(COUNT, channels)


@pytest.mark.parametrize("other", [{"session": b"another"}, {"direction": "client to server"}, {"count": 701}], ids=str)
def test_set_ups_that_differ_fail(other):
    mine = {"session": SESSION, "direction": DIRECTION, "count": COUNT}
    with pytest.raises(PeerProtocolError, match=r"^receiver: "):
        failing(ends(), partial(send_rows, **mine), partial(receive_rows, **(mine | other)))
