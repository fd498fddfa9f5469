"""Base transfers: the receiver's key is the sender's of its choice, and what is no point of the group is refused."""

from __future__ import annotations

import secrets

import pytest
from blindformer.protocols.errors import PeerProtocolError
from blindformer.protocols.oblivious.base_transfer import POINT_BYTES, _to_point, receive_keys, send_keys
from nacl import bindings as sodium

from .parties import both, ends

NAME = bytes(32)
NEUTRAL = bytes([1, *bytes(31)])
OF_ORDER_8 = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
NOT_CANONICAL = bytes([0xEE, *[0xFF] * 30, 0x7F])  # y = p + 1, the neutral element again
BAD = {"neutral": NEUTRAL, "order 8": OF_ORDER_8, "not canonical": NOT_CANONICAL, "off the curve": bytes([2] * 32)}


def point() -> bytes:
    return sodium.crypto_core_ed25519_from_uniform(secrets.token_bytes(32))


def test_the_receiver_gets_the_keys_of_its_choices_alone():
    to_receiver, to_sender = ends()
    choices = [0, 1, 1, 0, 1]
    pairs, keys = both(lambda: send_keys(to_receiver, NAME, 5), lambda: receive_keys(to_sender, NAME, choices))
    assert [pair[choice] for pair, choice in zip(pairs, choices, strict=True)] == keys
    assert len({key for pair in pairs for key in pair}) == 10


def test_keys_of_two_sessions_differ():
    to_receiver, to_sender = ends()
    pairs, keys = both(lambda: send_keys(to_receiver, NAME, 1), lambda: receive_keys(to_sender, bytes([1] * 32), [0]))
    assert keys[0] not in pairs[0]


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", [0, 1])
def test_a_sender_refuses_what_is_no_point(bad, place):
    to_receiver, to_sender = ends()
    pair = [point(), point()]
    pair[place] = bad
    with pytest.raises(PeerProtocolError, match=r"^receiver: sent what is no point of the curve; end the session;"):
        both(lambda: send_keys(to_receiver, NAME, 1), lambda: to_sender.exchange(b"".join(pair), POINT_BYTES))


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_receiver_refuses_what_is_no_point(bad):
    to_receiver, to_sender = ends()
    with pytest.raises(PeerProtocolError, match=r"^sender: sent what is no point of the curve; end the session;"):
        both(lambda: to_receiver.exchange(bad, 2 * POINT_BYTES), lambda: receive_keys(to_sender, NAME, [1]))


def test_a_sender_refuses_points_whose_key_is_known_to_all():
    """Of each transfer a receiver can choose one point so that the sum with the other's hash is the neutral element."""
    to_receiver, to_sender = ends()
    first = point()
    hashed = _to_point(NAME, 0, 1, first)  # for the second
    second = sodium.crypto_core_ed25519_scalar_negate((1).to_bytes(32, "little"))
    second = sodium.crypto_scalarmult_ed25519_noclamp(second, hashed)
    with pytest.raises(PeerProtocolError, match=r"^receiver: sent points that add up to none; end the session;"):
        both(lambda: send_keys(to_receiver, NAME, 1), lambda: to_sender.exchange(first + second, POINT_BYTES))


def test_what_the_receiver_sends_has_no_byte_of_its_choice():
    """Both points of each transfer are uniform: neither a coordinate's bytes nor their order tell the choice."""
    seen: dict[str, list[bytes]] = {"sender": []}
    to_receiver, to_sender = ends(seen)
    choices = [0] * 300 + [1] * 300
    both(lambda: send_keys(to_receiver, NAME, 600), lambda: receive_keys(to_sender, NAME, choices))
    (message,) = seen["sender"]
    for place in (0, 1):
        points = [message[at : at + POINT_BYTES] for at in range(place * POINT_BYTES, len(message), 2 * POINT_BYTES)]
        means = [sum(sum(x[:31]) for x in half) / (300 * 31) for half in (points[:300], points[300:])]
        assert all(abs(mean - 127.5) < 6 * 73.9 / (300 * 31) ** 0.5 for mean in means)
