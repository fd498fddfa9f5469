"""A seed goes from one client to one server, once."""

from __future__ import annotations

import pytest
from blindformer.parties.service.control import Introduced, Keep, Take
from blindformer.parties.service.two_party import PassedSeeds
from blindformer.tests.parties.service.clock import Clock

PROGRAM, SEED = "99" * 32, "5e" * 32


def session(number: int) -> str:
    return f"{number:032x}"


def peer(number: int, role: str = "client", owner: str = "aa", program: str = PROGRAM) -> Introduced:
    return Introduced(serial="1", role=role, owner=owner * 32, session=session(number), program=program)


def keep(seeds: PassedSeeds, number: int, owner: str = "aa", seed: str = SEED):
    return seeds.reply(Keep(session=session(number), program=PROGRAM, seed=seed), peer(number, owner=owner))


def take(seeds: PassedSeeds, number: int, program: str = PROGRAM):
    return seeds.reply(Take(session=session(number), program=program), peer(number, "server", "bb", program))


def test_a_seed_is_handed_out_once_and_a_session_is_never_seeded_twice():
    seeds = PassedSeeds()
    assert keep(seeds, 1) == {"kept": True}
    assert "had its client's seed already" in keep(seeds, 1, seed="66" * 32)["refused"]
    assert take(seeds, 1) == {"seed": SEED}
    assert len(seeds) == 0
    assert "had its client's seed already" in keep(seeds, 1)["refused"]
    assert "refused" in take(seeds, 1)


def test_a_server_with_another_program_gets_nothing_and_nobody_after_it():
    seeds = PassedSeeds()
    keep(seeds, 1)
    assert "refused" in take(seeds, 1, program="88" * 32)
    assert "refused" in take(seeds, 1)


def test_a_seed_expires():
    clock = Clock()
    seeds = PassedSeeds(clock=clock)
    keep(seeds, 1)
    clock.now = seeds.seconds
    assert "refused" in take(seeds, 1)


def test_one_client_pushes_out_its_own_seeds_alone():
    seeds = PassedSeeds()
    keep(seeds, 0, owner="bb")
    for number in range(1, seeds.each + 3):
        keep(seeds, number, owner="aa")
    assert len(seeds) == seeds.each + 1
    assert "refused" in take(seeds, 1)
    assert "refused" in take(seeds, 2)
    assert take(seeds, 3) == {"seed": SEED}
    assert take(seeds, 0) == {"seed": SEED}


def test_all_together_are_bounded_and_whoever_has_most_gives_way():
    seeds = PassedSeeds()
    keep(seeds, 0, owner="00")
    for number in range(1, seeds.limit + 50):
        keep(seeds, number, owner=f"{1 + number % 5:02x}")
    assert len(seeds) <= seeds.limit
    assert take(seeds, 0) == {"seed": SEED}


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
    seeds = PassedSeeds()
    keep(seeds, 1, seed="66" * 32)
    with pytest.raises(ValueError, match="a report"):
        seeds.reply(report, whose)
    assert take(seeds, 1) == {"seed": "66" * 32}
