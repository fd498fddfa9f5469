"""One client that cheats in secure sums ruins a round at most: it is found, named, and left out of the next ones."""

from __future__ import annotations

import secrets
from collections import Counter
from random import Random

import pytest
import torch
from blindformer.federated import secure_client
from blindformer.federated.messages import KEYS, SECURE, SHARES, TRAIN, UNMASK
from blindformer.federated.privacy import spent
from blindformer.federated.secure import threshold_of
from blindformer.federated.secure_server import Faults
from flwr.app import ConfigRecord

from .conftest import SMALL, of, run

BAD = 3  # its node, which is called client 2
GIVEN = {**SMALL, "rounds": 2, "epochs": 1, "secagg": True}
NOISE = 1e-3
CONTRADICTS, NO_KEY = "its shares of keys contradict", "dealt shares that give no key"
ROUND = "the shares of client 2 give no key: its masks stay on the sum"


def changed(**changes):
    """Other values of a reply, made of its own ones."""

    def cheat(message, answer):
        reply = answer(message)
        sent = reply.content[SECURE]
        reply.content[SECURE] = ConfigRecord({**sent, **{key: change(sent[key]) for key, change in changes.items()}})
        return reply

    return cheat


def noise(sent):
    return (
        [secrets.token_bytes(len(part)) for part in sent] if isinstance(sent, list) else secrets.token_bytes(len(sent))
    )


def first(sent):
    """Only the first is wrong."""
    return [noise(sent[0]), *sent[1:]]


def crooked(message, answer):
    """Shares that are sealed and bound as they should be, and of no polynomial."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(secure_client, "share", lambda secret, need, holders: {i: bytes([0, i]) * 33 for i in holders})
        return answer(message)


def cheated(data, folder=None, kind="", cheat=None, silent="", **given):
    """A run in which one client cheats in its replies to one kind of message, or is silent."""
    bend = of(BAD, kind, cheat) if cheat else None
    private = {"dp": "central", "noise": NOISE, "clip": 10.0}
    progress, plain = given.pop("progress", None), given.pop("plain", False)
    settings = {**GIVEN, **({} if plain else private), **given}
    return run(data, settings, folder=folder, progress=progress, silent={silent: [BAD]}, bend=bend)


CHEATS = {
    "gives wrong shares": ({"kind": UNMASK, "cheat": changed(shares=noise)}, 4, CONTRADICTS),
    "seals wrong shares": ({"kind": SHARES, "cheat": changed(boxes=noise)}, 0, CONTRADICTS),
    "and drops": ({"kind": SHARES, "cheat": changed(boxes=noise), "silent": TRAIN}, 0, CONTRADICTS),
    "seals a wrong share and keeps its own": (
        {"kind": SHARES, "cheat": changed(boxes=first), "silent": UNMASK},
        0,
        CONTRADICTS,
    ),
    "seals a wrong share and drops": ({"kind": SHARES, "cheat": changed(boxes=first), "silent": TRAIN}, 0, CONTRADICTS),
    "binds itself to others": ({"kind": SHARES, "cheat": changed(digests=noise)}, 0, CONTRADICTS),
    "binds itself to another seed": ({"kind": SHARES, "cheat": changed(seed=noise)}, 0, NO_KEY),
    "deals shares of nothing": ({"kind": SHARES, "cheat": crooked}, 0, NO_KEY),
    "and drops, too": ({"kind": SHARES, "cheat": crooked, "silent": TRAIN}, 0, NO_KEY),
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_who_ruins_shares_is_named_and_left_out(data, cheat):
    """Wrong shares of others' keys ruin nothing; its own key may be lost with it: that round fails, and counts."""
    wire, clients, why = CHEATS[cheat]
    ran = cheated(data, **wire)
    first, second = ran.rounds
    assert (first.clients, second.clients) == (clients, 3)
    assert why in first.lost["client 2"]
    assert first.lost["client 2"].endswith("; it is left out of the rounds to come")
    assert first.lost.get("round") == (None if clients else ROUND)
    assert (ran.made.left_out, second.lost) == ([BAD], {})
    assert [first.epsilon, second.epsilon] == [spent(NOISE, 1.0, n, 1e-5) for n in (1, 2)]


def test_the_sum_is_right_whoever_gives_wrong_shares(data):
    """To the bit that of a round in which nobody does."""
    honest, ruined = (
        cheated(data, plain=True, rounds=1, **wire) for wire in ({}, {"kind": UNMASK, "cheat": changed(shares=noise)})
    )
    assert honest.rounds[0].clients == ruined.rounds[0].clients == 4
    assert torch.equal(honest.moved, ruined.moved)


def test_who_is_left_out_stays_out_when_the_server_starts_again(data, tmp_path):
    class Killed(Exception):
        pass

    def kill(round_, total):
        raise Killed

    with pytest.raises(Killed):
        cheated(data, tmp_path, kind=UNMASK, cheat=changed(shares=noise), progress=kill)
    assert [r.clients for r in cheated(data, tmp_path).rounds] == [4, 3]


def test_a_single_wrong_share_leaves_two_of_which_one_lies(data):
    """Its holder, or its dealer: an honest client could be made to look like a liar. It costs the sum nothing."""
    ran = cheated(data, kind=UNMASK, cheat=changed(shares=first))
    assert [r.clients for r in ran.rounds] == [4, 4]
    assert ran.rounds[0].lost == {"client 0 and client 2": "disagree about a share of a key: one of the two lies"}
    assert ran.made.left_out == []


def test_keys_that_are_not_new_cost_the_others_no_round(data):
    """Clients refuse a session with a key in it twice: they would take the server for a liar."""

    def twice(message, answer):
        reply = answer(message)
        key = reply.content[SECURE]["mask"]
        reply.content[SECURE] = ConfigRecord({"mask": key, "seal": key})
        return reply

    rounds = cheated(data, kind=KEYS, cheat=twice).rounds
    assert [(r.clients, list(r.lost)) for r in rounds] == [(3, ["client 2"])] * 2


def test_no_honest_client_is_blamed_and_every_failure_has_somebody_to_blame():
    """For any number of clients, while no more than may be are silent or lie, in whatever way they do."""
    random, failures = Random(0), 0
    for clients in [*range(3, 30)] * 8:
        need = threshold_of(clients)
        faulty = random.sample(range(clients), clients - need)
        silent, liars = set(), set()
        for i in faulty:
            (silent if random.random() < 0.5 else liars).add(i)
        lies = {i: random.random() for i in liars | {i for i in silent if random.random() < 0.5}}  # how often each does
        faults, good = Faults(clients - need, frozenset(silent)), Counter()
        for holder in set(range(clients)) - silent:
            for dealer in range(clients):
                if random.random() < max(lies.get(holder, 0.0), lies.get(dealer, 0.0) if dealer != holder else 0.0):
                    faults.disagree(holder, dealer)
                else:
                    good[dealer] += 1
        short = {dealer for dealer in range(clients) if good[dealer] < need}
        failures += bool(short)
        assert short <= set(lies)
        assert set(faults.blamed()) <= set(lies)
        assert bool(faults.blamed()) >= bool(short)
        assert all(set(pair) & set(lies) for pair in faults.pairs())
    assert failures > 20


def test_where_too_many_are_faulty_either_side_of_a_quarrel_is_spared():
    """Of four, one is silent and one lies about one share: its dealer's key is lost, and both look alike."""
    faults = Faults(1, frozenset({3}))
    faults.disagree(0, 1)
    assert (faults.blamed(), faults.pairs()) == ([], [(0, 1)])
    for dealer in (0, 1, 2, 3):  # it lies about all of them
        faults.disagree(0, dealer)
    assert (faults.blamed(), faults.pairs()) == ([0], [])
