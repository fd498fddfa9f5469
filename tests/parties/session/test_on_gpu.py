"""Two parties and a dealer on a GPU: the answers of the processor, for the same price, and nothing else comes down."""

import pytest
import torch
from blindformer.models.building import compile_lengths
from blindformer.models.generation.rows import KVState, run_clear
from blindformer.models.program.correlations import placeholders
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.parties.client.client import Client
from blindformer.parties.client.local import ClearSession
from blindformer.parties.session.online import passes
from blindformer.protocols.beaver.engine import OfflineEngine
from blindformer.protocols.beaver.source import CountingSource
from blindformer.protocols.errors import BlindformerError
from blindformer.protocols.ring import Ring
from blindformer.tests.gpu import GPU, KINDS, pretended
from blindformer.tests.models.generation.conftest import PREFIX, compiled, declared, model, some, spent  # noqa: F401
from blindformer.tests.parties.conftest import TEXTS
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.threads import ThreadParties

SOME = dict.fromkeys(["server", "dealer"], GPU)


@pytest.fixture(scope="module")
def inputs(loaded):
    return loaded.encode(TEXTS[0], 16)


def of_tables(program):
    """Bytes of the cells and numbers that the dealer's tables are read at, and of the words that it makes of them."""
    engine = OfflineEngine(CountingSource(), Ring(program.ring), placeholders(program))
    interpret(program, engine)
    engine.offline.finish()
    groups = engine.offline.groups
    return tuple(
        sum(group.count * each(group.layout) for group in groups)
        for each in (lambda layout: layout.gathered, lambda layout: 8 * layout.words)
    )


@pytest.mark.parametrize("gpu", KINDS)
@pytest.mark.parametrize("where", [{"device": "cuda"}, {"devices": SOME}], ids=["all", "client on the processor"])
def test_answers_and_prices_are_those_of_the_processor(classifier, inputs, where, gpu):
    with ClearSession(classifier.compiled) as clear:
        expected = clear.query(inputs).outputs
    with gpu(), ThreadParties(classifier.compiled, timeout=PATIENCE, **where) as session:
        answer = session.query(inputs)
    costs = price(classifier.compiled.program)
    online = answer.timings.online
    assert (answer.timings.rounds, online.sent, online.received) == (costs.rounds, costs.up, costs.down)
    for name, value in answer.outputs.items():
        torch.testing.assert_close(value, expected[name], atol=0.003, rtol=0)


def test_nothing_comes_down_but_what_is_sent(classifier, inputs):
    """And the answer; and where tables are read by keys, what these are made of: the cipher is the processor's. Nothing
    is waited for but that, and the first number of a Fourier series."""
    program = classifier.compiled.program
    with pretended() as gpu, ThreadParties(classifier.compiled, timeout=PATIENCE, device="cuda") as session:
        session.query(inputs)  # finds out which weights are bytes
        gpu.bytes.clear()
        answer = session.query(inputs)
    costs, (gathered, words) = price(program), of_tables(program)
    sent = costs.up + costs.down + costs.dealt_bytes - words
    answers = 8 * sum(value.numel() for value in answer.outputs.values())
    assert gpu.bytes["down"] == sent + gathered + answers
    assert gpu.bytes["waits"] == sum(item.op == "fourier" for item in program.instructions)


def test_a_conversation_keeps_its_rows_there(compiled):  # noqa: F811
    text, costs = some(40).tolist(), []

    def priced(name, answer):
        costs.append((spent(answer), declared(compiled.program.part(name), answer)))

    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    with pretended(), ThreadParties(compiled, timeout=PATIENCE, device="cuda") as session:
        private = KVState(compiled.program, passes(session.client, compiled.parts, priced), PREFIX)
        for read in (text[:8], text[8:9], text[9:17]):
            torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)
    assert costs
    assert all(metered == wanted for metered, wanted in costs)


@pytest.mark.parametrize("party", ["server", "client", "dealer"])
def test_a_model_that_does_not_fit_is_refused_before_it_is_asked(classifier, inputs, party, monkeypatch):
    with pretended():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
        with (
            pytest.raises(BlindformerError, match=r"GB"),
            ThreadParties(classifier.compiled, timeout=PATIENCE, devices={party: GPU}) as session,
        ):
            session.query(inputs)


def test_public_weights_go_up_once(loaded, inputs):
    public_weights = compile_lengths(loaded, [16], texts=TEXTS, weights="public")[16]
    with pretended() as gpu, ThreadParties(public_weights, timeout=PATIENCE, device="cuda") as session:
        ups = []
        for _ in range(3):
            gpu.bytes.clear()
            session.query(inputs)
            ups.append(gpu.bytes["up"])
    size = sum(value.nbytes for value in public_weights.constants.values())
    assert ups[0] > ups[1] + size
    assert ups[1] == ups[2]


def test_a_client_that_only_splits_its_data_has_no_device(classifier):
    with pretended(), pytest.raises(BlindformerError, match=r"^device: a client of topology helper only splits"):
        Client("localhost:1", helper="localhost:2", folder=classifier.folder, topology="helper", device="cuda")
