"""Differential privacy: clipping bounds a client, noise has its size, epsilon is the accountant's for what was done."""

import math

import pytest
import torch
from blindformer.federated import learning, privacy
from blindformer.federated.client import NothingLearned
from blindformer.federated.examples import PARTITION
from blindformer.federated.federate import federate
from blindformer.federated.learning import clipped
from blindformer.federated.messages import ARRAYS, TRAIN, UNMASK, VECTOR, record, tensors
from blindformer.federated.privacy import Budget, gaussian, noise_for, spent
from blindformer.federated.secure import threshold_of
from blindformer.federated.settings import FederateSettings

from .conftest import SMALL, of, partitions, run

accountants = pytest.importorskip("opacus.accountants", reason="the extra `federated` is not installed")
PRIVATE = {**SMALL, "epochs": 1, "dp": "central", "noise": 0.5, "clip": 0.1}


def accounted(noise, rate, steps, delta=1e-5):
    """Opacus' accountant, told step by step."""
    counted = accountants.RDPAccountant()
    for _ in range(steps):
        counted.step(noise_multiplier=noise, sample_rate=rate)
    return counted.get_epsilon(delta=delta)


@pytest.mark.parametrize(
    ("secagg", "rate", "given"),
    [
        (False, 1.0, {"dp": "central"}),
        # Each is drawn by itself, and a sum needs three.
        (True, 0.5, {"dp": "central", "clients": 16, "fraction": 0.5}),
        (True, 1.0, {"dp": "local"}),
        (False, 0.5, {"dp": "example", "sample": 0.5}),
        # Clients share no example: a round counts for each as if it had been asked.
        (True, 0.5, {"dp": "example", "sample": 0.5, "fraction": 0.75}),
    ],
)
def test_epsilon_is_the_accountants_for_the_rounds_that_were_asked_for(data, tmp_path, secagg, rate, given):
    result = federate(tmp_path / "out", data, **{**PRIVATE, "noise": 1.5, "rounds": 2, "secagg": secagg, **given})
    assert [r.epsilon for r in result.rounds] == pytest.approx([accounted(1.5, rate, n) for n in (1, 2)])
    assert result.report["epsilon"] == result.rounds[-1].epsilon
    assert all(r.loss is None for r in result.rounds)  # it is not in the accounting, so it is not told
    if given["dp"] == "example":
        assert [r.clients for r in result.rounds] == [4 * given.get("fraction", 1.0)] * 2


@pytest.mark.parametrize(("trusted", "others"), [(0, 1), (3, 1), (6, 1), (7, 3), (99, 3)])
def test_clients_of_a_secure_sum_share_the_noise_with_those_that_they_trust(monkeypatch, data, trusted, others):
    """Of 8, a sum that is opened has 4 at least, whatever the server tells each of them, so 3 others: fewer where some
    are not trusted. Whoever takes its own noise out leaves the whole. Who trusts nobody adds all of it, whatever roster
    a server writes."""
    monkeypatch.setattr(learning, "drawn", lambda count, share: [])
    given = {**PRIVATE, "clients": 8, "rounds": 1, "dp": "example", "noise": 3.0, "secagg": True, "rate": 0.1}
    nodes = {number: {**node, "trusted-others": trusted} for number, node in partitions(8).items()}
    summed = run(data, given, nodes=nodes).moved * len(data.train) / 0.1
    assert float(summed.std()) == pytest.approx(3.0 * 0.1 * (8 / others) ** 0.5, rel=5 / len(summed) ** 0.5)
    assert threshold_of(8) == 5


@pytest.mark.parametrize("dp", ["central", "local", "example"])
def test_rounds_whose_unmasking_fails_are_spent(data, dp):
    """The server holds vectors, and maybe shares enough: only what it says of itself speaks against."""
    given = {**PRIVATE, "dp": dp, "noise": 2.0, "rounds": 2, "secagg": True, "sample": 0.2 if dp == "example" else 1.0}
    ran = run(data, given, silent={UNMASK: [3, 4]})
    assert [r.clients for r in ran.rounds] == [0, 0]
    assert float(ran.moved.abs().max()) == 0.0
    assert [r.epsilon for r in ran.rounds] == pytest.approx([accounted(2.0, given["sample"], n) for n in (1, 2)])


@pytest.mark.parametrize("dp", ["local", "example"])
def test_a_round_with_a_silent_client_goes_on_and_is_spent(data, dp):
    rounds = run(data, {**PRIVATE, "dp": dp, "noise": 2.0, "rounds": 2}, silent={TRAIN: [3]}).rounds
    assert [(r.clients, r.lost) for r in rounds] == [(3, {"node 3": "did not answer in time"})] * 2
    assert [r.epsilon for r in rounds] == pytest.approx([accounted(2.0, 1.0, 1), accounted(2.0, 1.0, 2)])


def test_an_update_that_is_refused_is_spent(data):
    def emptied(message, answer):
        reply = answer(message)
        del reply.content["metrics"]
        return reply

    (round_,) = run(data, {**PRIVATE, "dp": "example", "noise": 2.0, "rounds": 1}, bend=emptied).rounds
    assert (round_.clients, round_.epsilon) == (0, pytest.approx(accounted(2.0, 1.0, 1)))


def test_the_noise_that_a_budget_needs_spends_it():
    settings = FederateSettings(dp="central", epsilon=8.0, rounds=10, clients=100, fraction=0.1)
    noise = noise_for(settings)
    assert 0.97 * 8 < accounted(noise, 0.1, 10) <= 8.0
    assert spent(noise, 0.1, 10, 1e-5) == pytest.approx(accounted(noise, 0.1, 10))
    assert spent(0.0, 0.1, 1, 1e-5) == math.inf
    assert spent(1.0, 0.1, 0, 1e-5) == 0.0


def test_noise_is_normal_and_fresh():
    drawn = gaussian(40001)
    assert drawn.shape == (40001,)
    assert abs(float(drawn.mean())) < 4 / 200
    assert float(drawn.std()) == pytest.approx(1.0, abs=4 / 280)
    assert float((drawn.abs() < 1.959964).double().mean()) == pytest.approx(0.95, abs=0.005)
    assert float((drawn**4).mean()) == pytest.approx(3.0, abs=0.2)
    assert not torch.equal(drawn, gaussian(40001))
    assert torch.equal(gaussian(3, b"k" * 16), gaussian(3, b"k" * 16))


def test_one_client_moves_the_sum_by_the_norm_at_most():
    update = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    assert float(clipped(update, 0.1).norm()) == pytest.approx(0.1)
    assert torch.equal(clipped(update, 100.0), update)


def test_the_released_mean_has_the_noise_that_is_accounted_for():
    budget = Budget(FederateSettings(dp="central", clients=8, fraction=0.5, noise=3.0, clip=0.2), 3.0)
    released = budget.release(torch.zeros(20000, dtype=torch.float64), 4.0)
    assert float(released.std()) == pytest.approx(3.0 * 0.2 / 4, rel=0.03)  # z C over the expected number of clients


def test_a_client_that_does_not_clip_is_clipped_by_the_server(data):
    def unclipped(message):
        message.content.config_records["config"]["clip"] = 1e9

    ran = run(data, {**PRIVATE, "rounds": 1, "noise": 1e-9}, ask=unclipped)
    assert float(ran.moved.norm()) <= PRIVATE["clip"] * 1.001


def test_a_client_that_drops_costs_no_more(data, tmp_path):
    """Nor does one whose examples cannot be read. A refusal would be published; so it adds nothing."""
    nodes = {1: {PARTITION: 0}, 2: {PARTITION: 1}, 3: {"name": "ward"}, 4: {"data": "nothing", "name": "clinic"}}
    with pytest.warns(NothingLearned, match="clinic: nothing: is no folder"):
        result = federate(tmp_path / "out", data, nodes=nodes, **{**PRIVATE, "rounds": 1, "noise": 1.0})
    assert (result.rounds[0].clients, list(result.rounds[0].lost)) == (3, ["ward"])
    assert result.report["epsilon"] == pytest.approx(accounted(1.0, 1.0, 1))
    assert privacy.accountant() is not None


@pytest.mark.parametrize("dp", ["central", "local"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda v: v * float("nan"), "its update holds NaN or infinity"),
        (lambda v: v[:5], "its update is of a wrong shape"),
        (lambda v: v.long(), "its update is of a wrong shape"),
    ],
)
def test_a_bad_update_is_named_before_it_is_added_up(data, dp, change, why):
    def damaged(message, answer):
        reply = answer(message)
        reply.content[ARRAYS] = record({VECTOR: change(tensors(reply.content.array_records[ARRAYS])[VECTOR])})
        return reply

    ran = run(data, {**PRIVATE, "rounds": 1, "dp": dp}, bend=of(2, TRAIN, damaged))
    assert [(r.clients, r.lost) for r in ran.rounds] == [(3, {"client 1": why})]
    assert bool(ran.moved.isfinite().all())
