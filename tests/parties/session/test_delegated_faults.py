"""A party of a delegated session is killed at any point: no mask is used twice, and the others get one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from blindformer.parties.client.session import LOST
from blindformer.protocols.errors import BlindformerError, PeerError, PeerGone, PeerRefused
from blindformer.tests.parties.session.delegated_site import WIDE, DelegatedSite
from blindformer.tests.parties.session.test_delegated_sessions import Drawn, drawn

__all__ = ["drawn"]

SHAPES = (4, 4, 4, 2)  # of passes: one alone, a block, and another shape


class Killed(Exception):
    """The process of this party is no more."""


class Killing:
    """A site one of whose parties is killed before its channels move for the n-th time. `moved`: how often they did."""

    def __init__(self, party: str, at: int) -> None:
        self.site, self.party, self.at, self.moved = DelegatedSite(timeout=10), party, at, 0
        self.site.wrapped = self._watched

    def _watched(self, me: str, peer: str, end: Any) -> Any:
        if me == self.party:
            move = end._move

            def moving(*given: Any) -> None:
                if self.moved == self.at:
                    self.site.vanish(self.party)
                self.moved += 1
                move(*given)

            end._move = moving
        return end

    def session(self) -> None:
        """Passes of all shapes. Errors: PeerError of what the client sees."""
        client = self.site.client()
        try:
            for rows in SHAPES:
                self.site.ask(client, torch.randn(1, rows, WIDE))
                client.prepare()
        finally:
            client.close()


def moves(party: str) -> int:
    counting = Killing(party, -1)
    counting.session()
    assert counting.site.ended() == []
    counting.site.close()
    return counting.moved


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    return {party: moves(party) for party in ("client", "server", "dealer")}


@pytest.mark.parametrize("party", ["client", "server", "dealer"])
def test_a_party_is_killed_at_any_point(party, counts, drawn: Drawn):
    """Then the client's next session answers; what the first has drawn is never drawn again."""
    assert counts[party] > 10
    for at in range(counts[party]):
        killing = Killing(party, at)
        site = killing.site
        errors = [*_errors(killing.session), *site.ended()]
        site.wrapped = lambda me, peer, end: end
        again = site.client()
        site.ask(again)
        again.close()
        for error in [*errors, *site.ended()]:
            assert isinstance(error, PeerError), (at, error)
            assert "\n" not in str(error)
            assert len(str(error)) < 200
        site.close()
    drawn.check()


def _errors(work: Callable[[], None]) -> list[BlindformerError]:
    """What the client sees, if it sees anything: its own session is lost."""
    try:
        work()
    except (*LOST, PeerRefused) as error:
        return [error]
    return []


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "ended by its own model"])
def test_a_client_that_ends_in_a_pass_is_gone_for_its_server(drawn, killed):
    """Without a word: the server waits for numbers, and sees a closed connection."""
    site = DelegatedSite()
    client = site.client()
    site.ask(client)
    client.begin(((0, 4), (1, 4), (2, 4)))
    client.call(0, torch.randn(4, WIDE))
    if killed:
        site.vanish("client")
    else:
        client.abandon()
        assert not client.open
    site.ended()
    error = dict(site.failures)["server"]
    assert isinstance(error, PeerGone)
    assert error.party == "client"
    site.close()
