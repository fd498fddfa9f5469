"""A client's terms: it refuses a round that falls short of them before it trains; the report says so; others go on."""

from __future__ import annotations

import pytest
from blindformer.federated import client as clients
from blindformer.federated.deploy import Deployment
from blindformer.federated.examples import PARTITION
from blindformer.federated.federate import federate
from blindformer.federated.messages import CONFIG, KEYS
from blindformer.federated.settings import FederateError, FederateSettings
from blindformer.federated.terms import Terms, node_configs

from .conftest import SMALL, partitions, run

GIVEN = {**SMALL, "epochs": 1, "rounds": 2}
NOISY, SECURE = {"dp": "local", "noise": 0.5}, {"secagg": True}


@pytest.mark.parametrize(
    ("terms", "settings", "why"),
    [
        ("least-noise=1.0", NOISY, "noise 0.5 is asked for, its least-noise is 1; raise the noise, or lower epsilon"),
        ("least-noise=0.1", SECURE, "noise 0 is asked for, its least-noise is 0.1; choose a kind of dp"),
        ('needs-dp="local,example"', SECURE, "dp none is asked for, its needs-dp is local,example; use that"),
        ("needs-secagg=true", {}, "secagg false is asked for, its needs-secagg is true; turn secagg on"),
        ("most-rounds=1", SECURE, "round 2 is asked for, its most-rounds is 1; ask for fewer"),
        ('least-noise=0.5 most-rounds=2 needs-secagg=true needs-dp="local"', {**NOISY, **SECURE}, None),
    ],
)
def test_a_round_below_a_clients_terms_is_refused_before_it_trains(data, tmp_path, monkeypatch, terms, settings, why):
    trained = []
    learned = clients._Task.learned
    monkeypatch.setattr(clients._Task, "learned", lambda task: (trained.append(task.name), learned(task))[1])
    result = federate(tmp_path / "out", data, nodes=node_configs([f"2: {terms}"], 4), **{**GIVEN, **settings})
    takes = 2 if why is None else 1 if "rounds" in terms else 0
    for round_ in result.rounds:
        lost = {"client 2": why} if round_.number > takes else {}
        assert (round_.clients, round_.lost) == (4 - len(lost), lost)
    assert [trained.count(f"client {n}") for n in range(4)] == [2, 2, takes, 2]


def test_the_server_cannot_say_one_thing_and_ask_for_another(data):
    """Noise below its terms in the question itself; a round's number that stands still."""

    def lie(message):
        if CONFIG in message.content.config_records and message.metadata.message_type != KEYS:
            message.content[CONFIG]["noise"] = 2.0 if message.metadata.dst_node_id == 2 else 0.0
            message.content[CONFIG]["server-round"] = 1

    nodes = node_configs(["1: most-rounds=1", "3: least-noise=1.0"], 4)
    given = {**GIVEN, "rounds": 3, "dp": "local", "noise": 2.0, "secagg": True}
    rounds = run(data, given, nodes=nodes, ask=lie).rounds
    assert all(r.lost["client 3"].startswith("noise 0 is asked for") for r in rounds)
    assert rounds[1].lost["client 1"] == "round 2 is asked for, its most-rounds is 1; ask for fewer"


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["least_noise=1"], "unknown key 'least_noise'; use partition-id, data, name, text, label, encoding, needs"),
        (["least-noise=-1"], "least-noise: Input should be greater than or equal to 0"),
        (['needs-dp="perhaps"'], "needs-dp: 'perhaps' is none of none, central, local, example"),
        (["needs-secagg=1"], "needs-secagg: Input should be a valid boolean"),
        (["least-noise= 1.0"], "give key=value, as in"),
        (["2:"], "give key=value, as in"),
        (["4: least-noise=1.0"], "there are 4 clients; use 0 and up"),
        (["name=ward"], "a value is a number, true, false, or a text in quotes"),
    ],
)  # fmt: skip
def test_terms_that_nobody_understands_are_refused(texts, why):
    with pytest.raises(FederateError) as error:
        node_configs(texts, 4)
    assert str(error.value).startswith("node configuration")
    assert why in str(error.value)
    assert "\n" not in str(error.value)


def test_a_term_that_a_run_has_no_use_for_is_refused(data, tmp_path):
    with pytest.raises(FederateError, match="trusted-others: needs secagg and dp example"):
        federate(tmp_path / "out", data, nodes=node_configs(["trusted-others=2"], 4), **GIVEN)


def test_a_slip_in_a_nodes_own_configuration_is_no_free_pass(data):
    nodes = partitions(4) | {4: {PARTITION: 3, "least-nose": 1.0}}
    (round_,) = run(data, {**GIVEN, "rounds": 1}, nodes=nodes).rounds
    assert round_.clients == 3
    assert round_.lost["client 3"].startswith("node configuration: unknown key 'least-nose'; use ")


def test_a_supernode_gets_the_terms_that_it_was_given(tmp_path, monkeypatch):
    """As Flower reads them from its command line."""
    from flwr.common.config import parse_config_args

    nodes = node_configs(["least-noise=1.0", '1: needs-secagg=true name="ward 1"'], 3)
    run, started = Deployment(FederateSettings(clients=3), tmp_path, nodes), {}
    monkeypatch.setattr(run, "_flwr", lambda *words: {})
    monkeypatch.setattr(run, "_start", lambda name, command: started.update({name: command}))
    for number in range(3):
        run.start_node(number, registered=True)
    given = [command[command.index("--node-config") + 1] for command in started.values()]
    assert [parse_config_args([text]) for text in given] == list(nodes.values())
    assert Terms.of(nodes[2]) == Terms(**{"least-noise": 1.0, "needs-secagg": True})
