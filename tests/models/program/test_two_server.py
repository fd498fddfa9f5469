"""The program for an owner who takes no part: the same computation, its data in shares from outside."""

from dataclasses import replace

import pytest
import torch
from blindformer.models.compile import decode_outputs
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.models.program.two_server import (
    answer_layout,
    for_two_servers,
    input_layout,
    is_for_two_servers,
    owner_traffic,
)
from blindformer.protocols.ring import sign_extend
from blindformer.protocols.wire import wire_bytes
from blindformer.tests.models.conftest import CONFIGURATIONS
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import Case, handed_over

MODELS = [(name, plan) for name in CONFIGURATIONS for plan in ("fast", "faithful")]


def both(tiny, name, plan="faithful", embedding="client") -> tuple[Program, Program]:
    compiled = tiny(name, plan, embedding).compiled.program
    return compiled, for_two_servers(compiled)


@pytest.mark.parametrize(("name", "plan"), MODELS)
def test_nothing_is_left_to_a_client(tiny, name, plan):
    compiled, moved = both(tiny, name, plan)
    assert "client" not in moved.needs()
    assert {x.attributes["to"] for x in moved.instructions if x.op == "reveal"} == {"owner"}
    private = [moved.instructions[x.args[1]].op for x in moved.instructions if x.op in ("linear", "mul_private")]
    assert set(private) == {"weight"}
    assert moved.weight_shapes() == compiled.weight_shapes()
    assert is_for_two_servers(moved)
    assert not is_for_two_servers(compiled)


@pytest.mark.parametrize(("name", "plan"), MODELS)
def test_shapes_scales_and_widths_stay(tiny, name, plan):
    compiled, moved = both(tiny, name, plan)
    for before, after in zip(compiled.instructions, moved.instructions, strict=True):
        kept = {"args", "shape", "scale", "width", "bound", "path"}
        assert before.model_dump(include=kept) == after.model_dump(include=kept)
    for number, item in enumerate(moved.instructions):
        if item.op == "mul" and compiled.instructions[number].op == "mul_private":
            assert min(moved.instructions[arg].width for arg in item.args) >= item.width


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_every_party_derives_the_same_program(tiny, name):
    compiled, moved = both(tiny, name)
    again = for_two_servers(Program.from_json(compiled.to_json()))
    assert again.hash() == moved.hash() != compiled.hash()
    assert Program.from_json(moved.to_json()) == moved
    assert for_two_servers(moved) == moved


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_answer_in_the_clear_is_the_same(tiny, name):
    """To the last bit: only who knows what has changed. The owner prepares and reads as a client does."""
    item = tiny(name, "fast")
    compiled, moved = both(tiny, name, "fast")
    for batch in item.batches[:2]:
        case = Case.of(item.compiled, batch)
        assert set(input_layout(moved)) == set(case.client)
        expected = decode_outputs(compiled, case.clear())
        decoded = decode_outputs(moved, replace(case, program=moved).clear())
        assert all(torch.equal(decoded[output], value) for output, value in expected.items())


@pytest.mark.parametrize(
    ("name", "plan", "embedding"),
    [
        ("bert", "fast", "client"),
        ("bert", "faithful", "private"),
        ("gpt2", "fast", "client"),
        ("vit", "fast", "client"),
        ("vit-labels", "faithful", "client"),
        ("mpnet", "faithful", "client"),
    ],
)
def test_a_private_run_is_as_close_as_a_client_s_and_reveals_such_integers(tiny, name, plan, embedding):
    """In every protocol. Roundings are random, one unit at each rescale: no seat makes them larger."""
    item = tiny(name, plan, embedding)
    case, outputs = Case.of(item.compiled, item.batches[1]), item.compiled.program.outputs
    scales = {name: item.compiled.program.instructions[number].scale for name, number in outputs.items()}
    exact = case.clear()
    for results in (run_beaver(case).outputs, run_beaver(handed_over(case)).outputs, run_many(case, 2).outputs):
        for output, value in results.items():
            assert torch.equal(value, sign_extend(value, 24))
            assert float((value - exact[output]).abs().max()) < 2e-3 * 2.0 ** scales[output]


@pytest.mark.parametrize("name", ["bert", "mpnet", "gpt2"])
@pytest.mark.parametrize("plan", ["fast", "faithful"])
def test_the_other_seat_is_hardly_dearer(tiny, name, plan):
    """What the client knew is opened like the rest: some percent of bytes (in these tiny models the masked answers,
    which only go up, weigh more than the answers, which go to the owner), and no round more."""
    before, after = (price(program) for program in both(tiny, name, plan))
    assert after.rounds <= before.rounds
    assert after.online_bytes < 1.15 * before.online_bytes
    assert after.offline_bytes < 1.05 * before.offline_bytes
    assert after.setup_bytes == before.setup_bytes


def test_the_owner_sends_its_shares_and_a_seed_and_receives_two_answers(tiny):
    compiled, moved = both(tiny, "bert", "fast")
    traffic = owner_traffic(moved)
    sources = [x for x in compiled.instructions if x.op == "client"]
    assert traffic.to_server == sum(wire_bytes(x.width) * torch.Size(x.shape).numel() for x in sources)
    assert traffic.to_helper == 32
    results = [compiled.instructions[number] for number in compiled.outputs.values()]
    assert traffic.from_each == sum(wire_bytes(x.width) * torch.Size(x.shape).numel() for x in results)
    assert traffic.total == traffic.to_server + 32 + 2 * traffic.from_each
    assert list(answer_layout(moved)) == list(moved.outputs)
    assert owner_traffic(compiled).total == 32
