"""What leaves a client that adds noise itself: beside noised numbers, the same whatever its examples are."""

from __future__ import annotations

import warnings

import pytest
import torch
from blindformer.federated.client import NothingLearned, client_app
from blindformer.federated.examples import ExampleSource
from blindformer.federated.learning import EXTRA, flat
from blindformer.federated.messages import ARRAYS, VECTOR, tensors
from blindformer.federated.secure_server import SecureRound
from blindformer.federated.settings import FederateSettings
from blindformer.models.data import Examples
from flwr.app import Message, RecordDict

from .conftest import SMALL, Wire, run, squares

NOISE, CLIP = 50.0, 0.1
GIVEN = {**SMALL, "epochs": 1, "rounds": 1, "noise": NOISE, "clip": CLIP, "sample": 1.0}


class Unreadable(ExampleSource):
    def examples(self, *arguments):
        raise ValueError("row 17: Jane Doe has no date of birth")


def white(count):
    """Alike, of one class, and fewer."""
    return Examples(torch.full((count, 4, 4), 255, dtype=torch.uint8), [0] * count)


def sent(data, source, monkeypatch, **changes):
    """A round. (the replies, the weights before, what the secure sum gave)."""
    sums, total = [], SecureRound.total

    def kept(session, replies):
        sums.append(total(session, replies))
        return sums[-1]

    monkeypatch.setattr(SecureRound, "total", kept)
    before = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingLearned)
        ran = run(
            data,
            {**GIVEN, **changes},
            source=source,
            change=lambda federation: before.append(federation.subject.state()),
        )
    monkeypatch.undo()
    assert [(r.clients, r.lost) for r in ran.rounds] == [(4, {})]
    return ran.wire.received, flat(before[0]), [sum_[0] for sum_ in sums]


def exact(reply):
    """All of a message that has no noise on it and is no key, share or mask: these are random, of a known length."""
    assert not reply.has_error()
    content = reply.content
    arrays = {name: tensors(record) for name, record in content.array_records.items()}
    tails = {name: values[VECTOR][-EXTRA:].tolist() for name, values in arrays.items()
             if VECTOR in values and values[VECTOR].is_floating_point()}  # fmt: skip
    shapes = {name: {n: (v.dtype, v.shape) for n, v in values.items()} for name, values in arrays.items()}
    metrics = {name: dict(record) for name, record in content.metric_records.items()}
    configs = {name: {key: random(value) for key, value in record.items()}
               for name, record in content.config_records.items()}  # fmt: skip
    return reply.metadata.src_node_id, reply.metadata.message_type, tails, shapes, metrics, configs


def random(value):
    if isinstance(value, list):
        return [random(one) for one in value]
    return len(value) if isinstance(value, bytes) else value


@pytest.mark.parametrize("secagg", [False, True])
@pytest.mark.parametrize("dp", ["local", "example"])
def test_nothing_but_noised_numbers_tells_of_the_examples(data, monkeypatch, dp, secagg):
    """Of some, of few and alike, of some that cannot be read. And the noise is of the size that is told."""
    some, alike = (type(data)(data.name, data.kind, data.labels, examples, data.validation, data.test, {})
                   for examples in (squares(20, 0), white(8)))  # fmt: skip
    seen = [
        sent(data, s, monkeypatch, dp=dp, secagg=secagg)
        for s in (ExampleSource(some), ExampleSource(alike), Unreadable())
    ]
    transcripts = [sorted(map(exact, replies), key=str) for replies, _, _ in seen]
    assert len(transcripts[0]) == (16 if secagg else 4)
    assert transcripts[0] == transcripts[1] == transcripts[2]
    sums = [total[-EXTRA:].tolist() for _, _, totals in seen for total in totals]
    assert all(tail == sums[0] for tail in sums)
    assert len(sums) == (3 if secagg else 0)
    for replies, before, _ in [] if secagg else seen:
        for reply in replies:
            values = tensors(reply.content.array_records[ARRAYS])
            if dp == "local":
                moved, deviation = values[VECTOR][:-EXTRA].double(), 2 * NOISE * CLIP
            else:  # a step at this rate, divided by the 24 examples that a client is taken to have
                moved, deviation = flat(values) - before, SMALL["rate"] * NOISE * CLIP / 24
            assert float(moved.std()) == pytest.approx(deviation, rel=5 / len(moved) ** 0.5)


@pytest.mark.filterwarnings("ignore::blindformer.federated.client.NothingLearned")
def test_the_client_alone_hears_that_nothing_was_learned(data):
    with pytest.warns(NothingLearned, match="client 0: row 17: Jane Doe has no date of birth; it sends an"):
        run(data, {**GIVEN, "dp": "local"}, source=Unreadable())


@pytest.mark.parametrize("kind", ["evaluate", "query", "train.weights"])
def test_clients_answer_no_other_questions(data, kind):
    """No accuracy, no size of a table: there are no rounds of evaluation."""
    grid = Wire(client_app(ExampleSource(data)), FederateSettings(**{**GIVEN, "dp": "local"}))
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, kind)])
    assert reply.has_error()
