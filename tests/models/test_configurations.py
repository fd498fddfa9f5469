"""Tiny configurations of many architectures, from a Hugging Face model to an answer on `clear` and on `beaver`."""

from dataclasses import replace

import pytest
import torch
import transformers as tf
from blindformer.models.compile import compile, decode_outputs
from blindformer.models.graph.graph import order
from blindformer.models.graph.ranges import run as run_float
from blindformer.models.lowering.client_graph import run_prelude
from blindformer.models.program.encoding import FRACTION, answer_bits
from blindformer.models.program.program import Program
from blindformer.models.program.two_server import for_two_servers, input_layout, is_for_two_servers
from blindformer.tests.models.conftest import CONFIGURATIONS, clear
from blindformer.tests.parties.session.site import run_session
from blindformer.tests.patience import PATIENCE
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Case, check, reveal_all
from torch import nn

UNIT = 2.0**-10
# Largest error of `clear` in units: logits up to 4.4, summed by a head of std 0.2 over features of that size; and a
# residual stream that nothing normalises, which grows to 7e5: the head sees an affine map of it.
LARGER = {("llama", "faithful"): 2.0, ("llama", "fast"): 2.0, ("vit-labels", "he"): 4.0}
# The same of what parties round at random: logits are sums over 32 features, and `fast` has 13 fractional bits. Of 20
# runs the root mean square was 0.23 to 0.40 units and the largest of 800 differences 2.0.
CHANCE = {("gpt2", "fast"): 3.0, ("llama", "fast"): 3.0}

every = pytest.mark.parametrize(
    ("name", "plan"), [(name, plan) for name in CONFIGURATIONS for plan in ("faithful", "fast")]
)


@every
def test_the_lowered_graph_is_the_model(tiny, name, plan):
    """On real numbers, at every position, padded ones too: export, rules and passes lose nothing, but that a table of
    roots is read at a sum and not at its mean, within its own tolerance."""
    case = tiny(name, plan)
    nodes = order(case.compiled.nodes)
    for batch in case.batches:
        values = run_prelude(case.compiled.program, case.compiled.client_tensors, batch)
        got = run_float(nodes, {node.name: values[node.name] for node in nodes if node.op == "client"})
        expected = case.approximated(batch)
        for output, node in zip(case.compiled.program.outputs, case.compiled.nodes, strict=True):
            assert (got[id(node)] - expected[output]).abs().max() < (UNIT / 4 if name == "llama" else UNIT / 32)


@pytest.mark.parametrize("plan", ["faithful", "fast", "he"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_clear_is_the_approximated_model(tiny, name, plan):
    case = tiny(name, plan)
    expected = [case.approximated(batch) for batch in case.batches]
    for batch, wanted in zip(case.batches, expected, strict=True):
        ours, size = clear(case.compiled, batch), 1.0
        if plan == "he":  # an untrained student's values grow, and bits go to the largest of the calibration's
            size = 2 * max(1.0, *(float(each[output].abs().max()) for each in expected for output in ours))
        for output, got in ours.items():
            assert got.shape == wanted[output].shape
            assert (got - wanted[output]).abs().max() < UNIT * size * LARGER.get((name, plan), 1.0)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_nothing_is_compared_with_he_but_what_is_no_kind(tiny, name):
    """The head of DistilBERT's classifier is a ReLU, for which a plan has no choice."""
    paths = {item.path for item in tiny(name, "he").compiled.program.instructions if item.op == "less"}
    assert paths == ({""} if name == "distilbert-labels" else set())


def test_with_he_a_mask_meets_the_values_alone(tiny):
    """Nothing is divided by, so no column of the mask is mixed beside them."""
    program = tiny("bert", "he").compiled.program
    masked = [item for item in program.instructions if item.op == "mul_private" and len(item.shape) == 4]
    assert {item.shape for item in masked} == {(1, 4, 8, 8)}
    assert not any(item.op == "concat" for item in program.instructions)


@every
def test_beaver_computes_every_instruction_exactly(tiny, name, plan):
    """Each of the program's values follows from its own arguments in the ring, at the widths that were placed."""
    example = tiny(name, plan)
    case = replace(Case.of(example.compiled, example.batches[1]), program=reveal_all(example.compiled.program))
    check(case, run_beaver(case, timeout=PATIENCE).outputs)


@every
def test_beaver_is_clear_but_for_roundings(tiny, name, plan):
    """`clear` rounds to nearest and beaver at random, hundreds of times in a row: they differ by less than 2^-10, and
    what is revealed by a unit of 2^-12 and a half more; many numbers together by half of that."""
    case = tiny(name, plan)
    batch = case.batches[1]
    ran = run_beaver(Case.of(case.compiled, batch), timeout=PATIENCE)
    expected = clear(case.compiled, batch)
    for output, got in case.compiled.decode(ran.outputs).items():
        difference = got - expected[output]
        assert difference.abs().max() < UNIT * CHANCE.get((name, plan), 1.0) + 1.5 * 2**-FRACTION
        assert difference.numel() < 256 or difference.square().mean().sqrt() < UNIT / 2


@pytest.mark.parametrize("name", ["bert", "bert-eager", "roberta", "distilbert", "mpnet"])
def test_padding_does_not_reach_the_text(tiny, name):
    """What stands at hidden positions changes nothing at the others."""
    case = tiny(name)
    batch = case.batches[1]
    hidden = batch["attention_mask"] == 0
    other = {**batch, "input_ids": torch.where(hidden, 7, batch["input_ids"])}
    if name in ("roberta", "mpnet"):  # their positions count from padding tokens: keep those as they are
        assert not bool((batch["input_ids"] == 1).any())
    first, second = clear(case.compiled, batch)["last_hidden_state"], clear(case.compiled, other)["last_hidden_state"]
    kept = ~hidden[0]
    assert (first - second)[:, kept].abs().max() < UNIT
    assert (first - second)[:, ~kept].abs().max() > 0.01


def test_later_tokens_do_not_reach_earlier_ones(tiny):
    for name in ("gpt2", "llama"):
        case = tiny(name)
        batch = case.batches[0]
        ids = batch["input_ids"].clone()
        ids[:, -1] = 5 if ids[0, -1] != 5 else 6
        first, second = (clear(case.compiled, {**batch, "input_ids": x})["logits"] for x in (batch["input_ids"], ids))
        assert torch.equal(first[:, :-1], second[:, :-1])
        assert (first - second)[:, -1].abs().max() > 0.01


@pytest.mark.parametrize("name", ["bert", "roberta-labels", "electra", "gpt2"])
def test_the_embedding_can_stay_with_the_server(tiny, name):
    """The lookup is then a product with secret one-hot rows, and no table is among the client's tensors."""
    case, released = tiny(name, "fast", "private"), tiny(name, "fast")
    tables = {n: p for n, p in case.model.named_parameters() if n.endswith(("word_embeddings.weight", "wte.weight"))}
    assert len(tables) == 1
    (table,) = tables.values()
    assert any(t.shape == table.shape and torch.equal(t, table) for t in released.compiled.client_tensors.values())
    assert not any(t.shape == table.shape for t in case.compiled.client_tensors.values())
    assert case.compiled.program.released == ()
    for batch in case.batches[:2]:
        expected = case.approximated(batch)
        ran = run_beaver(Case.of(case.compiled, batch), timeout=PATIENCE)
        for output, got in case.compiled.decode(ran.outputs).items():
            assert (got - expected[output]).abs().max() < UNIT * (1 + CHANCE.get((name, "fast"), 1.0))


@every
def test_the_client_holds_only_what_is_listed_as_released(tiny, name, plan):
    """No other parameter is among its tensors, whole or transposed; nor is any in the program."""
    case = tiny(name, plan)
    program, tensors = case.compiled.program, case.compiled.client_tensors
    parameters = dict(case.model.named_parameters(remove_duplicate=False))
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
    example = tiny("distilbert-labels", "fast")
    case = Case.of(example.compiled, example.batches[3])
    session = run_session(case, queries=2, timeout=PATIENCE)
    expected = clear(example.compiled, example.batches[3])["logits"]
    for answer in session.answers:
        assert (example.compiled.decode(answer.outputs)["logits"] - expected).abs().max() < UNIT + 1.5 * 2**-FRACTION


@every
def test_a_model_s_answers_have_no_more_bits_than_the_policy_says(tiny, name, plan):
    program = tiny(name, plan).compiled.program
    for number in program.outputs.values():
        item = program.instructions[number]
        assert item.op == "reveal"
        assert item.scale <= answer_bits(item.bound)
        assert 4 * item.bound * 2.0**item.scale < 2.0 ** (item.width - 1)  # as far as an answer is believed
        source = program.instructions[item.args[0]]
        dropped = item.attributes.get("bits", 0)  # none of an answer that has no more
        assert item.width == item.attributes.get("ring", item.width) - dropped <= source.width - dropped


# The program for an owner who takes no part (models/program/two_server.py).


@every
def test_nothing_is_left_to_a_client(tiny, name, plan):
    compiled = tiny(name, plan).compiled.program
    moved = for_two_servers(compiled)
    assert "client" not in moved.needs()
    assert {x.attributes["to"] for x in moved.instructions if x.op == "reveal"} == {"owner"}
    private = [moved.instructions[x.args[1]].op for x in moved.instructions if x.op in ("linear", "mul_private")]
    assert set(private) == {"weight"}
    assert moved.weight_shapes() == compiled.weight_shapes()
    assert is_for_two_servers(moved)
    assert not is_for_two_servers(compiled)


@every
def test_shapes_scales_and_widths_stay(tiny, name, plan):
    compiled = tiny(name, plan).compiled.program
    moved = for_two_servers(compiled)
    for before, after in zip(compiled.instructions, moved.instructions, strict=True):
        assert before == replace(after, op=before.op, attributes=before.attributes)
    for number, item in enumerate(moved.instructions):
        if item.op == "mul" and compiled.instructions[number].op == "mul_private":
            assert min(moved.instructions[arg].width for arg in item.args) >= item.width


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_answer_in_the_clear_is_the_same(tiny, name):
    """To the last bit: only who knows what has changed. The owner prepares and reads as a client does."""
    item = tiny(name, "fast")
    compiled = item.compiled.program
    moved = for_two_servers(compiled)
    for batch in item.batches[:2]:
        case = Case.of(item.compiled, batch)
        assert set(input_layout(moved)) == set(case.client)
        expected = decode_outputs(compiled, case.clear())
        decoded = decode_outputs(moved, replace(case, program=moved).clear())
        assert all(torch.equal(decoded[output], value) for output, value in expected.items())


def test_tables_whose_cells_are_smaller_than_a_unit_are_read():
    """ConvNeXt V2 on small images: its last maps are single pixels, whose norms are nearly 0."""
    torch.manual_seed(0)
    config = tf.ConvNextV2Config(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 2, 1], image_size=32)
    model, generator = tf.ConvNextV2ForImageClassification(config).eval(), torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "grn" in name:
            nn.init.normal_(weight, std=0.02)
    batches = [{"pixel_values": torch.randn(1, 3, 32, 32, generator=generator)} for _ in range(3)]
    compiled = compile(model, batches, "faithful")
    Program.from_json(compiled.program.to_json())  # as a server reads it
    with torch.no_grad():
        expected = model(**batches[1]).logits
    case = Case.of(compiled, batches[1])
    for outputs in (case.clear(), run_beaver(case).outputs):
        assert (compiled.decode(outputs)["logits"] - expected).abs().max() < UNIT
