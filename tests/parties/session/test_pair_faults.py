"""A party of a session without a dealer is killed, or its disk is full, while correlations are made."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("nacl")
pytest.importorskip("seal")
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.protocols.errors import PeerError
from blindformer.protocols.kernels import library
from blindformer.tests.parties.session.site import Site
from blindformer.tests.parties.session.test_stored import fill_disk, used_once

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")


class KillingSite(Site):
    """A site without a dealer. Once `armed`, `victim` is killed before its channel moves for the `at`-th time."""

    def __init__(self, case, victim: str, at: int, **options: Any) -> None:
        super().__init__(case, dealt=False, **options)
        self.victim, self.left, self.armed = victim, at, False

    def connect(self, a: str, b: str) -> Any:
        pair = super().connect(a, b)
        end: Any = pair[0 if a == self.victim else 1]
        move = end._move

        def moving(*given: Any) -> None:
            if self.armed and self.left == 0:
                self.armed = False
                end.interrupt()
            self.left -= self.armed
            move(*given)

        end._move = moving
        return pair


@pytest.fixture
def mine(tmp_path) -> PreprocessingStore:
    return PreprocessingStore(tmp_path / "client")


SOON = [("server", 40, True), ("client", 40, False)]
LATER = [(victim, at, ahead) for victim in ("server", "client") for at in (0, 2, 3, 60, 90) for ahead in (True, False)]


@pytest.mark.parametrize(
    ("victim", "at", "ahead"), [*SOON, *(pytest.param(*case, marks=pytest.mark.slow) for case in LATER)]
)
def test_a_party_is_killed_while_correlations_are_made(case, mine, tmp_path, victim, at, ahead):
    """The first ones that were made ahead are good, those that were not finished belong to nobody."""
    site = KillingSite(case, victim, at, store=PreprocessingStore(tmp_path / "server"))
    with site.client(store=mine, use_store="off") as party:
        party.precompute(1)
        site.armed = True
        with pytest.raises(PeerError) as caught:
            party.precompute(1) if ahead else party.query(case.client)
    errors = [caught.value, *site.errors()]
    assert {error.party for error in errors if isinstance(error, PeerError)} == {"server", "client"}
    assert all(str(error).isprintable() and len(str(error)) < 200 for error in errors)
    assert not site.armed
    with site.client(store=mine) as party:
        assert [site.ask(party, more=True).timings.ahead for _ in range(2)] == [True, False]
    site.join()
    assert (site.store.left(), mine.left()) == (0, 0)
    assert list(site.store.folder.glob("*/*")) == []
    assert used_once(site.store, mine) == [2, 2]


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_full_disk_keeps_what_is_there_and_the_session_goes_on(case, mine, tmp_path, monkeypatch, side):
    """The number that was made and not kept is never made again: its masks were used."""
    site = Site(case, store=PreprocessingStore(tmp_path / "server"), dealt=False)
    fill_disk({"server": site.store, "client": mine}[side], 1, monkeypatch)
    with site.client(store=mine, use_store="off") as party:
        with pytest.raises(StoreError, match="free space"):
            party.precompute(3)
        assert party.kept == 1
        site.ask(party)
        party.precompute(1)
    with site.client(store=mine) as party:
        assert [site.ask(party, more=True).timings.ahead for _ in range(2)] == [True, True]
    site.end()
    assert used_once(site.store, mine) == [3, 3]
    numbers = [f for f in site.received["client", "server"] if f.startswith(b'{"make"')]
    assert numbers == [b'{"make":0}', b'{"make":1}', b'{"make":2}', b'{"make":3}']
