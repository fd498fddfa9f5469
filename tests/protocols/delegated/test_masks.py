"""The masks of a pass: uniform, the same at both ends, and others for whatever differs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from blindformer.parties.session.preprocessed import query_key
from blindformer.protocols.delegated.arithmetic import PassMasks
from blindformer.protocols.streams import KeyStream, new_seed
from blindformer.tests.uniformity import ALARM, log_p_values, sample
from hypothesis import given
from hypothesis import strategies as st

SEED, ARTIFACT, SERVER = bytes(range(32)), "a1" * 32, "5e" * 32
SIZES = [(48, 96), (80, 48)]
SEQUENCE = ((0, 4), (1, 4), (0, 1))


def drawn(seed=SEED, number=3, artifact=ARTIFACT, server=SERVER, sequence=SEQUENCE) -> list[torch.Tensor]:
    """All of a pass: r, s, r, s ..."""
    masks = PassMasks(query_key(seed, number), artifact, server, sequence)
    return [part for group, rows in sequence for part in masks.next(rows, *SIZES[group])]


def test_client_and_dealer_draw_the_same_masks():
    for (group, rows), r, s in zip(SEQUENCE, drawn()[::2], drawn()[1::2], strict=True):
        assert (r.shape, s.shape) == ((rows, SIZES[group][0]), (rows, SIZES[group][1]))
        assert r.dtype == s.dtype == torch.int32
    assert all(map(torch.equal, drawn(), drawn()))


OTHERS = {
    "seed": {"seed": bytes(32)},
    "number": {"number": 4},
    "weights": {"artifact": "a1" * 31 + "a2"},
    "server": {"server": "5e" * 31 + "5f"},
    "no server": {"server": ""},
    "rows of a later call": {"sequence": ((0, 4), (1, 4), (0, 2))},
    "a group": {"sequence": ((0, 4), (0, 4), (0, 1))},
    "a call more": {"sequence": (*SEQUENCE, (0, 1))},
    "the order": {"sequence": ((0, 4), (0, 1), (1, 4))},
}


@pytest.mark.parametrize("name", OTHERS)
def test_masks_are_bound_to_all_that_parties_must_agree_on(name):
    """Under one mask, what two servers, groups or numbers get would tell the difference of two inputs."""
    rows = [set(map(tuple, part.view(-1, 8).tolist())) for part in drawn()]
    others = [set(map(tuple, part.view(-1, 8).tolist())) for part in drawn(**OTHERS[name])]
    assert not set().union(*rows) & set().union(*others)


def test_each_call_of_a_layer_has_masks_of_its_own():
    """One that is called twelve times in a pass, too."""
    sequence = ((0, 4),) * 12
    parts = drawn(sequence=sequence)
    assert len({row for part in parts for row in map(tuple, part.view(-1, 8).tolist())}) == 12 * 4 * (48 + 96) // 8


TEXTS = st.text("0123456789abcdef \"',[]", max_size=6)
LABELS = st.tuples(
    TEXTS, TEXTS, st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=3).map(tuple)
)


@given(one=LABELS, other=LABELS, numbers=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_no_two_labels_have_the_same_masks(one, other, numbers):
    """Whatever stands in them."""
    first, second = (
        PassMasks(query_key(SEED, number), *label).next(1, 4, 4)[0].tolist()
        for number, label in zip(numbers, (one, other), strict=True)
    )
    assert (first == second) == ((one, numbers[0]) == (other, numbers[1]))


def test_labels_that_spaces_or_quotes_could_join_differ():
    labels = [("a b", "c"), ("a", "b c"), ("a b c", ""), ("", "a b c"), ('a", "b', "c"), ("a", 'b", "c')]
    masks = {tuple(drawn(artifact=one, server=other)[0].flatten().tolist()) for one, other in labels}
    assert len(masks) == len(labels)


def test_masks_are_uniform_over_the_whole_ring():
    parts = [torch.cat([part.flatten() for part in drawn(new_seed(), number)]).long() for number in range(50)]
    logs = log_p_values([sample(part, 4) for part in parts])
    assert min(logs) > math.log(ALARM)
    bits = torch.stack([(torch.cat(parts) >> bit & 1).double().mean() for bit in range(32)])
    assert (bits - 0.5).abs().max() < 5 * 0.5 / len(torch.cat(parts)) ** 0.5


def test_a_stream_is_read_once_and_never_from_its_beginning_again():
    stream = KeyStream(bytes(16), bytes(16))
    pieces = [stream.int32(count) for count in (3, 0, 7, 1, 400)]
    assert torch.equal(torch.cat(pieces), KeyStream(bytes(16), bytes(16)).int32(411))
    masks = PassMasks(SEED, ARTIFACT, SERVER, SEQUENCE)
    again = [masks.next(4, 48, 96)[0] for _ in range(3)]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(again, 2))
