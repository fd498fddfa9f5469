"""A seed goes from one client to one server, once; and from each of N parties to the one that leads them."""

from __future__ import annotations

import pytest
from blindformer.parties.service.control import Introduced, Keep, Take
from blindformer.parties.service.dealer import DealerService, PassedSeeds
from blindformer.tests.parties.service.clock import Clock

PROGRAM, SEED = "99" * 32, "5e" * 32
LEFT = "its seed for this session was left already"


def of_two(**options) -> PassedSeeds:
    return PassedSeeds(DealerService.leader, DealerService.others, **options)


def session(number: int) -> str:
    return f"{number:032x}"


def peer(number: int, role: str = "client", owner: str = "aa", program: str = PROGRAM) -> Introduced:
    return Introduced(serial="1", role=role, owner=owner * 32, session=session(number), program=program)


def keep(seeds: PassedSeeds, number: int, owner: str = "aa", seed: str = SEED):
    return seeds.reply(Keep(session=session(number), program=PROGRAM, seed=seed), peer(number, owner=owner))


def take(seeds: PassedSeeds, number: int, program: str = PROGRAM):
    wanted = Take(session=session(number), program=program, party="client")
    return seeds.reply(wanted, peer(number, "server", "bb", program))


def test_a_seed_is_handed_out_once_and_a_session_is_never_seeded_twice():
    seeds = of_two()
    assert keep(seeds, 1) == {"kept": True}
    assert LEFT in keep(seeds, 1, seed="66" * 32)["refused"]
    assert take(seeds, 1) == {"seed": SEED}
    assert len(seeds) == 0
    assert LEFT in keep(seeds, 1)["refused"]
    assert "refused" in take(seeds, 1)


def test_a_server_with_another_program_gets_nothing_and_nobody_after_it():
    seeds = of_two()
    keep(seeds, 1)
    assert "refused" in take(seeds, 1, program="88" * 32)
    assert "refused" in take(seeds, 1)


def test_a_seed_expires():
    clock = Clock()
    seeds = of_two(clock=clock)
    keep(seeds, 1)
    clock.now = seeds.seconds
    assert "refused" in take(seeds, 1)


def test_one_client_pushes_out_its_own_seeds_alone():
    seeds = of_two()
    keep(seeds, 0, owner="bb")
    for number in range(1, seeds.each + 3):
        keep(seeds, number, owner="aa")
    assert len(seeds) == seeds.each + 1
    assert "refused" in take(seeds, 1)
    assert "refused" in take(seeds, 2)
    assert take(seeds, 3) == {"seed": SEED}
    assert take(seeds, 0) == {"seed": SEED}


def test_all_together_are_bounded_and_whoever_has_most_gives_way():
    seeds = of_two()
    keep(seeds, 0, owner="00")
    for number in range(1, seeds.limit + 50):
        keep(seeds, number, owner=f"{1 + number % 5:02x}")
    assert len(seeds) <= seeds.limit
    assert take(seeds, 0) == {"seed": SEED}


@pytest.mark.parametrize(
    ("report", "whose"),
    [
        (Keep(session=session(1), program=PROGRAM, seed=SEED), peer(1, "server")),
        (Take(session=session(1), program=PROGRAM, party="client"), peer(1, "client")),
        (Take(session=session(1), program=PROGRAM, party="client"), peer(2, "server")),
        (Keep(session=session(1), program="88" * 32, seed=SEED), peer(1, "client")),
    ],
)
def test_a_process_that_asks_for_more_than_its_peer_may_is_ended(report, whose):
    seeds = of_two()
    keep(seeds, 1, seed="66" * 32)
    with pytest.raises(ValueError, match="a report"):
        seeds.reply(report, whose)
    assert take(seeds, 1) == {"seed": "66" * 32}


def test_each_of_n_parties_leaves_its_own_seed_and_only_the_first_gets_them():
    seeds = PassedSeeds("alice", {"bob": "bob", "carol": "carol"})
    for name, seed in (("bob", "0b" * 32), ("carol", "0c" * 32)):
        left = Keep(session=session(1), program=PROGRAM, seed=seed)
        assert seeds.reply(left, peer(1, name)) == {"kept": True}
        assert LEFT in seeds.reply(left, peer(1, name))["refused"]
    bobs = Take(session=session(1), program=PROGRAM, party="bob")
    for role in ("bob", "carol"):
        with pytest.raises(ValueError, match="a report"):
            seeds.reply(bobs, peer(1, role))
    with pytest.raises(ValueError, match="a report"):
        seeds.reply(Keep(session=session(1), program=PROGRAM, seed=SEED), peer(1, "alice"))
    assert seeds.reply(bobs, peer(1, "alice")) == {"seed": "0b" * 32}
    assert "refused" in seeds.reply(bobs, peer(1, "alice"))
