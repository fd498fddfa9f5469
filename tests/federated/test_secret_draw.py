"""Central differential privacy below fraction 1: the draw, which epsilon counts on, is in nothing that is published."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from blindformer.federated import rounds
from blindformer.federated.federate import REPORT, federate
from blindformer.federated.messages import KEYS, SECURE, SHARES, TRAIN, UNMASK
from blindformer.federated.privacy import Budget, spent
from blindformer.federated.settings import FederateSettings

from .conftest import SMALL, run

GIVEN = {**SMALL, "clients": 6, "rounds": 2, "epochs": 1, "dp": "central", "noise": 1.0, "clip": 0.1, "fraction": 0.5}


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(2, 5)`: these nodes are drawn from now on, of six."""

    def fix(*nodes):
        draws = iter([0.0 if i + 1 in nodes else 0.99 for i in range(6)] * 9)
        system = SimpleNamespace(random=lambda: next(draws))
        monkeypatch.setattr(rounds, "secrets", SimpleNamespace(SystemRandom=lambda: system))

    return fix


@pytest.mark.parametrize("secagg", [False, True])
def test_what_is_published_is_the_same_whoever_was_drawn(data, tmp_path, drawn, secagg):
    """History, report and checkpoint: beside the model's own figures, not a word of who, how many, or how long."""
    seen = []
    for nodes in ((), (2,), (1, 2, 3, 5, 6)):
        drawn(*nodes)
        states = []
        out = tmp_path / str(len(nodes))

        def keep(round_, total, out=out, states=states):
            state = rounds.read(out / ".federation" / rounds.CHECKPOINT)[1]
            states.append({**state, "history": [{**row, "accuracy": 0} for row in state["history"]]})

        result = federate(out, data, progress=keep, **{**GIVEN, "secagg": secagg})
        assert [(r.clients, r.lost, r.seconds, r.loss) for r in result.rounds] == [(None, {}, None, None)] * 2
        report = json.loads((out / REPORT).read_text())
        report["rounds"] = [{**row, "accuracy": 0} for row in report["rounds"]]
        seen.append((states, {**report, "test_accuracy": 0, "sites_out_of_range": 0, "weights_after": ""}))
    assert seen[0] == seen[1] == seen[2]


def test_the_mean_is_divided_by_the_number_that_is_expected():
    """So it does not tell how many there were."""
    updates = torch.ones(7, dtype=torch.float64)
    settings = FederateSettings(**{**GIVEN, "noise": 1e-12})
    means = [Budget.of(settings).release(updates, n) for n in (1.0, 5.0)]
    assert torch.allclose(means[0], updates / 3, atol=1e-9)
    assert torch.allclose(means[0], means[1], atol=1e-9)


def test_everybody_is_in_a_secure_sum_and_who_was_not_drawn_adds_nothing(data, drawn):
    """Its members see the roster, and fewer than three cannot have one: neither may depend on the draw."""
    drawn(2, 5)
    plain = run(data, {**GIVEN, "rounds": 1, "noise": 1e-9})
    assert sorted(m.metadata.dst_node_id for m in plain.wire.sent) == [2, 5]
    drawn(2, 5)
    secure = run(data, {**GIVEN, "rounds": 1, "noise": 1e-9, "secagg": True})
    assert float(plain.moved.norm()) > 0.01
    assert torch.allclose(secure.moved, plain.moved, atol=1e-6)
    assert (secure.rounds[0].lost, secure.rounds[0].epsilon) == ({}, spent(1e-9, 0.5, 1, 1e-5))
    everybody = [1, 2, 3, 4, 5, 6]
    for kind in (KEYS, SHARES, TRAIN, UNMASK):
        asked = {m.metadata.dst_node_id: m for m in secure.wire.sent if m.metadata.message_type == kind}
        assert sorted(asked) == everybody
        if kind in (SHARES, UNMASK):
            name = "ids" if kind == SHARES else "present"
            assert all(list(m.content[SECURE][name]) == everybody for m in asked.values())


@pytest.mark.parametrize("secagg", [False, True])
def test_a_round_for_which_nobody_is_drawn_releases_noise(data, drawn, secagg):
    drawn()
    ran = run(data, {**GIVEN, "secagg": secagg})
    assert [r.epsilon for r in ran.rounds] == [spent(1.0, 0.5, n, 1e-5) for n in (1, 2)]
    assert float(ran.moved.std()) == pytest.approx(2**0.5 * 0.1 / 3, rel=5 / len(ran.moved) ** 0.5)


def test_a_secure_sum_that_fails_says_no_more_than_that(data):
    ran = run(data, {**GIVEN, "rounds": 1, "secagg": True}, silent={TRAIN: [2, 3, 4]})
    assert ran.rounds[0].lost == {"round": rounds.FAILED}
    assert float(ran.moved.norm()) == 0.0
