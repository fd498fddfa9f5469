"""`ckks` beside `clear`: the same Program, on ciphertexts, within a stated error. Rings here are small and insecure."""

import tempfile
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from blindformer.models.compile import AnswerOutOfRange, compile
from blindformer.models.encrypted import Encrypted, circuit_for, real_values
from blindformer.models.loading.heads import SentenceEncoder
from blindformer.models.program.program import ProgramError
from blindformer.protocols.ckks import affine
from blindformer.protocols.ckks.choosing import circuit_of
from blindformer.protocols.ckks.circuit import Mix, QueryMix, QueryScores, Scores
from blindformer.protocols.ckks.evaluator import each
from blindformer.protocols.ckks.exact import Exact
from blindformer.protocols.ckks.packing import packing_for, score_layout
from blindformer.protocols.ckks.parameters import (
    DEVIATION,
    MOST_BITS,
    CkksError,
    Parameters,
    TooDeep,
    insecure_parameters,
    most_levels,
    parameters_for,
)
from blindformer.protocols.ckks.rotation_keys import MOST, SLACK, chain, compose, hops
from blindformer.tests.models.conftest import clear, make
from blindformer.tests.protocols.programs import Draft
from blindformer.tests.shared.deployment import eventually
from blindformer.tests.shared.processes import PROCESSES, alone
from hypothesis import given
from hypothesis import strategies as st

ERROR = 2.0**-12
"""Of a logit, at a scale of 40 bits. `clear` has 16 fractional bits, and its own roundings are most of it."""
HIDDEN = ERROR + 6 * DEVIATION
"""The same of a reply, whose noise hides the weights."""


def request(encrypted, number=1):
    """What a client sends."""
    inputs = encrypted.compiled.encode_inputs(make("bert-labels", "he").batches[number])
    return encrypted.keys.encrypt(real_values(encrypted.compiled.program, inputs))


def small(compiled, slots=1024):
    """The circuit in a ring that protects nothing."""
    program = compiled.program
    known = real_values(compiled.program, {**compiled.weights, **compiled.constants})
    circuit = circuit_of(program.instructions, program.outputs, known, program.client, slots)
    return circuit, insecure_parameters(2 * slots, circuit.levels)


def test_a_linear_by_several_matrices_is_refused():
    d = Draft()
    x, weight = d.client(torch.ones(1, 2, 3, 4)), d.weight(torch.ones(2, 4, 3))
    case = d.case(d("linear", x, weight))
    known = {name: value.double().numpy() for name, value in case.weights.items()}
    with pytest.raises(CkksError, match=r"a linear by several matrices \[2, 4, 3\]; ckks knows one for all rows"):
        circuit_of(case.program.instructions, case.program.outputs, known, {}, 1024)


def test_two_layers_and_a_head_are_those_of_clear(encrypted):
    """Padded texts among them; the pooler is a cubic."""
    for batch in make("bert-labels", "he").batches[:2]:
        expected = clear(encrypted.compiled, batch)
        for name, value in encrypted.query(batch).items():
            assert (value - expected[name]).abs().max() < HIDDEN


def test_a_layer_costs_six_levels(encrypted):
    """Per layer six, then the map to the pooler, its cubic (two), and the classifier."""
    assert sum(used for _, used, _ in encrypted.circuit.by_path()) == encrypted.circuit.levels
    assert encrypted.circuit.levels == 6 * 2 + 4
    rows = encrypted.circuit.by_path()
    assert sum(own for _, own, _ in rows) == rows[-1][2] == encrypted.circuit.levels


def test_worker_processes_find_the_same():
    alone(workers_find_the_same)


def workers_find_the_same():
    """To the last bit, in two layers with an activation between: a map, a product, a map."""
    from blindformer.protocols.ckks.evaluator import Evaluator

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)).eval()
    batches = [{"input": torch.randn(1, 128, 8)} for _ in range(4)]
    compiled = compile(model, batches, "he")
    encrypted = Encrypted(compiled, small(compiled))
    evaluator = Evaluator(encrypted.circuit, encrypted.parameters, keep=0, workers=2)
    split = [getattr(step, "blocks", ()) or getattr(step, "pairs", ()) for step in encrypted.circuit.steps]
    assert [len(parts) for parts in split] == [2, 2, 1], "a map and a product have work for both"
    inputs = real_values(compiled.program, compiled.encode_inputs(batches[1]))
    asked = encrypted.keys.encrypt(inputs)
    one, two = (some.run(asked, encrypted.keys.evaluation) for some in (encrypted.evaluator, evaluator))
    assert not evaluator.plaintexts, "there is no room for any"
    assert all(map(torch.equal, *(encrypted.decode(answers).values() for answers in (one, two))))


def test_weights_that_are_encoded_ahead_are_those_that_a_request_meets(encrypted):
    from blindformer.protocols.ckks.evaluator import Evaluator

    evaluator = Evaluator(encrypted.circuit, encrypted.parameters)
    evaluator.prepare()
    ahead = set(evaluator.plaintexts)
    evaluator.run(request(encrypted), encrypted.keys.evaluation)
    assert ahead
    assert set(evaluator.plaintexts) == ahead


def test_a_worker_that_fails_is_an_error():
    alone(a_worker_fails)


def a_worker_fails():
    with pytest.raises(CkksError, match="ended before"):
        each([1, 2], lambda part: 1 / 0, lambda file: file, workers=2)


def work_in(folder):
    tempfile.tempdir = str(folder)
    each([1, 2], lambda part: time.sleep(1), lambda file: file, workers=2)


def test_what_a_killed_process_had_begun_is_cleared_away(tmp_path):
    process = PROCESSES.Process(target=work_in, args=(tmp_path,), daemon=True)
    process.start()
    eventually(lambda: len(psutil.Process(process.pid).children()) == 2, "its processes")
    assert list(tmp_path.iterdir())
    process.kill()
    process.join()
    eventually(lambda: not list(tmp_path.iterdir()), "nothing is left")


def test_workers_are_not_forked_beside_threads():
    done = threading.Event()
    beside = threading.Thread(target=done.wait)
    beside.start()
    try:
        with pytest.raises(CkksError, match="one thread"):
            each([1, 2], lambda part: part, lambda file: file, workers=2)
    finally:
        done.set()
        beside.join()


def test_what_is_lost_is_known_by_layer(encrypted):
    rows = encrypted.precision_by_layer(make("bert-labels", "he").batches[0])
    assert [row.path for row in rows] == [path for path, _, _ in encrypted.circuit.by_path()]
    assert rows[-1].levels == encrypted.circuit.levels
    assert 0 < rows[-1].error < ERROR
    assert all(row.bits > 12 for row in rows)


def test_an_answer_for_another_key_is_an_error(encrypted):
    other = Encrypted(encrypted.compiled, (encrypted.circuit, encrypted.parameters))
    answers = encrypted.evaluator.run(request(encrypted), encrypted.keys.evaluation)
    with pytest.raises(AnswerOutOfRange):
        other.decode(answers)


def test_keys_are_for_the_rotations_that_are_needed_and_refused_without_them(encrypted):
    from blindformer.protocols.ckks.keys import EvaluationKeys

    assert len(encrypted.keys.evaluation.galois) == len(encrypted.circuit.rotations())
    lacking = EvaluationKeys(encrypted.keys.evaluation.relinearise, encrypted.keys.evaluation.public, {})
    with pytest.raises(CkksError, match="lack"):
        encrypted.evaluator.run({}, lacking)


def test_a_program_of_another_plan_is_refused():
    with pytest.raises(ProgramError, match=r"reached.*ckks does not offer"):
        circuit_for(make("bert-labels", "faithful").compiled)


def test_a_program_too_deep_says_by_how_many_levels_and_where(monkeypatch):
    for degree in MOST_BITS:
        monkeypatch.setitem(MOST_BITS, degree, 300)  # of which 16 levels need 564
    with pytest.raises(TooDeep, match=r"layer\.1\..*16 levels needed, 7 possible at 128 bits.*up to bert"):
        circuit_for(make("bert-labels", "he").compiled)


# Parameters.


@pytest.mark.parametrize("degree", MOST_BITS)
def test_the_deepest_parameters_of_a_ring_are_at_128_bits_and_one_level_more_is_not(degree):
    levels = most_levels(degree)
    if levels:
        assert sum(parameters_for(degree, levels).prime_bits) <= MOST_BITS[degree]
    assert parameters_for(degree, levels + 1) is None


def test_below_128_bits_is_refused():
    with pytest.raises(CkksError, match="below 128-bit security"):
        Parameters(8192, 40, 7)
    assert not insecure_parameters(8192, 7).secure


def test_seal_agrees_with_the_table():
    seal = pytest.importorskip("tenseal.sealapi")
    for degree, bits in MOST_BITS.items():
        assert seal.CoeffModulus.MaxBitCount(degree, seal.SEC_LEVEL_TYPE.TC128) == bits


# Forms and packing, in the clear.


def evaluate(form, base):
    """A form's value from the elements of its one base."""
    rows = form.constant.copy()
    for term in form.terms:
        rows += np.einsum("rfs,rs->rf", term.matrix[term.kind], base[term.support])
    return rows.reshape(form.shape)


@given(st.integers(0, 10**6))
def test_forms_are_what_they_compose(seed):
    random = np.random.default_rng(seed)
    x, weight, gain = random.normal(size=(2, 3, 4)), random.normal(size=(4, 6)), random.normal(size=(3, 6))
    form = affine.linear(affine.identity(0, x.shape), weight)
    form = affine.times(affine.add(form, affine.known(gain[0])), gain)
    expected = (x @ weight + gain[0]) * gain
    at = random.permutation(36).reshape(2, 9, 2)
    moved = affine.add(affine.gather(form, at), affine.known(np.ones(2)))
    assert np.allclose(evaluate(form, x.reshape(-1)), expected)
    assert np.allclose(evaluate(moved, x.reshape(-1)), expected.reshape(-1)[at] + 1)
    assert np.allclose(evaluate(affine.total(form), x.reshape(-1)), expected.sum(-1, keepdims=True))


def test_no_two_elements_share_a_slot():
    packing = packing_for(2048, 2, 8, 32, attention=True)
    for layout in (packing.natural((2, 4, 8, 8)), packing.natural((2, 8, 96)), score_layout(packing, 2, 4, 8, 4)):
        places = (layout.block[:, None] * layout.slots + layout.everywhere).reshape(-1)
        assert len(np.unique(places)) == len(places)
        values = torch.arange(len(layout.slot)).double().numpy()
        assert np.array_equal(layout.collect(layout.spread(values)), values)


def test_texts_that_fit_no_ciphertext_are_refused():
    with pytest.raises(CkksError, match="compile for fewer texts"):
        packing_for(1024, 64, 32, 64, attention=True)


# Rotations from few keys: chains of rotations, and rotations made of others.

SLOTS = 64
rotations = st.sets(st.integers(-SLOTS, 2 * SLOTS), max_size=20)


@given(rotations)
def test_a_chain_reaches_every_rotation_from_one_that_came_before(wanted):
    chained = chain(wanted, SLOTS)
    assert set(chained) == {r % SLOTS for r in wanted} - {0}
    reached = {0}
    for rotation, before in chained.items():
        assert before in reached
        reached.add(rotation)


@pytest.mark.parametrize(
    ("wanted", "steps"), [(range(0, SLOTS, 8), {8}), ([-12, -8, -4, 4, 8], {4, SLOTS - 4}), ([], set())]
)
def test_evenly_spaced_rotations_have_a_step_each_way(wanted, steps):
    assert hops(chain(wanted, SLOTS), SLOTS) == steps


work = st.dictionaries(st.integers(1, SLOTS - 1), st.floats(0.1, 100), max_size=12)


@given(work)
def test_what_a_rotation_is_made_of_adds_up_to_it_at_no_more_than_was_allowed(work):
    composed = compose(work, SLOTS)
    for rotation, steps in composed.items():
        assert sum(steps) % SLOTS == rotation
        assert 1 <= len(steps) <= MOST
    assert sum(amount * len(composed[r]) for r, amount in work.items()) <= (1 + SLACK) * sum(work.values()) * (1 + 1e-9)


def test_only_a_rotation_that_is_made_often_keeps_its_key():
    composed = compose({1: 100.0, 2: 1.0, 4: 1.0}, SLOTS)
    assert {key for keys in composed.values() for key in keys} == {1}
    assert compose({1: 10.0, 2: 100.0}, SLOTS)[2] == (2,)


@pytest.mark.parametrize("slots", [SLOTS, 1 << 14])
def test_nothing_to_rotate_needs_no_key(slots):
    assert compose({}, slots) == {}
    assert chain([0, slots], slots) == {}


# The circuit itself, on real numbers and without keys: planning, packing and rotations of every kind of model.


def exact(name):
    """(circuit, its results, those of `clear`) for a padded text, or an image."""
    compiled, batch = make(name, "he").compiled, make(name, "he").batches[1]
    circuit, _ = small(compiled)
    values = real_values(compiled.program, compiled.encode_inputs(batch))
    return circuit, Exact(circuit, values).run(), clear(compiled, batch)


# Padding, eager attention, a causal mask, rotary positions and grouped queries, an image and its concatenated token.
@pytest.mark.parametrize("name", ["bert-labels", "bert-eager", "gpt2", "llama", "vit-labels"])
def test_a_circuit_computes_what_clear_does(name):
    _, computed, expected = exact(name)
    for output, value in expected.items():
        size = max(1.0, float(value.abs().max()))
        assert np.abs(computed[output] - value.numpy()).max() < 2 * ERROR * size


def test_the_mean_of_a_text_without_its_padding():
    """The denominator is the client's own, so nothing is divided by."""
    model = SentenceEncoder(make("bert", "he").model, "mean")
    batches = make("bert", "he").batches
    compiled = compile(model, batches, "he")
    circuit, _ = small(compiled)
    computed = Exact(circuit, real_values(compiled.program, compiled.encode_inputs(batches[1]))).run()
    (expected,) = clear(compiled, batches[1]).values()
    (value,) = computed.values()
    assert np.abs(value - expected.numpy()).max() < 2 * ERROR * max(1.0, float(expected.abs().max()))


def test_attention_of_one_query_is_one_product_with_all_keys():
    """The first layer is for all tokens of a text, the last one for the token that the pooler reads."""
    circuit, _, _ = exact("bert-labels")
    kinds = {
        kind: [step for step in circuit.steps if type(step) is kind] for kind in (Scores, Mix, QueryScores, QueryMix)
    }
    assert [len(steps) for steps in kinds.values()] == [1, 1, 1, 1]
    assert len(kinds[Scores][0].results) == 8
    assert len(kinds[QueryScores][0].results) == 1
