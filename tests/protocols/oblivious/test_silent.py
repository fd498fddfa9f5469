"""Random transfers: r_c is r_0 or r_1 by the choice, at the stated price, and whoever deviates is found."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from blindformer.protocols.errors import CorrelationError, PeerError, PeerProtocolError
from blindformer.protocols.oblivious import silent
from blindformer.protocols.oblivious.silent import (
    BATCH_WORDS,
    HASH_BYTES,
    MESSAGE_BYTES,
    SUM_BYTES,
    TransferReceiver,
    TransferSender,
    cost,
    setup_cost,
    words_of,
)
from blindformer.tests import levels
from blindformer.tests.uniformity import ALARM, log_p_values, sample
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from .parties import Changing, both, ends, failing, set_up

FAILS = r"^sender: its oblivious transfers fail the check; end the session;"
AGAIN = "failed before; start a new session"
BATCH = 64 * BATCH_WORDS  # transfers
Parties = tuple[TransferSender, TransferReceiver]


@pytest.fixture(scope="module")
def parties() -> Parties:
    """Whatever the tests before have left of a batch."""
    return set_up()


def bits_of(plane: Tensor, count: int) -> Tensor:
    return (plane[:, None] >> torch.arange(64) & 1).flatten()[:count]


def check(parties: Parties, count: int, width: int) -> list[tuple[Tensor, Tensor]]:
    """Ask for bits, if `width` is 0, or for numbers, and compare all."""
    sender, receiver = parties
    if width:
        (r0, r1), (c, rc) = got = both(lambda: sender.numbers(count, width), lambda: receiver.numbers(count, width))
        assert r0.shape == r1.shape == rc.shape == (count,)
        limit = 1 << 8 * width - 1
        assert all(-limit <= int(x) < limit for one in (r0, r1) if count for x in one.aminmax())
    else:
        got = both(lambda: sender.bits(count), lambda: receiver.bits(count))
        assert all(plane.shape == (words_of(count),) for pair in got for plane in pair)
        (r0, r1), (_, rc) = [[bits_of(plane, count) for plane in pair] for pair in got]
        c = got[1][0]
    assert torch.equal(rc, torch.where(bits_of(c, count).bool(), r1, r0))
    return list(got)


@given(asked=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 8)), min_size=1, max_size=4))
@settings(max_examples=12, deadline=None)
def test_each_result_is_that_of_the_choice_whatever_counts_follow_each_other(parties, asked):
    for count, width in asked:
        check(parties, count, width)


@pytest.mark.parametrize("level", levels.OWN_AND_TORCH)
def test_batches_join_without_a_seam(level):
    parties = set_up()
    with levels.at(level):
        for count, width in ((BATCH - 100, 0), (200, 8), (BATCH + 1, 0)):
            check(parties, count, width)


def test_choices_and_results_are_balanced_and_never_the_same_twice(parties):
    count = 1 << 15
    (r0, r1), (c, rc) = check(parties, count, 8)
    assert len({*r0.tolist(), *r1.tolist()}) == 2 * count
    for plane in (c, r0, r1, rc):
        ones = bits_of(plane, 64 * len(plane)).sum().item()
        assert abs(ones - 32 * len(plane)) < 6 * (16 * len(plane)) ** 0.5
    (again, _), (other, _) = check(parties, count, 8)
    assert not {*again.tolist()} & {*r0.tolist()}
    assert not torch.equal(other, c)


def test_a_row_is_hashed_once_and_few_under_one_key(monkeypatch):
    """By both parties, and the sender's second result apart (folding.py says why)."""
    hashed: Counter[tuple[bytes, int]] = Counter()
    hash_rows = silent.hash_rows

    def noted(rows, offset, first, key, width, out):
        hashed.update((key.numpy().tobytes(), number) for number in range(first, first + len(rows), 64))
        return hash_rows(rows, offset, first, key, width, out)

    monkeypatch.setattr(silent, "hash_rows", noted)
    parties = set_up()
    for count, width in ((700, 0), (700, 8), (BATCH + 1, 0)):
        check(parties, count, width)
    assert len(hashed) == 2 * 11 + BATCH_WORDS + 1
    assert {*hashed.values()} == {3}
    assert max(Counter(key for key, _ in hashed).values()) <= 1 << 10


def test_no_seed_serves_two_batches():
    sender, receiver = set_up()
    seen: list[tuple[int, ...]] = [*map(tuple, sender._seeds.tolist())]
    for _ in range(2):
        check((sender, receiver), BATCH, 0)
        seen += map(tuple, sender._seeds.tolist())
    assert len({*seen}) == len(seen)


def test_the_price_is_what_a_channel_counts():
    channels = ends()
    parties, used = set_up(channels), 0
    price, meter = setup_cost(), channels[0].meter
    assert (meter.received, meter.sent) == (price.from_receiver, price.from_sender)
    for count, width in ((0, 8), (1, 0), (385, 2), (2 * BATCH, 0), (0, 0), (BATCH - 512, 0), (1, 0)):
        before = meter.snapshot()
        check(parties, count, width)
        moved, price = meter.since(before), cost(count, used)
        assert (moved.received, moved.sent, bool(moved.messages_received)) == (price[0], price[1], bool(price[2]))
        used += words_of(count)


def test_what_travels_is_uniform_and_of_sizes_that_follow_from_counts():
    """The sender gets a masked sum; the receiver sums of trees under seeds, and a hash. No message comes twice."""
    seen: dict[str, list[bytes]] = {"sender": [], "receiver": []}
    parties = set_up(ends(seen))
    for frames in seen.values():
        frames.clear()
    for _ in range(4):
        check(parties, BATCH, 0)
    assert [len(frame) for frame in seen["sender"]] == [SUM_BYTES] * 4
    assert [len(frame) for frame in seen["receiver"]] == [MESSAGE_BYTES, HASH_BYTES] * 4
    ones = sum(int.from_bytes(frame).bit_count() for frame in seen["sender"])
    assert abs(ones - 256) < 6 * 128**0.5
    arrays = [torch.frombuffer(bytearray(frame), dtype=torch.int64) for frame in seen["receiver"][::2]]
    tested = [*arrays, *(x ^ y for x, y in pairwise(arrays))]
    assert min(log_p_values([sample(array, 8, xor=True) for array in tested])) > torch.tensor(ALARM / 100).log()
    assert len({*seen["sender"], *seen["receiver"]}) == 12


class Deviating(TransferSender):
    """Sends a wrong sum of the last level of tree 7, so two leaves are wrong: the one that the receiver misses, and its
    sibling. It takes them to be at `guess`, and is honest about all that follows from it."""

    guess: int

    def _grow(self, seeds: Tensor, key: Tensor) -> None:
        error, errors = torch.tensor([1 << 17, 5]), torch.zeros(silent.TREES, 1 << silent.DEPTH, 2, dtype=torch.int64)
        errors[7, [self.guess, self.guess ^ 1 << silent.DEPTH - 1]] = error
        wrong = seeds.clone()
        wrong[7, -1] ^= error
        super()._grow(wrong, key)
        self._sum ^= silent._leaves_sum(errors, *self.factors)
        self._rows ^= errors.view(-1, 2)

    def _sent(self, message: Tensor) -> tuple[Tensor, Tensor]:
        self.factors = super()._sent(message)
        return self.factors


@pytest.mark.parametrize("right", [True, False])
def test_a_sender_that_deviates_is_found_unless_it_guesses_where_the_noise_is(right):
    sender, receiver = set_up()
    seeds = receiver._seeds[-silent.TREES * silent.DEPTH :].view(silent.TREES, silent.DEPTH, 2)
    place = int(((~seeds[7, :, 0] & 1) << torch.arange(silent.DEPTH)).sum())
    sender.__class__ = Deviating
    sender.guess = place if right else place ^ 1
    if right:
        check((sender, receiver), 700, 8)
        return
    with pytest.raises(PeerProtocolError, match=FAILS):
        check((sender, receiver), 700, 8)


@pytest.mark.parametrize(
    ("liar", "size", "at"),
    [
        *(("sender", MESSAGE_BYTES, at) for at in (0, 8, MESSAGE_BYTES // 2, MESSAGE_BYTES - 1)),
        *(("sender", HASH_BYTES, at) for at in (0, HASH_BYTES - 1)),
        *(("receiver", SUM_BYTES, at) for at in (0, SUM_BYTES - 1)),
    ],
)
def test_any_changed_bit_of_a_message_is_found_and_nothing_follows(liar, size, at):
    """Of sums of trees, of the hash; and of the receiver's masked sum, which spoils its own check."""
    channels = ends()
    sender, receiver = set_up(channels)
    changing = channels[0 if liar == "sender" else 1]
    changing.__class__ = Changing
    changing.size, changing.at = size, at
    with pytest.raises(PeerProtocolError, match=FAILS):
        both(lambda: sender.bits(BATCH + 700), lambda: receiver.bits(BATCH + 700))
    sent = channels[1].meter.sent
    for ask in (lambda: receiver.bits(1), lambda: receiver.numbers(1, 8)):
        with pytest.raises(CorrelationError, match=AGAIN):
            ask()
    assert channels[1].meter.sent == sent


@pytest.mark.parametrize(
    ("sender_asks", "receiver_asks"),
    [((700, 8), (701, 8)), ((700, 8), (700, 7)), ((700, 0), (700, 1))],
    ids=["count", "width", "kind"],
)
def test_parties_that_have_disagreed_fail_with_the_next_batch(sender_asks, receiver_asks):
    sender, receiver = set_up()
    check((sender, receiver), 1, 0)
    sender._run(*sender_asks)
    receiver._run(*receiver_asks)
    with pytest.raises(PeerProtocolError, match=FAILS):
        both(lambda: sender.bits(BATCH), lambda: receiver.bits(BATCH))


@pytest.mark.parametrize("size", [0, MESSAGE_BYTES - 1, MESSAGE_BYTES + 16])
def test_a_message_of_another_size_is_refused_and_nothing_follows(size):
    channels = ends()
    _, receiver = set_up(channels)

    def send(channel):
        with suppress(PeerError):  # the receiver may have hung up in the midst
            channel.send(bytes(size))

    with pytest.raises(PeerProtocolError, match=f"^sender: sent a frame of {size} bytes"):
        failing(channels, send, lambda channel: receiver.bits(100))
    with pytest.raises(CorrelationError, match=AGAIN):
        receiver.bits(100)


def test_a_set_up_gives_no_more_than_it_may(parties):
    sender, used = parties[0], parties[0]._used
    sender._used = (1 << 26) - 15
    with pytest.raises(CorrelationError, match="used up; start a new session"):
        sender.bits(1000)
    sender._used = used


def test_what_cannot_be_asked_for_is_refused_and_costs_nothing(parties):
    for party in parties:
        for width in (-1, 0, 9):
            with pytest.raises(CorrelationError, match="choose 1 to 8"):
                party.numbers(5, width)
        with pytest.raises(CorrelationError, match="ask for 0 or more"):
            party.bits(-1)
    check(parties, 10, 8)
