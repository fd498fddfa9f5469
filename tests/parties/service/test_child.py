"""Whatever ends a session, its peers are told what is their business, and no more."""

from __future__ import annotations

import os
import resource
import socket

import pytest
from blindformer.parties.service.child import Stopping, abort_on_error, become_child, error_location
from blindformer.parties.session.messages import SlotsBusy, receive_expected
from blindformer.protocols.errors import CorrelationError, PeerError, PeerGone, PeerProtocolError
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair
from blindformer.tests.shared.processes import PROCESSES


def heard(error: BaseException) -> list[BaseException | None]:
    """What the client and the dealer of a server hear when `error` ends its session."""
    pairs = [memory_pair("server", name, 5) for name in ("client", "dealer")]

    def fail() -> None:
        with abort_on_error("server", lambda: [ours for ours, _ in pairs]):
            raise error

    with pytest.raises(type(error)):
        fail()
    errors: list[BaseException | None] = []
    for _, theirs in pairs:
        try:
            receive_expected(theirs, ("ready",))
        except (PeerError, SlotsBusy) as caught:
            errors.append(caught)
        else:
            errors.append(None)
    return errors


@pytest.mark.parametrize(
    ("error", "client", "dealer"),
    [
        (Stopping(), "server: is stopping; ask again when it is back", "is stopping"),
        (SlotsBusy("server", 7.5, "the queue is full"), "the queue is full", ""),
        (SlotsBusy("dealer", 3.0, "all sessions are taken"), "all sessions are taken", "hung up"),
        (PeerProtocolError("dealer", "sent nonsense", "update it"), "dealer: sent nonsense", "sent nonsense"),
    ],
    ids=["it stops", "it is full", "its dealer is full", "the fault of one peer"],
)
def test_peers_are_told_why_a_session_ends(error, client, dealer):
    for_client, for_dealer = heard(error)
    assert client in str(for_client)
    if isinstance(error, SlotsBusy):
        assert isinstance(for_client, SlotsBusy)
        assert (for_client.party, for_client.retry_after) == ("server", error.retry_after)
    if isinstance(error, SlotsBusy) and error.party == "dealer":
        assert isinstance(for_dealer, PeerGone)  # what it said itself is not repeated: hung up
    else:
        assert dealer in str(for_dealer)


@pytest.mark.parametrize("error", [KeyError("a secret"), CorrelationError("/home/me/secret"), ValueError("a secret")])
def test_a_bug_is_not_told(error):
    for peers_error in heard(error):
        assert isinstance(peers_error, PeerGone)
        assert "server: has failed; see its log" in str(peers_error)
        assert "secret" not in str(peers_error)


def test_a_bug_is_logged_by_its_place_alone():
    with pytest.raises(KeyError) as caught:
        {}["a secret"]
    assert error_location(caught.value).startswith("internal error in test_child.py:")
    assert "secret" not in error_location(caught.value)


def without_a_file(sock: socket.socket) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        become_child(sock, lambda control: None, set())
    finally:
        os._exit(7)  # it went on


def test_a_child_that_can_open_no_file_reports_it_and_ends():
    """It never goes on in the code of the supervisor, whose listener it has."""
    ours, theirs = socket.socketpair()
    process = PROCESSES.Process(target=without_a_file, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    with ours, ours.makefile() as reports:
        assert '"kind":"OSError"' in reports.read()
    process.join(PATIENCE)
    assert process.exitcode == 1
