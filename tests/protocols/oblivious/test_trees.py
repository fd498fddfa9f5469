"""Trees of seeds: all leaves but the missing ones are equal at both parties, and sums of no tree are found."""

from __future__ import annotations

import secrets

import pytest
import torch
from blindformer.protocols.errors import PeerProtocolError
from blindformer.protocols.oblivious.trees import grow, message_bytes, plant

NAME = bytes(32)
DEPTHS = [3, 3, 1]
MISSING = [5, 0, 1]
FAILS = r"^owner: its seeds of oblivious transfers fail the check; end the session;"


def planted() -> tuple[list[torch.Tensor], bytes, list[bytes]]:
    """The owner's leaves and message, and the keys that the other party has."""
    pairs = [(secrets.token_bytes(32), secrets.token_bytes(32)) for _ in range(sum(DEPTHS))]
    leaves, message = plant(NAME, DEPTHS, pairs)
    sides = [1 - (place >> j & 1) for place, depth in zip(MISSING, DEPTHS, strict=True) for j in range(depth)]
    return leaves, message, [pair[side] for pair, side in zip(pairs, sides, strict=True)]


def test_the_other_party_has_all_leaves_but_the_missing_ones():
    leaves, message, keys = planted()
    assert len(message) == message_bytes(DEPTHS)
    for mine, theirs, place in zip(leaves, grow(NAME, DEPTHS, MISSING, keys, message, "owner"), MISSING, strict=True):
        equal = (mine == theirs).all(1).tolist()
        assert equal == [leaf != place for leaf in range(len(mine))]
        assert not theirs[place].any()
    assert len({tuple(leaf) for tree in leaves for leaf in tree.tolist()}) == 18


def test_a_level_that_is_no_sum_is_found_if_the_other_party_reads_it():
    """Of each pair of sums one is read, the missing leaf's bits say which. So a lie passes for half of all leaves."""
    _, message, keys = planted()
    starts = [sum(DEPTHS[:tree]) for tree in range(len(DEPTHS))]
    for start, depth, place in zip(starts, DEPTHS, MISSING, strict=True):
        for level in range(depth):
            read = 1 - (place >> depth - 1 - level & 1)
            lies = [bytearray(message), bytearray(message)]
            for side, lie in enumerate(lies):
                lie[64 * (start + level) + 32 * side + secrets.randbelow(32)] ^= 1 << secrets.randbelow(8)
            with pytest.raises(PeerProtocolError, match=FAILS):
                grow(NAME, DEPTHS, MISSING, keys, bytes(lies[read]), "owner")
            grow(NAME, DEPTHS, MISSING, keys, bytes(lies[1 - read]), "owner")


def test_the_check_s_own_bytes_cannot_be_changed():
    _, message, keys = planted()
    for at in range(64 * sum(DEPTHS), len(message), 7):
        bad = bytearray(message)
        bad[at] ^= 1
        with pytest.raises(PeerProtocolError, match=FAILS):
            grow(NAME, DEPTHS, MISSING, keys, bytes(bad), "owner")


def test_trees_of_another_session_fail():
    _, message, keys = planted()
    with pytest.raises(PeerProtocolError, match=FAILS):
        grow(bytes([1] * 32), DEPTHS, MISSING, keys, message, "owner")
