"""A seed goes from one client to one server, once."""

from __future__ import annotations

import pytest
from blindformer.parties.service.control import Introduced, Keep, Take
from blindformer.parties.service.pairs import LIMIT, LIMIT_EACH, SECONDS, Pairs

PROGRAM, SEED = "99" * 32, "5e" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def session(number: int) -> str:
    return f"{number:032x}"


def peer(number: int, role: str = "client", owner: str = "aa", program: str = PROGRAM) -> Introduced:
    return Introduced(serial="1", role=role, owner=owner * 32, session=session(number), program=program)


def keep(pairs: Pairs, number: int, owner: str = "aa", seed: str = SEED):
    return pairs.reply(Keep(session=session(number), program=PROGRAM, seed=seed), peer(number, owner=owner))


def take(pairs: Pairs, number: int, program: str = PROGRAM):
    return pairs.reply(Take(session=session(number), program=program), peer(number, "server", "bb", program))


def test_a_seed_is_handed_out_once():
    pairs = Pairs()
    assert keep(pairs, 1) == {"kept": True}
    assert take(pairs, 1) == {"seed": SEED}
    assert "refused" in take(pairs, 1)
    assert len(pairs) == 0


def test_a_session_is_never_seeded_twice():
    pairs = Pairs()
    keep(pairs, 1)
    assert "had its client's seed already" in keep(pairs, 1, seed="66" * 32)["refused"]
    assert take(pairs, 1) == {"seed": SEED}
    assert "had its client's seed already" in keep(pairs, 1)["refused"]
    assert "refused" in take(pairs, 1)


def test_a_server_with_another_program_gets_nothing_and_nobody_after_it():
    pairs = Pairs()
    keep(pairs, 1)
    assert "refused" in take(pairs, 1, program="88" * 32)
    assert "refused" in take(pairs, 1)


def test_a_seed_expires():
    clock = Clock()
    pairs = Pairs(clock)
    keep(pairs, 1)
    clock.now = SECONDS
    assert "refused" in take(pairs, 1)


def test_one_client_pushes_out_its_own_seeds_alone():
    pairs = Pairs()
    keep(pairs, 0, owner="bb")
    for number in range(1, LIMIT_EACH + 3):
        keep(pairs, number, owner="aa")
    assert len(pairs) == LIMIT_EACH + 1
    assert "refused" in take(pairs, 1)
    assert "refused" in take(pairs, 2)
    assert take(pairs, 3) == {"seed": SEED}
    assert take(pairs, 0) == {"seed": SEED}


def test_all_together_are_bounded_and_whoever_has_most_gives_way():
    pairs = Pairs()
    keep(pairs, 0, owner="00")
    for number in range(1, LIMIT + 50):
        keep(pairs, number, owner=f"{1 + number % 5:02x}")
    assert len(pairs) <= LIMIT
    assert take(pairs, 0) == {"seed": SEED}


@pytest.mark.parametrize(
    ("report", "whose"),
    [
        (Keep(session=session(1), program=PROGRAM, seed=SEED), peer(1, "server")),
        (Take(session=session(1), program=PROGRAM), peer(1, "client")),
        (Take(session=session(1), program=PROGRAM), peer(2, "server")),
        (Keep(session=session(1), program="88" * 32, seed=SEED), peer(1, "client")),
    ],
)
def test_a_process_that_asks_for_more_than_its_peer_may_is_ended(report, whose):
    pairs = Pairs()
    keep(pairs, 1, seed="66" * 32)
    with pytest.raises(ValueError, match="a report"):
        pairs.reply(report, whose)
    assert take(pairs, 1) == {"seed": "66" * 32}
