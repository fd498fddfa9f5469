"""Masks: reproducible by label, independent across labels, used once. Corrections: as declared, or not at all."""

from __future__ import annotations

import hmac
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from blindformer.protocols.beaver.source import FRAME, PIECE, Corrections, DealerSource, frames, paced
from blindformer.protocols.beaver.values import Tape
from blindformer.protocols.errors import CorrelationError, PeerProtocolError
from blindformer.protocols.streams import Stream, derive, new_seed
from blindformer.protocols.wire import held_in
from blindformer.tests.shared.memory import memory_pair
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

SEED = bytes(range(32))


def test_the_same_label_gives_the_same_masks_whatever_was_drawn_before():
    first, second = Stream(SEED, "query 0"), Stream(SEED, "query 0")
    first.integers("other", (50,))
    assert torch.equal(first.integers("3/open", (4, 5)), second.integers("3/open", (4, 5)))
    assert torch.equal(first.integers("3/open", (20,)), second.integers("3/open", (4, 5)).flatten())


def test_a_stream_is_aes_in_counter_mode_from_a_secret_counter():
    """Known answers, block by block, of HMAC and AES alone: HKDF's two steps (RFC 5869), then AES of IV + 0, 1, .."""
    key = hmac.digest(b"blindformer", SEED, "sha256")
    key = hmac.digest(key, b"query 0\x01", "sha256")
    key_and_counter = hmac.digest(key, b"3/open\x01", "sha256")
    block, first = (
        Cipher(algorithms.AES(key_and_counter[:16]), modes.ECB()).encryptor(),
        int.from_bytes(key_and_counter[16:], "big"),
    )
    blocks = [block.update(((first + i) % (1 << 128)).to_bytes(16, "big")) for i in range(300)]
    assert Stream(SEED, "query 0").integers("3/open", (600,)).numpy().tobytes() == b"".join(blocks)


def test_a_counter_that_passes_its_end_goes_on_from_zero():
    """As `cryptography` has it: an IV may be any of 2^128."""
    key, end = bytes(range(16)), (1 << 128) - 1
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = [block.update(value.to_bytes(16, "big")) for value in (end, 0, 1)]
    assert Cipher(algorithms.AES(key), modes.CTR(end.to_bytes(16, "big"))).encryptor().update(bytes(48)) == b"".join(
        blocks
    )


def test_different_labels_purposes_and_seeds_are_independent():
    draws = [
        stream.integers(label, (1 << 14,))
        for stream in (Stream(SEED, "query 0"), Stream(SEED, "query 1"), Stream(new_seed(), "query 0"))
        for label in ("1", "2", "11")
    ]
    draws += [Stream(derive(SEED, label), "query 0").integers("1", (1 << 14,)) for label in ("a", "b")]
    words = torch.stack(draws)
    assert words.unique().numel() == words.numel()  # 64-bit words: two equal ones would be a repeated stream
    bits = np.unpackbits(words.numpy().view(np.uint8), axis=1) * 2.0 - 1
    correlation = bits @ bits.T / bits.shape[1]
    assert np.abs(correlation - np.eye(len(draws))).max() < 6 / bits.shape[1] ** 0.5


def test_masks_are_uniform_over_the_whole_word():
    words = Stream(new_seed(), "q").integers("x", (1 << 18,))
    counts = np.bincount(words.numpy().view(np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-7
    ones = np.unpackbits(words.numpy().view(np.uint8)).reshape(-1, 64).mean(0)
    assert np.abs(ones - 0.5).max() < 6 * 0.5 / (1 << 9)


def test_seeds_are_fresh():
    assert len({new_seed() for _ in range(100)}) == 100
    assert len(new_seed()) == 32


def test_arrays_of_any_size_do_not_repeat():
    stream = Stream(SEED, "q")
    assert stream.integers("a", (0, 3)).shape == (0, 3)
    assert stream.integers("a", ()).shape == ()
    words = stream.integers("a", ((1 << 21) + 5,))  # beyond the zero page that is encrypted
    assert words.unique().numel() == words.numel()


def test_a_correlation_is_used_once():
    tape = Tape()
    tape.put("7/r", 1)
    for twice in (lambda: tape.put("7/r", 2), lambda: tape.put("7/r", 1)):
        with pytest.raises(CorrelationError, match="7/r is made twice"):
            twice()
    assert tape.take("7/r", int) == 1
    assert len(tape) == 0
    for again, words in (
        (lambda: tape.take("7/r", int), "7/r was already used; masks are used once"),
        (lambda: tape.put("7/r", 2), "7/r is made twice"),
        (lambda: tape.take("8/r", int), "8/r was not prepared; both parties must run the same program"),
    ):
        with pytest.raises(CorrelationError, match=words):
            again()


LAYOUT = (40, 16)


def corrections(layout=LAYOUT):
    dealer, server = memory_pair("dealer", "server", timeout=1)
    return Corrections(dealer, LAYOUT), Corrections(server, layout), dealer


def words(count: int) -> torch.Tensor:
    return torch.arange(count) - 3


def test_corrections_arrive_as_sent():
    out, into, _ = corrections()
    out.write(words(5), 8)
    out.write(words(4), 4)
    out.finish()
    assert torch.equal(into.read((5,), 8), words(5))
    assert torch.equal(into.read((2, 2), 4), words(4).view(2, 2))
    into.finish()


@dataclass(frozen=True)
class Numbers:
    numbers: Tensor

    def value(self) -> Tensor:
        return self.numbers


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_dealer_sends_the_same_of_numbers_that_are_held_as_narrow_as_they_travel(width):
    sent = []
    for dtype in (torch.int64, held_in(width)):
        dealer, server = memory_pair("dealer", "server", timeout=1)
        source = DealerSource(*(Stream(SEED, purpose) for purpose in "ab"), Corrections(dealer, (40 * width,)))
        numbers = torch.arange(-20, 20).to(dtype)
        assert torch.equal(source.derived("x", (8, 5), Numbers(numbers.view(8, 5)), width).view(-1), numbers)
        sent.append(server.recv(40 * width))
    assert sent[0] == sent[1]
    share = Corrections(_Alone(sent[0]), (40 * width,)).read((8, 5), width, narrow=True)
    mine = Stream(SEED, "b").integers("x", (8, 5), width, narrow=True)
    assert share.dtype is mine.dtype is held_in(width)
    assert torch.equal(share + mine, torch.arange(-20, 20, dtype=held_in(width)).view(8, 5))


class _Alone:
    """A channel with one frame."""

    def __init__(self, frame):
        self.recv = lambda size: frame


@pytest.mark.parametrize(("count", "width"), [(6, 8), (4, 8), (5, 7), (0, 8)])
def test_a_correction_of_another_size_is_not_sent(count, width):
    out, *_, dealer = corrections()
    with pytest.raises(CorrelationError, match="where the program declares 40"):
        out.write(words(count), width)
    assert dealer.meter.sent == 0


def test_a_correction_too_many_or_too_few_fails():
    out, *_ = corrections()
    out.write(words(5), 8)
    with pytest.raises(CorrelationError, match="fewer than the program declares"):
        out.finish()
    out, *_ = corrections()
    for count in (5, 2):
        out.write(words(count), 8)
    with pytest.raises(CorrelationError, match="where the program declares None"):
        out.write(words(1), 8)


def test_the_server_refuses_what_it_does_not_expect():
    out, into, _ = corrections()
    out.write(words(5), 8)
    out.write(words(2), 8)
    with pytest.raises(CorrelationError, match="48 bytes where the program declares 40"):
        into.read((6,), 8)
    out, into, _ = corrections(layout=(40, 24))
    out.write(words(5), 8)
    out.write(words(2), 8)
    with pytest.raises(PeerProtocolError, match=r"dealer: sent a frame of 56 bytes where 64 were expected"):
        into.read((5,), 8)


@given(st.lists(st.integers(0, PIECE) | st.sampled_from([0, 1, PIECE - 1]), max_size=30).map(tuple))
def test_a_dealer_pauses_after_every_piece_that_more_follows(layout):
    pauses, sizes, sent = [], [], []

    def pause(ahead, total):
        assert total == sum(layout)
        pauses.append(ahead)
        sent.append(sum(sizes))

    for size in paced(layout, pause):
        sizes.append(size)
    assert sizes == frames(layout)
    assert all(done <= ahead <= sum(layout) for done, ahead in zip(sent, pauses, strict=True))
    pieces = [end - begun for begun, end in itertools.pairwise([0, *sent, sum(layout)])]
    assert all(PIECE <= piece < 2 * PIECE for piece in pieces[:-1])
    assert pieces[-1] < 2 * PIECE


@given(st.lists(st.integers(0, FRAME // 2) | st.sampled_from([0, 1, FRAME, FRAME + 1]), max_size=30).map(tuple))
def test_frames_hold_all_corrections_and_only_large_ones_exceed_the_limit(layout):
    sizes = frames(layout)
    assert sum(sizes) == sum(layout)
    assert len(sizes) <= len(layout)
    assert all(size <= FRAME or size in layout for size in sizes)
