"""Tiny configurations of many architectures, from a Hugging Face model to an answer on `clear` and on `beaver`."""

import pytest
import torch
from blindformer.approximations import approximate, restore
from blindformer.models.graph.graph import order
from blindformer.models.graph.reference import run as run_float
from blindformer.models.lowering.client_graph import run_prelude
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.models.program.revealed import FRACTION
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.models.conftest import CONFIGURATIONS
from blindformer.tests.parties.session.site import run_session
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case, check, reveal_all

UNIT = 2.0**-10
# Largest error of `clear` in units: logits up to 4.4, summed by a head of std 0.2 over features of that size.
LARGER = {("llama", "faithful"): 2.0}

every = pytest.mark.parametrize(
    ("name", "plan"), [(name, plan) for name in CONFIGURATIONS for plan in ("faithful", "fast")]
)


def approximated(made, batch):
    """The outputs of the approximated torch model, by name."""
    approximate(made.model, made.plan)
    try:
        with torch.no_grad():
            return made.model(**batch)
    finally:
        restore(made.model)


def case_of(made, batch, program=None):
    compiled = made.compiled
    return Case(program or compiled.program, compiled.encode_inputs(batch), compiled.weights, compiled.constants)


def clear(made, batch):
    case = case_of(made, batch)
    return made.compiled.decode(interpret(case.program, ClearEngine(case.sources)).outputs)


@every
def test_the_lowered_graph_is_the_model(tiny, name, plan):
    """On real numbers, at every position, padded ones too: export, rules and passes lose nothing."""
    made = tiny(name, plan)
    nodes = order(made.compiled.nodes)
    for batch in made.batches:
        values = run_prelude(made.compiled.program, made.compiled.client_tensors, batch)
        got = run_float(nodes, {node.name: values[node.name] for node in nodes if node.op == "client"})
        expected = approximated(made, batch)
        for output, node in zip(made.compiled.program.outputs, made.compiled.nodes, strict=True):
            assert (got[id(node)] - expected[output]).abs().max() < UNIT / 32


@every
def test_clear_is_the_approximated_model(tiny, name, plan):
    made = tiny(name, plan)
    for batch in made.batches:
        expected = approximated(made, batch)
        for output, got in clear(made, batch).items():
            assert got.shape == expected[output].shape
            assert (got - expected[output]).abs().max() < UNIT * LARGER.get((name, plan), 1.0)


@every
def test_beaver_computes_every_instruction_exactly(tiny, name, plan):
    """Each of the program's values follows from its own arguments in the ring, at the widths that were placed."""
    made = tiny(name, plan)
    case = case_of(made, made.batches[1], reveal_all(made.compiled.program))
    check(case, run_beaver(case, timeout=60).outputs)


@every
def test_beaver_is_clear_but_for_roundings(tiny, name, plan):
    """`clear` rounds to nearest and beaver at random, hundreds of times in a row: they differ by less than 2^-10, and
    what is revealed by a unit of 2^-12 and a half more."""
    made = tiny(name, plan)
    batch = made.batches[1]
    ran = run_beaver(case_of(made, batch), timeout=60)
    expected = clear(made, batch)
    for output, got in made.compiled.decode(ran.outputs).items():
        assert (got - expected[output]).abs().max() < UNIT + 1.5 * 2**-FRACTION
    declared = price(made.compiled.program)
    assert (ran.rounds, ran.online.sent, ran.online.received) == (declared.rounds, declared.up, declared.down)
    assert ran.offline_bytes == declared.offline_bytes


@pytest.mark.parametrize("name", ["bert", "bert-eager", "roberta", "distilbert", "mpnet"])
def test_padding_does_not_reach_the_text(tiny, name):
    """What stands at hidden positions changes nothing at the others."""
    made = tiny(name)
    batch = made.batches[1]
    hidden = batch["attention_mask"] == 0
    other = {**batch, "input_ids": torch.where(hidden, 7, batch["input_ids"])}
    if name in ("roberta", "mpnet"):  # their positions count from padding tokens: keep those as they are
        assert not bool((batch["input_ids"] == 1).any())
    first, second = clear(made, batch)["last_hidden_state"], clear(made, other)["last_hidden_state"]
    kept = ~hidden[0]
    assert (first - second)[:, kept].abs().max() < UNIT
    assert (first - second)[:, ~kept].abs().max() > 0.01


def test_later_tokens_do_not_reach_earlier_ones(tiny):
    for name in ("gpt2", "llama"):
        made = tiny(name)
        batch = made.batches[0]
        ids = batch["input_ids"].clone()
        ids[:, -1] = 5 if ids[0, -1] != 5 else 6
        first, second = clear(made, batch)["logits"], clear(made, {**batch, "input_ids": ids})["logits"]
        assert torch.equal(first[:, :-1], second[:, :-1])
        assert (first - second)[:, -1].abs().max() > 0.01


@pytest.mark.parametrize("name", ["bert", "roberta-labels", "electra", "gpt2"])
def test_the_embedding_can_stay_with_the_server(tiny, name):
    """The lookup is then a product with secret one-hot rows, and no table is among the client's tensors."""
    made, released = tiny(name, "fast", "private"), tiny(name, "fast")
    tables = {n: p for n, p in made.model.named_parameters() if n.endswith(("word_embeddings.weight", "wte.weight"))}
    assert len(tables) == 1
    (table,) = tables.values()
    assert any(t.shape == table.shape and torch.equal(t, table) for t in released.compiled.client_tensors.values())
    assert not any(t.shape == table.shape for t in made.compiled.client_tensors.values())
    assert made.compiled.program.released == ()
    for batch in made.batches[:2]:
        expected = approximated(made, batch)
        ran = run_beaver(case_of(made, batch), timeout=60)
        for output, got in made.compiled.decode(ran.outputs).items():
            assert (got - expected[output]).abs().max() < 2 * UNIT


@every
def test_the_client_holds_only_what_is_listed_as_released(tiny, name, plan):
    """No other parameter is among its tensors, whole or transposed; nor is any in the program."""
    made = tiny(name, plan)
    program, tensors = made.compiled.program, made.compiled.client_tensors
    parameters = dict(made.model.named_parameters(remove_duplicate=False))
    assert set(program.released) <= set(parameters)
    open_ = [parameters[n] for n in program.released]
    secret = {n: p.detach() for n, p in parameters.items() if not any(p is q for q in open_) and p.std() > 0}
    assert any("weight" in n for n in secret)
    for parameter in secret.values():
        for tensor in tensors.values():
            if tensor.numel() == parameter.numel():
                assert not torch.equal(tensor.flatten().sort().values, parameter.flatten().sort().values)
    text = program.to_json()
    for parameter in secret.values():
        assert repr(float(parameter.flatten()[0])) not in text


def test_released_is_the_embedding_block(tiny):
    tables = {f"embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    norm = {"embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"}
    for name in ("bert", "electra", "albert"):
        assert set(tiny(name).compiled.program.released) == tables | norm
    assert set(tiny("llama").compiled.program.released) == {
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
    }
    assert tiny("vit").compiled.program.released == ()


def test_one_compilation_serves_a_whole_session(tiny):
    made = tiny("distilbert-labels", "fast")
    case = case_of(made, made.batches[3])
    session = run_session(case, queries=2, timeout=60)
    expected = clear(made, made.batches[3])["logits"]
    for answer in session.answers:
        assert (made.compiled.decode(answer.outputs)["logits"] - expected).abs().max() < UNIT + 1.5 * 2**-FRACTION
