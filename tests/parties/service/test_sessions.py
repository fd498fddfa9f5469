"""Whatever ends a session, its peers are told what is their business, and no more."""

from __future__ import annotations

import pytest
from blindformer.parties.service.child import Stopping, place
from blindformer.parties.service.sessions import error_on_close
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.session.messages import hear
from blindformer.parties.transport.memory import memory_pair
from blindformer.protocols.errors import CorrelationError, PeerError, PeerGone, PeerProtocolError


def heard(error: BaseException) -> list[BaseException | None]:
    """What the client and the dealer of a server hear when `error` ends its session."""
    pairs = [memory_pair("server", name, 5) for name in ("client", "dealer")]

    def fail() -> None:
        with error_on_close("server", lambda: [ours for ours, _ in pairs]):
            raise error

    with pytest.raises(type(error)):
        fail()
    found: list[BaseException | None] = []
    for _, theirs in pairs:
        try:
            hear(theirs, ("ready",))
        except (PeerError, SlotsBusy) as caught:
            found.append(caught)
        else:
            found.append(None)
    return found


def test_a_service_that_stops_says_so():
    client, dealer = heard(Stopping())
    assert isinstance(client, PeerGone)
    assert "server: is stopping; ask again when it is back" in str(client)
    assert isinstance(dealer, PeerGone)


def test_a_full_service_says_when_to_come_back():
    client, _ = heard(SlotsBusy("server", 7.5, "the queue is full"))
    assert isinstance(client, SlotsBusy)
    assert (client.party, client.retry_after, client.why) == ("server", 7.5, "the queue is full")


def test_a_full_dealer_is_passed_on_to_the_client_alone():
    client, dealer = heard(SlotsBusy("dealer", 3.0, "all sessions are taken"))
    assert isinstance(client, SlotsBusy)
    assert client.retry_after == 3.0
    assert isinstance(dealer, PeerGone)  # hung up


def test_the_fault_of_one_peer_is_told_to_the_other():
    client, dealer = heard(PeerProtocolError("dealer", "sent nonsense", "update it"))
    assert "dealer: sent nonsense" in str(client)
    assert "sent nonsense" in str(dealer)


@pytest.mark.parametrize("error", [KeyError("a secret"), CorrelationError("/home/me/secret"), ValueError("a secret")])
def test_a_bug_is_not_told(error):
    for told in heard(error):
        assert isinstance(told, PeerGone)
        assert "server: has failed; see its log" in str(told)
        assert "secret" not in str(told)


def test_a_bug_is_logged_by_its_place_alone():
    with pytest.raises(KeyError) as caught:
        {}["a secret"]
    assert place(caught.value).startswith("internal error in test_sessions.py:")
    assert "secret" not in place(caught.value)
