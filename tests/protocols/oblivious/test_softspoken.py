"""Random transfers: r_c is r_0 or r_1 by the choice, at the stated price, and whoever deviates is found."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from blindformer.protocols.errors import CorrelationError, PeerProtocolError
from blindformer.protocols.oblivious.softspoken import (
    RandomTransfers,
    TransferReceiver,
    TransferSender,
    cost,
    setup_cost,
)
from blindformer.tests import levels
from blindformer.tests.shared.memory import MemoryChannel
from blindformer.tests.uniformity import ALARM, log_p_values, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .parties import DIRECTION, SESSION, both, ends, failing, set_up

DEPTHS = range(1, 9)
FAILS = r"^receiver: its oblivious transfers fail the check; end the session;"
BATCH = 65408  # transfers of the largest message


def bits_of(plane: Tensor, count: int) -> Tensor:
    return (plane[:, None] >> torch.arange(64) & 1).flatten()[:count]


def check(sender: TransferSender, receiver: TransferReceiver, count: int, width: int) -> None:
    """Ask for bits, if `width` is 0, or for numbers, and compare all."""
    if width:
        (r0, r1), (c, rc) = both(lambda: sender.numbers(count, width), lambda: receiver.numbers(count, width))
        assert r0.shape == r1.shape == rc.shape == (count,)
        limit = 1 << 8 * width - 1
        assert all(-limit <= x < limit for one in (r0, r1) for x in one.tolist())
    else:
        planes = both(lambda: sender.bits(count), lambda: receiver.bits(count))
        assert all(plane.shape == (-(-count // 64),) for pair in planes for plane in pair)
        (r0, r1), (_, rc) = [[bits_of(plane, count) for plane in pair] for pair in planes]
        c = planes[1][0]
    assert torch.equal(rc, torch.where(bits_of(c, count).bool(), r1, r0))


@pytest.mark.parametrize("depth", DEPTHS)
def test_each_result_is_that_of_the_choice(depth):
    channels = ends()
    parties = set_up(depth, channels)
    for count, width in ((700, 0), (700, 8), (1, 1)):
        check(*parties, count, width)


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 8)), min_size=1, max_size=4), st.sampled_from(DEPTHS))
@settings(max_examples=12, deadline=None)
def test_any_counts_follow_each_other(asked, depth):
    parties = set_up(depth)
    for count, width in asked:
        check(*parties, count, width)


@pytest.mark.parametrize("count", [BATCH - 1, BATCH, BATCH + 1])
def test_batches_join_without_a_seam(count):
    parties = set_up(4)
    check(*parties, count, 0)
    check(*parties, count, 3)


def test_choices_and_results_are_balanced_and_never_the_same_twice():
    sender, receiver = set_up(8)
    count = 1 << 15
    (r0, r1), (c, rc) = both(lambda: sender.numbers(count, 8), lambda: receiver.numbers(count, 8))
    assert len({*r0.tolist(), *r1.tolist()}) == 2 * count
    for plane in (c, r0, r1, rc):
        ones = bits_of(plane, 64 * len(plane)).sum().item()
        assert abs(ones - 32 * len(plane)) < 6 * (16 * len(plane)) ** 0.5
    (again, _), (other, _) = both(lambda: sender.numbers(count, 8), lambda: receiver.numbers(count, 8))
    assert not {*again.tolist()} & {*r0.tolist()}
    assert not torch.equal(other, c)


def test_no_two_messages_hash_rows_under_one_key_or_tweak():
    """Of both directions and another session of one name, too; and of few rows each (folding.py says why)."""
    used: list[tuple[bytes, int, int]] = []
    for direction in (DIRECTION, DIRECTION, "client to server"):
        channels = ends()
        parties = both(
            partial(RandomTransfers.sender, channels[0], SESSION, direction),
            partial(RandomTransfers.receiver, channels[1], SESSION, direction),
        )
        for party in parties:
            party.__class__ = type("Noting", (party.__class__,), {"noted": used, "_hashed": noted_hashes})
        for count, width in ((700, 0), (700, 8), (BATCH + 1, 0)):
            check(*parties, count, width)
    assert len(used) == 24  # both parties of 12 messages
    assert len({key for key, _, _ in used}) == len(set(used)) == 12
    assert max(rows for _, _, rows in used) <= 1 << 16


def noted_hashes(self, planes, offsets, first, key, width, outs) -> None:
    self.noted.append((key.numpy().tobytes(), first, 64 * planes.shape[1]))
    super(self.__class__, self)._hashed(planes, offsets, first, key, width, outs)


@pytest.mark.parametrize("depth", [1, 3, 8])
def test_the_price_is_what_a_channel_counts(depth):
    channels = ends()
    parties = set_up(depth, channels)
    price = setup_cost(depth)
    meter = channels[0].meter
    assert (meter.received, meter.sent) == (price.from_receiver, price.from_sender)
    for count, width in ((1, 0), (385, 2), (BATCH + 70, 0), (0, 8)):
        before = meter.snapshot()
        check(*parties, count, width)
        moved, price = meter.since(before), cost(count, depth)
        assert (moved.received, moved.sent, bool(moved.messages_received)) == (price[0], price[1], bool(price[2]))


@pytest.mark.parametrize("depth", [2, 8])
def test_levels_of_processors_understand_each_other(depth):
    """A receiver at each level, and a sender at the highest, have the same results."""
    for level in levels.EVERY:
        if not isinstance(level, str):
            continue
        sender, receiver = set_up(depth)
        with levels.at(level):
            c, rc = receiver.numbers(500, 8)  # its message waits in the channel
        r0, r1 = sender.numbers(500, 8)
        assert torch.equal(rc, torch.where(bits_of(c, 500).bool(), r1, r0)), level


def test_the_sender_receives_uniform_bytes_whatever_the_choices():
    """Corrections and the sum of the choices: each byte, and the differences of two calls."""
    seen: dict[str, list[bytes]] = {"sender": []}
    channels = ends(seen)
    sender, receiver = set_up(8, channels)
    seen["sender"].clear()
    plain = [both(lambda: sender.bits(60000), lambda: receiver.bits(60000))[1][0] for _ in range(2)]
    arrays = [torch.frombuffer(bytearray(m[: len(m) // 8 * 8]), dtype=torch.int64) for m in seen["sender"]]
    masked = [array[: len(c)] ^ c for array, c in zip(arrays, plain, strict=True)]  # c is no part of it, either
    tested = [*arrays, arrays[0] ^ arrays[1], *masked]
    assert min(log_p_values([sample(array, 8, xor=True) for array in tested])) > torch.tensor(ALARM / 100).log()


class Deviating(TransferReceiver):
    """Sends a correction of its second tree with one bit changed, and is honest about all that follows from it."""

    def _fold(self, size: int) -> tuple[int, Tensor, Tensor]:
        first, planes, totals = super()._fold(size)
        totals[1, 3] ^= 1 << 17
        return first, planes, totals


def test_a_receiver_that_deviates_is_found_unless_it_guesses_delta():
    """With trees of one level its lie meets one bit of Delta, and passes if that is zero."""
    passed: dict[int, bool] = {}
    while len(passed) < 2:
        sender, receiver = set_up(1)
        receiver.__class__ = Deviating
        receiver.bits(700)
        bit = -int(sender._masks[1])
        try:
            sender.bits(700)
        except PeerProtocolError:
            passed[bit] = False
        else:
            passed[bit] = True
    assert passed == {0: True, 1: False}


CORRECTIONS = cost(700).from_receiver - 48  # bytes of the message before the sums


@pytest.mark.parametrize("at", [0, CORRECTIONS - 1, CORRECTIONS, CORRECTIONS + 15, CORRECTIONS + 16, CORRECTIONS + 47])
def test_any_changed_bit_of_a_message_is_found(at):
    """Of corrections, of the sum of choices, of the hash of the other sums. Nothing more is given after it."""
    sender, receiver = set_up(8)
    receiver._channel.__class__ = Changing
    receiver._channel.at = at
    receiver.bits(700)
    with pytest.raises(PeerProtocolError, match=FAILS):
        sender.bits(700)
    with pytest.raises(CorrelationError, match="failed before; start a new session"):
        sender.bits(700)


class Changing(MemoryChannel):
    """A channel that changes one bit of what is sent, in the byte `at`."""

    at: int

    def send(self, data) -> None:
        changed = bytearray(data)
        changed[self.at] ^= 1
        super().send(changed)


@pytest.mark.parametrize(
    ("sender_asks", "receiver_asks"),
    [((700, 8), (701, 8)), ((700, 8), (700, 7)), ((700, 0), (700, 1))],
    ids=["count", "width", "kind"],
)
def test_parties_that_disagree_fail(sender_asks, receiver_asks):
    sender, receiver = set_up(8)
    with pytest.raises(PeerProtocolError, match=FAILS):
        both(partial(sender._run, *sender_asks), partial(receiver._run, *receiver_asks))


def test_parties_at_other_positions_fail():
    sender, receiver = set_up(8)
    receiver.bits(10)
    receiver.bits(10)
    sender._channel.recv(cost(10).from_receiver)
    with pytest.raises(PeerProtocolError, match=FAILS):
        sender.bits(10)


def test_a_message_of_another_size_is_refused_and_nothing_follows():
    sender, receiver = set_up(8)
    with pytest.raises(PeerProtocolError, match="receiver"):
        both(lambda: sender.bits(100), lambda: receiver.bits(5000))
    with pytest.raises(CorrelationError, match="failed before"):
        sender.bits(100)


@pytest.mark.parametrize("other", [{"session": b"another"}, {"direction": "client to server"}, {"depth": 4}], ids=str)
def test_set_ups_that_differ_fail(other):
    mine = {"session": SESSION, "direction": DIRECTION, "depth": 8}
    channels = ends()
    with pytest.raises(PeerProtocolError, match=r"^receiver: "):
        failing(
            channels,
            lambda channel: RandomTransfers.sender(channel, **mine),
            lambda channel: RandomTransfers.receiver(channel, **(mine | other)),
        )


def test_a_set_up_gives_no_more_than_its_streams_may():
    sender, _ = set_up(8)
    sender._used = (1 << 32) - 512
    with pytest.raises(CorrelationError, match="used up; start a new session"):
        sender.bits(1000)


def test_what_cannot_be_asked_for_is_refused_and_costs_nothing():
    sender, receiver = set_up(8)
    for party in (sender, receiver):
        for width in (-1, 0, 9):
            with pytest.raises(CorrelationError, match="choose 1 to 8"):
                party.numbers(5, width)
        with pytest.raises(CorrelationError, match="ask for 0 or more"):
            party.bits(-1)
    check(sender, receiver, 10, 8)


@pytest.mark.parametrize("depth", [0, 9])
def test_depths_are_one_to_eight(depth):
    with pytest.raises(CorrelationError, match="choose 1 to 8"):
        cost(10, depth)
