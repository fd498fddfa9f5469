"""A run in one process: it learns, repeats, goes on after a kill, and names the clients whose updates do not count."""

import io
import json

import numpy as np
import pytest
import torch
from blindformer.federated.client import client_app
from blindformer.federated.examples import OWN, PARTITION, ExampleSource
from blindformer.federated.federate import REPORT, WORK, federate
from blindformer.federated.messages import ARRAYS, METRICS, answer, record, refusal, summary
from blindformer.federated.privacy import spent
from blindformer.federated.settings import FederateError
from blindformer.federated.strategies import STRATEGIES
from blindformer.federated.subject import About
from blindformer.models.building import compile_folder
from blindformer.models.distillation.batches import pixels
from blindformer.models.loading.load import load
from blindformer.parties.client.evaluation import evaluate
from flwr.app import Array, ArrayRecord, Error, Message
from flwr.clientapp import ClientApp

from .conftest import SMALL, of, partitions, run, squares


class Killed(Exception):
    """The server's end."""


def weights(result):
    return load(result.folder).model.state_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    return federate(tmp_path_factory.mktemp("trained") / "out", data, **{**SMALL, "rounds": 6, "alpha": 0.5})


def test_it_learns_and_says_so(trained):
    assert trained.rounds[-1].accuracy > trained.rounds[0].accuracy or trained.rounds[0].accuracy == 1.0
    assert trained.report["test_accuracy"] >= 0.9
    assert [r.clients for r in trained.rounds] == [4] * 6
    assert trained.report["epsilon"] is None
    assert json.loads((trained.folder / REPORT).read_text()) == trained.report
    assert not (trained.folder / WORK).exists()


def test_what_comes_out_compiles_and_is_judged_as_it_is(trained, data, tmp_path):
    """With the plan of its folder, in fixed point: no step between training and private runs."""
    pytest.importorskip("PIL")
    loaded = load(trained.folder)
    compile_folder(loaded, tmp_path / "compiled")
    assert {p.name for p in (tmp_path / "compiled").iterdir()} >= {"server", "client"}
    judged = evaluate(loaded, data, protocols=("torch", "clear"))
    row = judged.row("approximated", "clear")
    assert row.accuracy.value == pytest.approx(trained.report["test_accuracy"], abs=0.051)
    assert (row.refused, judged.plan) == (0, "fast")


def test_files_are_read_as_they_were_trained_on(trained, data):
    image = pytest.importorskip("PIL.Image")
    loaded = load(trained.folder)
    one = data.test.take([3])
    read = loaded.encode_file(image.fromarray(one.inputs[0].numpy()))["pixel_values"]
    assert torch.allclose(read, pixels(one).batch([0])["pixel_values"], atol=1e-6)


def test_the_same_seed_gives_the_same_weights_and_a_kill_changes_nothing(data, tmp_path):
    settings = {**SMALL, "strategy": "fedadam", "rounds": 3}

    def kill(round_, total):
        if round_.number == 2:
            raise Killed

    whole = federate(tmp_path / "whole", data, **settings)
    with pytest.raises(Killed):
        federate(tmp_path / "killed", data, progress=kill, **settings)
    seen = []
    again = federate(tmp_path / "killed", data, progress=lambda round_, total: seen.append(round_.number), **settings)
    assert seen == [3]
    assert [r.number for r in again.rounds] == [1, 2, 3]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(again)[name]), name


@pytest.mark.parametrize("dp", ["central", "local", "example"])
def test_a_round_that_was_cut_off_is_spent_and_so_is_its_repetition(data, tmp_path, dp):
    """Something may have been seen of either, under noise of its own."""

    def cut(message, answer):
        answer(message)
        raise Killed

    given = {**SMALL, "rounds": 2, "epochs": 1, "dp": dp, "noise": 2.0, "sample": 0.2 if dp == "example" else 1.0}
    for _ in range(2):
        with pytest.raises(Killed):
            run(data, given, folder=tmp_path, bend=cut)
    result = federate(tmp_path, data, **given)
    assert [r.epsilon for r in result.rounds] == [spent(2.0, given["sample"], 2 + n, 1e-5) for n in (1, 2)]
    assert result.report["epsilon"] == result.rounds[-1].epsilon


def test_a_folder_belongs_to_one_run(data, tmp_path):

    def shorter(round_):
        round_.settings = round_.settings.model_copy(update={"rounds": 1})

    run(data, SMALL, folder=tmp_path, change=shorter)
    with pytest.raises(FederateError, match="belongs to a run with other settings"):
        federate(tmp_path, data, **{**SMALL, "seed": 5})


@pytest.mark.parametrize(("strategy", "fraction"), [*((name, 1.0) for name in sorted(STRATEGIES)), ("fedavg", 0.5)])
def test_every_strategy_finishes_a_round(strategy, fraction, data):
    ran = run(data, {**SMALL, "rounds": 1, "epochs": 1, "strategy": strategy, "fraction": fraction})
    assert [r.clients for r in ran.rounds] == [4 * fraction]


# --- bad input -------------------------------------------------------------------------------------------------------


def faulty(data, **faults):
    """An app whose clients answer as `faults` says by their number; the others do as they should."""
    good, app = client_app(ExampleSource(data)), ClientApp()

    @app.train()
    def train(message, context):
        fault = faults.get(f"client_{context.node_config.get(PARTITION)}")
        return good(message, context) if fault is None else fault(message, good(message, context))

    return app


def changed(change):
    def fault(message, reply):
        values = {name: change(torch.from_numpy(a.numpy().copy())) for name, a in reply.content[ARRAYS].items()}
        return answer(message, "client x", **{ARRAYS: record(values), METRICS: summary(3.0, 0.1)})

    return fault


def unreadable(data, kind="numpy.ndarray"):
    """An update whose first array is these bytes."""

    def fault(message, reply):
        values = {name: Array("float32", (1,), kind, data) for name in reply.content[ARRAYS]}
        return answer(message, "client x", **{ARRAYS: ArrayRecord(values), METRICS: summary(3.0, 0.1)})

    return fault


def npz():
    """A file that numpy's reader takes, and gives no array for."""
    np.savez(file := io.BytesIO(), a=np.zeros(2))
    return file.getvalue()


def crash(message, reply):
    raise RuntimeError("out of memory")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (changed(lambda v: v * float("nan")), "its update holds NaN or infinity"),
        (changed(lambda v: v.reshape(-1)[:3]), "its update is of a wrong shape: classifier"),
        (changed(lambda v: v.long()), "its update holds no floating-point numbers"),
        (unreadable(b"garbage"), "its update holds what is no array of numbers"),
        (unreadable(b""), "its update holds what is no array of numbers"),
        (unreadable(npz()), "its update holds what is no array of numbers"),
        (unreadable(b"garbage", "pickle"), "its update holds what is no array of numbers"),
        (
            lambda m, r: answer(m, "client x", **{ARRAYS: r.content[ARRAYS], METRICS: summary(3.0, [0.1])}),
            "its loss is no number",
        ),
        (lambda m, r: answer(m, "client x"), "its reply lacks an update"),
        (
            lambda m, r: answer(m, "client x", **{ARRAYS: r.content[ARRAYS], METRICS: summary(-1.0, 0.1)}),
            "its number of examples is none",
        ),
        (lambda m, r: refusal(m, "client x", "has no examples; give it some"), "has no examples"),
        (lambda m, r: refusal(m, "\x1b[2Jx" * 999, "\x1b[31m\n[/red]" + "x" * 999), "[31m [/red]xxx"),
        (crash, "failed: RuntimeError: out of memory"),
    ],
)
def test_a_bad_update_is_named_and_the_round_goes_on(data, fault, why):
    ran = run(data, {**SMALL, "rounds": 1, "epochs": 1}, app=faulty(data, client_2=fault))
    (round_,) = ran.rounds
    assert round_.clients == 3
    ((name, reason),) = round_.lost.items()
    assert reason.startswith(why)
    assert (name + reason).isprintable()
    assert len(name + reason) < 500
    assert bool(ran.moved.isfinite().all())


def test_what_a_superlink_answers_for_a_node_that_is_gone_is_silence(data):
    def gone(message, answer):
        reply = Message(Error(1, "node unavailable"), reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = 99
        return reply

    (round_,) = run(data, {**SMALL, "rounds": 1, "epochs": 1}, bend=of(3, "train", gone)).rounds
    assert (round_.clients, round_.lost) == (3, {"node 3": "did not answer in time"})


def test_a_client_of_another_version_or_without_examples_says_so(data, tmp_path):
    given, empty = {**SMALL, "rounds": 1, "epochs": 1}, tmp_path / "own"
    (empty / "upper left").mkdir(parents=True)
    (round_,) = run(data, given, nodes=partitions(3) | {4: {OWN: str(empty), "name": "ward"}}).rounds
    assert list(round_.lost) == ["ward"]
    assert "holds no images" in round_.lost["ward"]

    def older(federation):
        federation.about = About(**{**vars(federation.about), "version": "9.9"})

    (round_,) = run(data, given, change=older).rounds
    assert round_.clients == 0
    assert all(why.endswith("the server 9.9; install the same") for why in round_.lost.values())


def test_a_run_without_any_client_is_no_model(data, tmp_path):
    nobody = {1: {"name": "ward"}}
    with pytest.raises(FederateError, match="no client took part in any round; ward: has neither partition-id nor"):
        federate(tmp_path / "out", data, nodes=nobody, **{**SMALL, "clients": 1, "rounds": 1})
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_client_that_diverges_says_so_and_sends_nothing(data, tmp_path):
    with pytest.raises(FederateError, match="client 0: its weights are not finite after training; lower the rate"):
        federate(tmp_path / "out", data, **{**SMALL, "rounds": 1, "rate": 1e20})


def test_a_client_with_its_own_folder_of_images(data, tmp_path):
    """Of one class alone: it takes part, as Dirichlet parts do."""
    image = pytest.importorskip("PIL.Image")
    own = tmp_path / "own" / "Lower right"
    own.mkdir(parents=True)
    for number, square in enumerate(squares(16, 9).items):
        if number % 4 == 3:
            image.fromarray(square.numpy()).save(own / f"{number}.png")
    settings = {**SMALL, "clients": 3, "rounds": 1, "epochs": 1}
    nodes = partitions(2) | {3: {OWN: str(own.parent), "name": "ward"}}
    result = federate(tmp_path / "out", data, nodes=nodes, **settings)
    assert (result.rounds[0].clients, result.rounds[0].lost) == (3, {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clients": 90}, "90 clients: there are 96 examples to share"),
        ({"strategy": "fedmedian", "secagg": True}, "compares single updates, which secagg hides"),
        ({"secagg": True, "clients": 2}, "secagg with 2 clients hides nothing"),
        ({"dp": "example"}, "with dp example a round is one step, not epochs"),
        ({"hidden": 18}, "give a multiple of 4"),
        ({"trained": 2}, "trained: is for texts, and squares holds images; leave it out"),
    ],
)
def test_what_cannot_be_is_one_line(data, tmp_path, settings, message):
    with pytest.raises(FederateError, match=message) as error:
        federate(tmp_path / "out", data, **{**SMALL, **settings})
    assert "\n" not in str(error.value)


def test_clients_that_never_come(data):
    with pytest.raises(FederateError, match=r"5 clients asked for, 4 connected in 0.1 s; start the others"):
        run(data, {**SMALL, "clients": 5, "timeout": 0.1}, nodes=partitions(4))
